"""What callers use of services, and how the GPU time of a service is divided among the requests it answers at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Account:
    """Whose use it is, and of what."""

    tenant: str
    """The caller's."""
    key_id: str
    """Of the key or token that the caller used."""
    service_id: str
    service_tenant: str
    """Whose service it is: its leases are charged to that tenant, whoever calls."""
    service: str
    """The service's name."""
    project: str
    """The service's."""
    model: str
    """As the caller named it."""


@dataclass(frozen=True, slots=True)
class Used:
    """How much, in whole numbers, so that any sum of it is exact."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    busy_ms: int = 0
    """How long the requests were under way, added up."""
    milli_gpu_ms: int = 0
    """Their part of the service's GPUs, see :class:`Shares`; 1,000,000 is one GPU for one second."""

    def __add__(self, other: "Used") -> "Used":
        """Return the sum."""
        return Used(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.busy_ms + other.busy_ms,
            self.milli_gpu_ms + other.milli_gpu_ms,
        )

    @property
    def tokens(self) -> int:
        """Tokens read and tokens made."""
        return self.prompt_tokens + self.completion_tokens


USED = tuple(each.name for each in fields(Used))


@dataclass(frozen=True, slots=True)
class Note:
    """What was used on an account in a time."""

    account: Account
    start_ms: int
    end_ms: int
    used: Used


@dataclass(frozen=True, slots=True)
class DayUse:
    """What was used on an account on a UTC day, counted in whole days since the epoch."""

    day: int
    account: Account
    used: Used


def by_minute(notes: Iterable[Note]) -> Sequence[Note]:
    """Return the sums of notes of the same account and minute, in the order in which they begin to appear.

    A note belongs to the minute in which it ends, and is cut to begin in it: so none is ever of two days.
    """
    sums: dict[tuple[Account, int], Note] = {}
    for note in notes:
        minute = note.end_ms // MINUTE_MS
        start_ms = max(note.start_ms, minute * MINUTE_MS)
        there = sums.get((note.account, minute))
        sums[note.account, minute] = (
            Note(note.account, start_ms, note.end_ms, note.used)
            if there is None
            else Note(
                note.account,
                min(there.start_ms, start_ms),
                max(there.end_ms, note.end_ms),
                there.used + note.used,
            )
        )
    return tuple(sums.values())


@dataclass(slots=True)
class Shares:
    """Divides the GPU time of one service among its requests: each of n under way at once gets 1/n of it.

    A virtual clock runs at ``milli_gpus / n``; a request's share is how far it went from the request's beginning to
    its end. So every event costs the same, however many requests there are. What does not divide is kept for the next
    division: at every moment the shares and ``rest_milli_gpu_ms`` add up to exactly ``milli_gpus`` for the time in
    which there was a request, and who of several leaves first at one instant changes nothing.
    """

    milli_gpus: int
    at_ms: int
    under_way: int = 0
    clock_milli_gpu_ms: int = 0
    """The virtual clock: what each request would have got that was there all along."""
    rest_milli_gpu_ms: int = 0
    """Not given to anybody yet: less than one for each request there was at the last division."""

    def go_on(self, now_ms: int) -> int:
        """Advance to now and return the virtual clock. A time that goes back stands still."""
        passed_ms = now_ms - self.at_ms
        if passed_ms > 0:
            self.at_ms = now_ms
            if self.under_way:
                given, self.rest_milli_gpu_ms = divmod(
                    self.milli_gpus * passed_ms + self.rest_milli_gpu_ms, self.under_way
                )
                self.clock_milli_gpu_ms += given
        return self.clock_milli_gpu_ms

    def change(self, now_ms: int, milli_gpus: int) -> int:
        """Take note that the service has so many GPUs now; return the virtual clock."""
        clock = self.go_on(now_ms)
        self.milli_gpus = milli_gpus
        return clock

    def begin(self, now_ms: int, milli_gpus: int) -> int:
        """Let a request begin, on a service that has so many GPUs now; return the virtual clock."""
        clock = self.change(now_ms, milli_gpus)
        self.under_way += 1
        return clock

    def end(self, now_ms: int) -> int:
        """Let a request end; return the virtual clock."""
        clock = self.go_on(now_ms)
        self.under_way -= 1
        return clock
