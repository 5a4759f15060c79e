"""Which requests to an engine are answered in turn, and which wait until there is room for them."""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

MAX_TURNS = 8
"""Requests that are answered in turn; others wait."""


class Request(Protocol):
    """What the engine is to answer."""

    @property
    def tokens(self) -> int:
        """For how many tokens it may come to need keys and values, in all its choices."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        ...


R = TypeVar("R", bound=Request)


@dataclass(slots=True)
class Turns(Generic[R]):
    """Requests under way and those before them. They begin in the order in which they came."""

    room_tokens: int
    """What all under way may hold together. None that came asks for more."""
    running: deque[R] = field(default_factory=deque)
    """The one whose turn it is comes first."""
    waiting: deque[R] = field(default_factory=deque)

    def begin(self) -> None:
        """Let those begin that have room."""
        while self.waiting:
            first = self.waiting[0]
            if not first.cancelled:
                held = sum(each.tokens for each in self.running)
                if len(self.running) >= MAX_TURNS or held + first.tokens > self.room_tokens:
                    return
                self.running.append(first)
            self.waiting.popleft()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.running) + len(self.waiting)
