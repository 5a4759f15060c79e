"""One call to a service, from its beginning to its end: what it used so far, and whether it may go on."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cloudfarm.domain.served import Account, Note, Shares, Used
from cloudfarm.errors import CloudfarmError
from cloudfarm.usecases.limits import Admission

if TYPE_CHECKING:
    from cloudfarm.usecases.metering import Meter

MOST_AT_ONCE = 10**9
"""More tokens in one count are a mistake."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Use:
    """One request under way. Whoever began it ends it, come what may."""

    _meter: "Meter"
    account: Account
    app_name: str
    """Where it was sent."""
    _admission: Admission
    _shares: Shares
    _noted_ms: int
    """Up to when the journal has it."""
    _noted_clock: int
    """The virtual clock of the service's shares at that time."""
    _noted: tuple[int, int, int] = (0, 0, 0)
    """Requests and tokens that the journal has."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    begun: bool = False
    """Whether anything of the answer has come."""
    ended: bool = False
    _refusal: CloudfarmError | None = None
    _waiting: asyncio.Timeout | None = None
    """Of whoever waits for the next part of the answer."""

    def count(self, *, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Charge tokens, before they are sent to the caller.

        Raises:
            ValueError: for a number that no answer can have.
        """
        if self.ended:
            raise ValueError("this use has ended")
        if not (0 <= prompt_tokens <= MOST_AT_ONCE and 0 <= completion_tokens <= MOST_AT_ONCE):
            raise ValueError(f"{prompt_tokens} and {completion_tokens} tokens cannot be counted")
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self._meter.take(self._admission, prompt_tokens + completion_tokens)

    @property
    def is_untouched(self) -> bool:
        """Whether nothing of the answer has come, and nothing was charged."""
        return not (self.begun or self.prompt_tokens or self.completion_tokens)

    def end(self) -> None:
        """Close it; a second time changes nothing."""
        if not self.ended:
            self.ended = True
            self._meter.finish(self)

    def refuse(self, error: CloudfarmError) -> None:
        """Let the answer end with an error: at once where its next part is waited for, else when that is asked for."""
        if self._refusal is not None:
            return  # it is ending already, which may take a while
        self._refusal = error
        if self._waiting is not None:
            self._waiting.reschedule(asyncio.get_running_loop().time())

    async def next_of(self, answers: AsyncGenerator[T]) -> T | None:
        """Return the next part of an answer; None at its end.

        Raises:
            CloudfarmError: what the use was refused with meanwhile. Nothing comes of the answer any more then.
        """
        if self._refusal is None:
            waiting = self._waiting = asyncio.timeout(None)
            try:
                async with waiting:
                    answer = await anext(answers, None)
            except TimeoutError:
                if self._refusal is None or not waiting.expired():
                    raise
            else:
                self.begun = True
                return answer
            finally:
                self._waiting = None
        raise self._refusal

    def note(self, now_ms: int, clock: int) -> Note:
        """Return what was used since the last note."""
        start_ms = min(self._noted_ms, now_ms)  # a clock may be set back
        requests, prompt_tokens, completion_tokens = self._noted
        used = Used(
            1 - requests,
            self.prompt_tokens - prompt_tokens,
            self.completion_tokens - completion_tokens,
            now_ms - start_ms,
            clock - self._noted_clock,
        )
        self._noted_ms, self._noted_clock = now_ms, clock
        self._noted = 1, self.prompt_tokens, self.completion_tokens
        return Note(self.account, start_ms, now_ms, used)

    def shares(self) -> Shares:
        """Return the shares of its service."""
        return self._shares
