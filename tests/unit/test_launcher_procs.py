from pathlib import Path

import pytest

from cloudfarm.raylayer.launcher import procs, state
from cloudfarm.raylayer.launcher.procs import Proc

STAT = "{pid} ({comm}) {state} {ppid} 7 7 0 -1 4194560 1 2 0 0 5 6 1 2 20 0 1 0 {start} 1000 20 99"


def add(root: Path, pid: int, ppid: int = 1, comm: str = "x", st: str = "S", **files: bytes) -> None:
    directory = root / str(pid)
    directory.mkdir()
    stat = STAT.format(pid=pid, ppid=ppid, comm=comm, state=st, start=pid * 100)
    (directory / "stat").write_text(stat)
    for name, content in files.items():
        (directory / name).write_bytes(content)


@pytest.mark.parametrize("comm", ["raylet", "a b", "a) b", "((", ") R 1 1 ("])
def test_a_stat_line_is_read_whatever_the_command_is_called(comm: str) -> None:
    line = STAT.format(pid=42, ppid=17, comm=comm, state="S", start=12345)
    assert procs.parse_stat(line) == Proc(42, 17, "S", comm, 12345)


def test_the_snapshot_leaves_zombies_and_files_out(tmp_path: Path) -> None:
    add(tmp_path, 10)
    add(tmp_path, 11, st="Z")
    (tmp_path / "12").mkdir()  # gone between the listing and the reading
    (tmp_path / "uptime").touch()
    assert set(procs.snapshot(tmp_path)) == {10}


def test_markers_are_read_and_an_overwritten_environment_is_empty(tmp_path: Path) -> None:
    add(tmp_path, 10, environ=b"A=1\0CLOUDFARM_NODE=l7k2-0\0B=x=y\0", cmdline=b"python\0-u\0main.py\0")
    add(tmp_path, 11, environ=b"\0\0\0\0", cmdline=b"cloudfarm-node l7k2-0 1f3a9c2e\0\0\0\0")
    assert procs.environ(10, tmp_path) == {"A": "1", "CLOUDFARM_NODE": "l7k2-0", "B": "x=y"}
    assert procs.environ(11, tmp_path) == {}
    assert procs.environ(99, tmp_path) == {}
    assert procs.title(10, tmp_path) == "python -u main.py"
    assert procs.title(11, tmp_path) == state.init_title("l7k2-0", "1f3a9c2e")
    assert procs.title(99, tmp_path) == ""


def test_the_pid_within_a_namespace_is_the_innermost(tmp_path: Path) -> None:
    add(tmp_path, 10, status=b"Name:\tx\nNSpid:\t4711\t10\t3\nThreads:\t1\n")
    assert procs.pid_within(10, tmp_path) == 3
    assert procs.pid_within(99, tmp_path) is None


def test_descendants_stop_at_another_node() -> None:
    pairs = {2: 1, 3: 2, 4: 3, 5: 2, 6: 5, 7: 1}
    processes = {pid: Proc(pid, ppid, "S", "x", 0) for pid, ppid in pairs.items()}
    assert procs.descendants([2], processes) == {2, 3, 4, 5, 6}
    assert procs.descendants([2], processes, frozenset({5})) == {2, 3, 4}
    assert procs.descendants([4, 99], processes) == {4}


def test_a_pid_that_changed_hands_is_not_running() -> None:
    me = procs.read_proc(procs.os.getpid())
    assert me is not None
    assert procs.is_running(me.pid, me.start_ticks)
    assert not procs.is_running(me.pid, me.start_ticks + 1)
    assert procs.open_pidfd(Proc(me.pid, 1, "S", "x", me.start_ticks + 1)) is None


def test_files_are_mirrored_and_read_from_the_first_home_that_has_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    files = state.NodeFiles(tmp_path / "a", tmp_path / "b")
    files.write(state.STATUS, {"phase": "up"})
    (tmp_path / "a" / state.STATUS).unlink()
    assert files.read(state.STATUS) == {"phase": "up"}
    (tmp_path / "b" / state.STATUS).write_text('{"phase": "u')  # the machine crashed
    assert files.read(state.STATUS) is None


def test_a_lock_is_held_between_openers_and_given_back(tmp_path: Path) -> None:
    where = state.StateDir(tmp_path)
    with where.lock("node-x") as first, where.lock("node-x", wait=False) as second:
        assert (first, second) == (True, False)
    with where.lock("node-x", wait=False) as third:
        assert third


def test_two_state_directories_are_two_farms(tmp_path: Path) -> None:
    assert state.StateDir(tmp_path / "a").farm != state.StateDir(tmp_path / "b").farm
