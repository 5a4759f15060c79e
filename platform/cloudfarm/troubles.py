"""What went wrong inside the farm itself: logged, and told to its operators by an event.

A loop that meets such a thing goes on, or everything else would stand still; its operators have to hear of it all the
same, without reading logs.
"""

import logging
import traceback
from dataclasses import dataclass, field

from cloudfarm.clock import Clock
from cloudfarm.domain.status import Event
from cloudfarm.errors import CloudfarmError
from cloudfarm.ports import Store

AGAIN_MS = 3_600_000
"""What goes wrong every second is told once in so many milliseconds."""
KIND, SUBJECT = "farm.trouble", "farm"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Troubles:
    """The troubles of one process."""

    store: Store
    clock: Clock
    mistake: Exception | None = None
    """The last that was no error of ours to raise but a mistake in the code; tests end with it."""
    _logged: dict[str, int] = field(default_factory=dict)
    _told: dict[str, int] = field(default_factory=dict)

    async def tell(self, during: str, error: Exception) -> None:
        """Log a trouble, and store it as an event; never raises, as what goes on in spite of it must."""
        if not isinstance(error, CloudfarmError):
            self.mistake = error
        text = f"{during}: {_described(error)}"
        if self._is_new(self._logged, text):
            log.error("%s", text, exc_info=None if isinstance(error, CloudfarmError) else error)
        if not self._is_new(self._told, text):
            return
        try:
            async with self.store.begin() as uow:
                await uow.events.append(Event(self.clock.now_ms(), KIND, SUBJECT, None, "farm", text))
                await uow.commit()
        except Exception as failed:  # noqa: BLE001 - perhaps it is the store that the trouble is about
            self._told.pop(text, None)  # told as soon as the store takes it, if it is still so
            log.debug("operators cannot be told: %r", failed)

    def _is_new(self, known: dict[str, int], text: str) -> bool:
        now_ms = self.clock.now_ms()
        if now_ms - known.get(text, now_ms - AGAIN_MS) < AGAIN_MS:
            return False
        for old in [each for each, at_ms in known.items() if now_ms - at_ms >= AGAIN_MS]:
            del known[old]
        known[text] = now_ms
        return True


def _described(error: BaseException) -> str:
    """Return what an event may say of an error: of a mistake where it happened, as its text may hold anything."""
    if isinstance(error, BaseExceptionGroup):
        return _described(error.exceptions[0])
    if isinstance(error, CloudfarmError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename.rpartition('/cloudfarm/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}, a mistake in the farm's own code; the log says more"
