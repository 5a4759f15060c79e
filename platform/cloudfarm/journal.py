"""Notes of what callers use, in files of the state folder: one file a batch, one line a writing.

A line is written by one system call and not forced to the disk: it outlives the process, not a loss of power. Each
process holds locks on its files, which end with it, so that another hands over only what nobody writes any more.
"""

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from uuid import uuid4

from cloudfarm.domain.served import USED, Account, Note, Used
from cloudfarm.errors import CloudfarmError, StorageFullError, UnavailableError

_SUFFIX = ".jsonl"
_NEW = ".new"
"""Ends the name of a file that is not locked yet."""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ACCOUNT = tuple(each.name for each in fields(Account))
_MOST = 2**53
"""No number of a note is as large."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class FileJournal:
    """Implements :class:`cloudfarm.ports.UsageJournal`."""

    folder: Path
    """Made when it is first written to."""
    id: str = field(default_factory=lambda: uuid4().hex)
    """Begins the names of its batches, which are numbered."""
    _batches: int = 0
    _open: tuple[str, int] | None = None
    """Name and descriptor of the batch that is being written."""
    _waiting: dict[str, int] = field(default_factory=dict)
    """Descriptors, each with its lock, by name."""
    _refused: set[str] = field(default_factory=set)
    """Batches that could not be opened; that is said once of each."""

    def append(self, notes: Sequence[Note]) -> None:
        """Write notes as one line.

        Raises:
            StorageFullError: if there is no room.
            UnavailableError: if the file system fails otherwise.
        """
        line = json.dumps([_plain(note) for note in notes], separators=(",", ":")).encode() + b"\n"
        with _our_errors():
            try:
                if self._open is None:
                    self._open = self._new_batch()
                while line:
                    line = line[os.write(self._open[1], line) :]
            except OSError:
                # What got there of the line has no end and counts as not written; nothing may be put behind it.
                self.close_batch()
                raise

    def close_batch(self) -> None:
        """Let the open batch wait."""
        if self._open is not None:
            name, descriptor = self._open
            self._waiting[name] = descriptor
            self._open = None

    def is_own(self, batch: str) -> bool:
        """Whether this journal has written the batch."""
        return batch.startswith(f"{self.id}-")

    def waiting(self) -> Sequence[str]:
        """Return the batches that wait; those that another process left become this one's, if they can be opened."""
        with _our_errors():
            ours = {*self._waiting, *([self._open[0]] if self._open else [])}
            there = self.folder.glob(f"*{_SUFFIX}") if self.folder.is_dir() else ()
            for path in there:
                if path.stem not in ours:
                    self._take_over(path)
            return sorted(self._waiting)

    def read(self, batch: str) -> Sequence[Note]:
        """Return a batch's notes."""
        with _our_errors():
            text = (self.folder / f"{batch}{_SUFFIX}").read_bytes()
        *lines, torn = text.split(b"\n")
        if torn:
            log.warning("batch %s: the last line was not written to its end and is left out", batch)
        notes: list[Note] = []
        for number, line in enumerate(lines, 1):
            try:
                notes += [_note(plain) for plain in json.loads(line)]
            except (ValueError, TypeError, RecursionError) as error:
                log.warning("batch %s: line %d cannot be read and is left out: %s", batch, number, error)
        return notes

    def drop(self, batch: str) -> None:
        """Remove a batch's file."""
        with _our_errors():
            (self.folder / f"{batch}{_SUFFIX}").unlink(missing_ok=True)
            os.close(self._waiting.pop(batch))

    def close(self) -> None:
        """Let go of all files, which stay."""
        self.close_batch()
        for descriptor in self._waiting.values():
            os.close(descriptor)
        self._waiting.clear()

    def _new_batch(self) -> tuple[str, int]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._batches += 1
        name = f"{self.id}-{self._batches}"
        new = self.folder / f"{name}{_NEW}"
        descriptor = os.open(new, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Named as a batch only when it is locked: else another process might take it for one that nobody writes.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.rename(self.folder / f"{name}{_SUFFIX}")
        except OSError:
            os.close(descriptor)
            raise
        return name, descriptor

    def _take_over(self, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # handed over by its owner just now
        except OSError as error:
            if path.stem not in self._refused:
                self._refused.add(path.stem)
                log.error("batch %s cannot be handed over: %s", path.stem, error)  # noqa: TRY400 - it says which file
            return
        self._refused.discard(path.stem)
        if _locked(descriptor):
            self._waiting[path.stem] = descriptor
        else:
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Whether a batch's file could be locked and is still to be handed over."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False  # its owner lives
    # Its owner may have handed it over since it was opened here: then this is the lock of a file that is gone.
    return os.fstat(descriptor).st_nlink > 0


def _plain(note: Note) -> Any:
    # By hand: ``dataclasses.astuple`` copies deeply, and this is written for every request.
    return (
        [getattr(note.account, name) for name in _ACCOUNT],
        note.start_ms,
        note.end_ms,
        [getattr(note.used, name) for name in USED],
    )


def _note(plain: Any) -> Note:
    account, start_ms, end_ms, used = plain
    for number in (start_ms, end_ms, *used):
        if type(number) is not int or not 0 <= number < _MOST:
            raise ValueError("a number that no note has")
    for text in account:
        if type(text) is not str:
            raise TypeError("a name that is no text")
    if start_ms > end_ms:
        raise ValueError("it ends before it begins")
    return Note(Account(*account), start_ms, end_ms, Used(*used))


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind: type[CloudfarmError] = StorageFullError if error.errno in _NO_ROOM else UnavailableError
        raise kind(f"the journal of what is used: {error}") from error
