"""How much services are asked: counted in the front door, and told to the steward once a second."""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cloudfarm.clock import Clock
from cloudfarm.domain.load import WINDOW_MS, Load, LoadReport
from cloudfarm.ports import Nudge
from cloudfarm.troubles import Troubles

EVERY_S = 1.0
_BUCKET_MS = 1_000


@dataclass(slots=True)
class _Count:
    under_way: int = 0
    waiting: int = 0
    last_request_ms: int = 0
    peaks: deque[tuple[int, int]] = field(default_factory=deque)
    """By second: the most requests under way at once."""

    def note(self, now_ms: int) -> None:
        """Take down how many are under way, and forget what is older than the window."""
        second = now_ms // _BUCKET_MS
        if self.peaks and self.peaks[-1][0] == second:
            self.peaks[-1] = (second, max(self.peaks[-1][1], self.under_way))
        else:
            self.peaks.append((second, self.under_way))
        while self.peaks[0][0] * _BUCKET_MS <= now_ms - WINDOW_MS:
            self.peaks.popleft()
        if self.under_way:
            self.last_request_ms = now_ms


class Loads:
    """Counts the requests to each service, under way and waiting for it to start.

    Args:
        clock: the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_ms = clock.now_ms()
        self._counts: dict[str, _Count] = {}
        self._under_way: Counter[str] = Counter()
        """By application."""

    @contextmanager
    def sent(self, service_id: str, app_name: str) -> Iterator[None]:
        """Count a request while an application has it, or it waits for one of its replicas."""
        self._under_way[app_name] += 1
        try:
            with self.request(service_id):
                yield
        finally:
            self._under_way[app_name] -= 1
            if not self._under_way[app_name]:
                del self._under_way[app_name]

    @contextmanager
    def request(self, service_id: str) -> Iterator[None]:
        """Count a request to a service while it is under way."""
        count = self._counts.setdefault(service_id, _Count())
        count.under_way += 1
        count.note(self._clock.now_ms())
        try:
            yield
        finally:
            count.note(self._clock.now_ms())
            count.under_way -= 1

    @contextmanager
    def wait(self, service_id: str) -> Iterator[None]:
        """Count a request while it waits for its service to start: as if it were under way."""
        with self.request(service_id):
            count = self._counts[service_id]
            count.waiting += 1
            try:
                yield
            finally:
                count.waiting -= 1

    def waiting(self, service_id: str) -> int:
        """Return how many requests wait for a service to start."""
        count = self._counts.get(service_id)
        return 0 if count is None else count.waiting

    def report(self) -> LoadReport:
        """Return what all services are asked."""
        now_ms = self._clock.now_ms()
        for count in self._counts.values():
            count.note(now_ms)
        loads = {
            service_id: Load(max(peak for _, peak in count.peaks), count.waiting, count.last_request_ms)
            for service_id, count in self._counts.items()
        }
        return LoadReport(now_ms, self._since_ms, loads, dict(self._under_way))


@dataclass(slots=True)
class LoadReporter:
    """Tells the steward of the load."""

    loads: Loads
    nudge: Nudge
    troubles: Troubles

    def step(self) -> None:
        """Tell it once."""
        self.nudge.report(self.loads.report())

    async def run(self) -> None:
        """Tell it for ever."""
        while True:
            try:
                self.step()
            except Exception as mistake:  # noqa: BLE001 - services that nobody reports the load of would fall asleep
                await self.troubles.tell("telling the steward of the load", mistake)
            await asyncio.sleep(EVERY_S)
