"""What every journal must do: see :class:`cloudfarm.ports.UsageJournal`; and what only one of files can do."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloudfarm.domain.served import Account, Note, Used
from cloudfarm.errors import StorageFullError, UnavailableError
from cloudfarm.journal import FileJournal
from cloudfarm.testing.memory_journal import JournalFolder, MemoryJournal

ACCOUNT = Account("kaist", "k1", "s1", "snu", "chat", "", "chat:바람\n\ud800")


def note(number: int) -> Note:
    return Note(ACCOUNT, 1000, 1000 + number, Used(1, number, 2**52, 3, 4))


@pytest.fixture(params=["memory", "file"])
def opened(request, tmp_path):
    """Opens journals in one and the same place."""
    folder = JournalFolder()
    return lambda: MemoryJournal(folder) if request.param == "memory" else FileJournal(tmp_path / "usage")


def everything(journal):
    return [note for batch in journal.waiting() for note in journal.read(batch)]


def test_notes_wait_once_their_batch_is_closed(opened):
    journal = opened()
    assert journal.waiting() == []
    journal.close_batch()
    assert journal.waiting() == []
    journal.append([note(1), note(2)])
    journal.append([note(3)])
    assert journal.waiting() == []
    journal.close_batch()
    (batch,) = journal.waiting()
    assert journal.read(batch) == journal.read(batch) == [note(1), note(2), note(3)]
    assert journal.is_own(batch)


def test_a_batch_that_waits_takes_no_more_notes(opened):
    journal = opened()
    journal.append([note(1)])
    journal.close_batch()
    journal.append([note(2)])
    (first,) = journal.waiting()
    journal.close_batch()
    assert len(journal.waiting()) == 2
    assert journal.read(first) == [note(1)]
    journal.drop(first)
    assert everything(journal) == [note(2)]


def test_what_is_dropped_is_gone_for_all(opened):
    journal = opened()
    journal.append([note(1)])
    journal.close_batch()
    journal.drop(*journal.waiting())
    assert journal.waiting() == []
    journal.close()
    assert opened().waiting() == []


def test_what_a_journal_leaves_waits_for_the_next(opened):
    journal = opened()
    journal.append([note(1)])
    journal.close_batch()
    journal.append([note(2)])
    journal.close()
    after = opened()
    assert len(after.waiting()) == 2
    assert not any(after.is_own(batch) for batch in after.waiting())
    assert sorted(everything(after), key=lambda each: each.end_ms) == [note(1), note(2)]


def test_nobody_sees_what_another_that_lives_has_written(opened):
    old, new = opened(), opened()
    old.append([note(1)])
    old.close_batch()
    old.append([note(2)])
    assert new.waiting() == []
    new.append([note(3)])
    new.close_batch()
    assert everything(new) == [note(3)]
    assert everything(old) == [note(1)]
    old.close()
    assert len(new.waiting()) == 3


CHILD = """
import sys
from pathlib import Path
from cloudfarm.domain.served import Account, Note, Used
from cloudfarm.journal import FileJournal

journal = FileJournal(Path(sys.argv[1]))
account = Account("kaist", "k1", "s1", "snu", "chat", "", "chat")
for number in range(10**9):
    journal.append([Note(account, 0, number, Used(requests=1))])
    if number % 7 == 0:
        journal.close_batch()
    print(number, flush=True)
"""


def test_a_killed_process_leaves_all_that_it_has_noted(tmp_path):
    with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        said = [int(child.stdout.readline()) for _ in range(40)]
        assert FileJournal(tmp_path).waiting() == []
        os.kill(child.pid, signal.SIGKILL)
        said += [int(line) for line in child.stdout if line.endswith(b"\n")]
    found = {each.end_ms for each in everything(FileJournal(tmp_path))}
    assert set(said) <= found
    assert found <= {*said, said[-1] + 1}


def written(folder: Path) -> Path:
    journal = FileJournal(folder)
    journal.append([note(1)])
    journal.append([note(2)])
    journal.close()
    (path,) = folder.glob("*.jsonl")
    return path


def test_a_torn_line_is_left_out_wherever_it_ends(tmp_path, caplog):
    path = written(tmp_path)
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    for length in range(second, len(whole) + 1):
        path.write_bytes(whole[:length])
        caplog.clear()
        journal = FileJournal(tmp_path)
        assert everything(journal) == ([note(1), note(2)] if length == len(whole) else [note(1)])
        assert ("not written to its end" in caplog.text) == (second < length < len(whole))
        journal.close()


@pytest.mark.parametrize(
    "line",
    [
        b"\0\0\0\0",
        b"5",
        b"[[1]]",
        b'["x"]',
        b"[" * 100_000,
        b"\xff\xfe",
        json.dumps([[[*["x"] * 7], 5, 4, [1, 1, 1, 1, 1]]]).encode(),
        json.dumps([[[*["x"] * 7], 1, 4, [1, -1, 1, 1, 1]]]).encode(),
        json.dumps([[[*["x"] * 7], 1, 4, [1, 2**53, 1, 1, 1]]]).encode(),
        json.dumps([[[*["x"] * 7], 1, 4, [1, 1.5, 1, 1, 1]]]).encode(),
        json.dumps([[[*["x"] * 6, 7], 1, 4, [1, 1, 1, 1, 1]]]).encode(),
    ],
)
def test_a_line_that_is_no_note_is_left_out(tmp_path, line, caplog):
    path = written(tmp_path)
    first, second, _ = path.read_bytes().split(b"\n")
    path.write_bytes(first + b"\n" + line + b"\n" + second + b"\n")
    assert everything(FileJournal(tmp_path)) == [note(1), note(2)]
    assert "line 2 cannot be read" in caplog.text


def test_a_full_disk_refuses_and_keeps_what_is_there(tmp_path):
    """The limit of a file's size stands for the disk: it, too, cuts a line in the middle."""
    journal = FileJournal(tmp_path)
    journal.append([note(1)])
    size = next(tmp_path.glob("*.jsonl")).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
        with pytest.raises(StorageFullError):
            journal.append([note(2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    journal.append([note(2)])
    journal.close_batch()
    found = everything(journal)
    assert sorted(found, key=lambda each: each.end_ms) == [note(1), note(2)]


def test_a_folder_that_cannot_be_is_no_crash(tmp_path):
    (tmp_path / "file").write_text("")
    journal = FileJournal(tmp_path / "file" / "usage")
    with pytest.raises(UnavailableError):
        journal.append([note(1)])
    assert journal.waiting() == []


def test_a_file_that_cannot_be_opened_stops_no_other(tmp_path, caplog):
    (tmp_path / "theirs-1.jsonl").symlink_to("theirs-1.jsonl")  # stands for one that is not ours to read
    journal = FileJournal(tmp_path)
    journal.append([note(1)])
    journal.close_batch()
    assert everything(journal) == everything(journal) == [note(1)]
    assert caplog.text.count("theirs-1 cannot be handed over") == 1


def test_a_file_that_its_owner_drops_meanwhile_is_not_taken_over(tmp_path, monkeypatch):
    owner, other = FileJournal(tmp_path), FileJournal(tmp_path)
    owner.append([note(1)])
    owner.close_batch()
    opening = os.open

    def opened_then_dropped(path, flags, mode=0o777):
        descriptor = opening(path, flags, mode)
        owner.drop(*owner.waiting())
        return descriptor

    before = open_descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", opened_then_dropped)
        assert other.waiting() == []
    assert open_descriptors() == before - 1


def test_files_are_for_the_farm_only(tmp_path):
    path = written(tmp_path / "usage")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_descriptors_are_given_back(tmp_path):
    before = open_descriptors()
    for _ in range(20):
        journal, other = FileJournal(tmp_path), FileJournal(tmp_path)
        journal.append([note(1)])
        assert other.waiting() == []
        journal.close_batch()
        journal.drop(*journal.waiting())
        journal.append([note(2)])
        journal.close()
        for batch in other.waiting():
            other.drop(batch)
        other.close()
    assert open_descriptors() == before
    assert list(tmp_path.iterdir()) == []
