"""A discrete-event engine: a clock, a heap of timed events, and one order in which they are carried out.

Nothing here knows of leases. A simulation schedules closures; what they call (the steward's ``decide``, say) is told
the time by the engine's clock, which has ``cloudfarm.clock.Clock``'s shape and moves only between events. Times are
whole milliseconds, as in the live farm.

Two runs that schedule the same events do the same things in the same order: events of one instant go by phase, and
within a phase by the order in which they were scheduled.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from cloudfarm.errors import CloudfarmError, InvalidInputError

Action = Callable[[], None]

MOST_AT_ONE_INSTANT = 1_000_000
"""More events than this without the clock moving are taken for a loop that never ends."""


class Phase(IntEnum):
    """What goes first at one instant: what ends is gone, and what arrives is there, before anybody decides."""

    ENDS = 0
    """Departures, time limits, notices, a step's end."""
    ARRIVES = 1
    """New asks, hosts that come up."""
    DECIDES = 2
    """Looking at everything and deciding."""


class MovableClock(Protocol):
    """A clock that an engine can set."""

    def now_ms(self) -> int:
        """Return the time in milliseconds."""

    def move_to(self, at_ms: int) -> None:
        """Set the time; the engine never sets it back."""


class VirtualClock:
    """Tells the time that it was moved to. Fits ``cloudfarm.clock.Clock``."""

    def __init__(self, at_ms: int = 0) -> None:
        self._at_ms = at_ms

    def now_ms(self) -> int:
        """Return the time in milliseconds."""
        return self._at_ms

    def move_to(self, at_ms: int) -> None:
        """Set the time."""
        self._at_ms = at_ms


@dataclass(slots=True, eq=False)
class Event:
    """Something that will be done; the handle with which it can be cancelled."""

    at_ms: int
    phase: Phase
    action: Action | None
    """None once it was carried out or cancelled."""

    @property
    def pending(self) -> bool:
        """Whether it is still to be done."""
        return self.action is not None


class Engine:
    """Carries out events in the order of their times and moves the clock from one to the next."""

    def __init__(self, clock: MovableClock | None = None) -> None:
        self.clock: MovableClock = VirtualClock() if clock is None else clock
        self._heap: list[tuple[int, Phase, int, Event]] = []
        self._scheduled = 0
        self._pending = 0

    def now_ms(self) -> int:
        """Return the simulated time in milliseconds."""
        return self.clock.now_ms()

    @property
    def pending(self) -> int:
        """How many events are still to be done."""
        return self._pending

    def at(self, at_ms: int, action: Action, phase: Phase = Phase.ENDS) -> Event:
        """Schedule an action for an instant, now at the earliest.

        Raises:
            InvalidInputError: the instant has passed.
        """
        if at_ms < self.now_ms():
            raise InvalidInputError(f"{at_ms} ms has passed: it is {self.now_ms()} ms", at_ms=at_ms)
        event = Event(at_ms, phase, action)
        heapq.heappush(self._heap, (at_ms, phase, self._scheduled, event))
        self._scheduled += 1
        self._pending += 1
        return event

    def after(self, delay_ms: int, action: Action, phase: Phase = Phase.ENDS) -> Event:
        """Schedule an action for a time from now on; see :meth:`at`."""
        return self.at(self.now_ms() + delay_ms, action, phase)

    def cancel(self, event: Event) -> bool:
        """Forget an event; return False if it had been carried out or cancelled before."""
        if event.action is None:
            return False
        event.action = None  # its place in the heap is given up when its time comes
        self._pending -= 1
        return True

    def step(self) -> bool:
        """Carry out the next event; return False if there is none."""
        event = self._next()
        if event is None or event.action is None:
            return False
        heapq.heappop(self._heap)
        action, event.action = event.action, None
        self._pending -= 1
        if event.at_ms > self.now_ms():
            self.clock.move_to(event.at_ms)
        action()
        return True

    def run(self, until_ms: int | None = None) -> int:
        """Carry out events until none is left, or all those up to and at ``until_ms``, where the clock then stands.

        Returns:
            how many were carried out.

        Raises:
            CloudfarmError: the clock no longer moves, because events keep scheduling others for the same instant.
        """
        done = at_this_instant = 0
        while (event := self._next()) is not None and (until_ms is None or event.at_ms <= until_ms):
            at_this_instant = at_this_instant + 1 if event.at_ms == self.now_ms() else 1
            if at_this_instant > MOST_AT_ONE_INSTANT:
                raise CloudfarmError(f"the simulation no longer gets beyond {event.at_ms} ms")
            self.step()
            done += 1
        if until_ms is not None and until_ms > self.now_ms():
            self.clock.move_to(until_ms)
        return done

    def _next(self) -> Event | None:
        """Return the next event that was not cancelled, and leave it in the heap."""
        while self._heap:
            event = self._heap[0][-1]
            if event.pending:
                return event
            heapq.heappop(self._heap)
        return None


class Alarm:
    """An action that is due at most once at a time: of the instants asked for, the earliest counts.

    It is what wakes somebody who decides: every change asks for *now*, a deadline for its instant, and however many
    ask, he looks once.
    """

    def __init__(self, engine: Engine, action: Action, phase: Phase = Phase.DECIDES) -> None:
        self._engine = engine
        self._action = action
        self._phase = phase
        self._event: Event | None = None

    @property
    def due_ms(self) -> int | None:
        """When it will ring, or None."""
        return self._event.at_ms if self._event is not None and self._event.pending else None

    def ring_by(self, at_ms: int) -> None:
        """Ring at an instant unless it rings before."""
        due_ms = self.due_ms
        if due_ms is not None and due_ms <= at_ms:
            return
        event = self._engine.at(at_ms, self._action, self._phase)
        self.stop()
        self._event = event

    def stop(self) -> None:
        """Do not ring."""
        if self._event is not None:
            self._engine.cancel(self._event)
            self._event = None
