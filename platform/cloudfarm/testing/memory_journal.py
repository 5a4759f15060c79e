"""The journal of what callers use, in memory, with knobs named after faults."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cloudfarm.domain.served import Note
from cloudfarm.errors import StorageFullError, UnavailableError


@dataclass(slots=True)
class JournalFolder:
    """What outlives the process: batches by name, and which of them a living process has."""

    batches: dict[str, list[Note]] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    journals: int = 0
    """How many have been opened here."""


@dataclass(slots=True)
class MemoryJournal:
    """Implements :class:`cloudfarm.ports.UsageJournal`."""

    folder: JournalFolder = field(default_factory=JournalFolder)
    full: bool = False
    """Refuse every note."""
    unreadable: set[str] = field(default_factory=set)
    """Batches that cannot be read."""
    undroppable: set[str] = field(default_factory=set)
    """Batches that cannot be dropped."""
    id: str = ""
    _batches: int = 0
    _open: str | None = None
    _waiting: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Take a name that no other here has."""
        self.folder.journals += 1
        self.id = f"journal{self.folder.journals}"

    def append(self, notes: Sequence[Note]) -> None:
        """Keep notes."""
        if self.full:
            self.close_batch()
            raise StorageFullError("the journal has no room")
        if self._open is None:
            self._batches += 1
            self._open = f"{self.id}-{self._batches}"
            self.folder.batches[self._open] = []
            self.folder.held.add(self._open)
        self.folder.batches[self._open] += notes

    def close_batch(self) -> None:
        """Let the open batch wait."""
        if self._open is not None:
            self._waiting.add(self._open)
            self._open = None

    def is_own(self, batch: str) -> bool:
        """Whether this journal has written the batch."""
        return batch.startswith(f"{self.id}-")

    def waiting(self) -> Sequence[str]:
        """Return the batches that wait; those that another process left become this one's."""
        left = set(self.folder.batches) - self.folder.held
        self.folder.held |= left
        self._waiting |= left
        return sorted(self._waiting)

    def read(self, batch: str) -> Sequence[Note]:
        """Return a batch's notes."""
        if batch in self.unreadable:
            raise UnavailableError(f"the batch {batch} cannot be read")
        return list(self.folder.batches[batch])

    def drop(self, batch: str) -> None:
        """Forget a batch."""
        if batch in self.undroppable:
            raise UnavailableError(f"the batch {batch} cannot be dropped")
        del self.folder.batches[batch]
        self.folder.held.discard(batch)
        self._waiting.discard(batch)

    def close(self) -> None:
        """Let go of everything, which stays: also what happens when the process is killed."""
        self.close_batch()
        self.folder.held -= self._waiting
        self._waiting.clear()
