"""What a process started ends with it, also when it is killed."""

import subprocess
import sys

import psutil

STARTS = """
import subprocess, sys
from cloudfarm.inference.keeper import Keeper
sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
gone = subprocess.Popen(["true"])
gone.wait()
keeper = Keeper([*(each.pid for each in sleepers), gone.pid])
print(*(each.pid for each in sleepers), flush=True)
if sys.argv[1:] == ["close"]:
    keeper.close()
    print(*(each.wait() for each in sleepers), flush=True)
sys.stdin.read()
"""


def start(*args):
    process = subprocess.Popen(
        [sys.executable, "-c", STARTS, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]


def test_a_killed_process_leaves_nothing_it_kept():
    process, sleepers = start()
    assert len(sleepers) == 2
    assert all(each.status() != psutil.STATUS_ZOMBIE for each in sleepers)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(sleepers, timeout=20)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []


def test_closing_ends_them_at_once():
    process, _ = start("close")
    out, _ = process.communicate()
    assert out.split() == ["-9", "-9"]
