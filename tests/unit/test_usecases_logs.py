"""Following a log over cut-off tails and archives whose beginning was not kept."""

import asyncio
from dataclasses import replace

import pytest

from cloudfarm.domain.status import JobStatus
from cloudfarm.domain.workload import attempt_line
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.usecases import logs
from cloudfarm.usecases.credentials import authenticate
from cloudfarm.usecases.logs import _Sent, follow_log


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path) as opened:
        yield opened


async def follow(door: FrontDoor, submission_id: str):
    principal = await authenticate(door.store, door.clock, door.tokens["alpha.viewer"])
    parts = door.context
    async for piece in follow_log(
        parts.store,
        parts.artifacts,
        parts.live_logs,
        principal,
        submission_id,
        pause=lambda: asyncio.sleep(0),
    ):
        yield piece


def sent(*pieces: str) -> _Sent:
    so_far = _Sent()
    so_far.rewind()
    for piece in pieces:
        so_far.fresh(piece)
    return so_far


def test_a_second_tail_repeats_nothing_however_it_is_cut_into_pieces():
    so_far = sent("abc", "def")
    so_far.rewind()
    assert [so_far.fresh(piece) for piece in ("a", "bcdef", "gh", "i")] == ["", "", "gh", "i"]
    so_far.rewind()
    assert so_far.fresh("abcdefghijk") == "jk"


@pytest.mark.parametrize(
    ("pieces", "archive", "rest"),
    [
        ((), "", ""),
        ((), "whole log", "whole log"),
        (("whole log",), "whole log", ""),
        (("whole ",), "whole log", "log"),
        (("aaa",), "aaaaa", "aa"),  # the place is known by its number, not only by its text
        (("0123456789",), "6789abc", "abc"),  # the archive's beginning was not kept
        (("0123",), "89abc", "cloudfarm: some of the log was not kept\n89abc"),
    ],
)
def test_what_of_the_archive_is_new(pieces, archive, rest, monkeypatch):
    monkeypatch.setattr(logs, "TRACE_CHARS", 4)
    assert sent(*pieces).rest_of(archive) == rest


def test_the_archive_of_a_preempted_job_has_the_earlier_attempts_in_front():
    line = attempt_line(1)
    so_far = _Sent(line)
    so_far.rewind()
    so_far.fresh("second ")
    assert so_far.rest_of(f"first\n{line}second try\n") == "try\n"
    assert _Sent(line).rest_of(f"first\n{line}second try\n") == "second try\n"


async def test_a_preempted_job_is_followed_into_its_next_attempt(door: FrontDoor, monkeypatch):
    monkeypatch.setattr(logs, "STALL_S", 0.001)
    await door.submit(submission_id="train-1")
    await door.move_job("train-1", JobStatus.RUNNING)
    door.live_logs.write("alpha.train-1", "one\n")
    following = follow(door, "train-1")
    assert await anext(following) == "one\n"
    job = await door.job("train-1")
    async with door.store.begin() as uow:
        lease = await uow.leases.get(job.lease_id)
        await uow.leases.update(replace(lease, preempted_ms=1, message="it is taken back"))
        await uow.commit()
    assert await asyncio.wait_for(anext(following), 10) == "cloudfarm: it is taken back\n"
    waits = asyncio.ensure_future(anext(following))
    await door.move_job("train-1", JobStatus.PENDING, attempt=1)
    assert await asyncio.wait_for(waits, 10) == attempt_line(1)
    assert "waits for lease" in await asyncio.wait_for(anext(following), 10)
    await door.move_job("train-1", JobStatus.RUNNING, attempt=1)
    door.live_logs.write("alpha.train-1.1", "two\n")
    while (piece := await asyncio.wait_for(anext(following), 10)).startswith("cloudfarm:"):
        continue
    assert piece == "two\n"
    log = f"one\n{attempt_line(1)}two\nbye\n"
    await door.move_job("train-1", JobStatus.SUCCEEDED, log=log, attempt=1)
    assert [piece async for piece in following] == ["bye\n"]
    assert door.live_logs.open_tails == 0


async def test_newlines_are_counted_as_the_live_log_has_them(door: FrontDoor):
    await door.submit(submission_id="train-1")
    await door.move_job("train-1", JobStatus.RUNNING)
    door.live_logs.write("alpha.train-1", "10%\n20%\n", "done\n")
    following = follow(door, "train-1")
    assert [await anext(following), await anext(following)] == ["10%\n20%\n", "done\n"]
    door.live_logs.close("alpha.train-1")
    await door.move_job("train-1", JobStatus.SUCCEEDED, log="10%\r20%\r\ndone\nbye\n")
    assert [piece async for piece in following] == ["bye\n"]


async def test_a_live_log_that_closes_early_is_not_read_again_and_again(door: FrontDoor):
    """Ray closes the log of a killed node in good order, seconds before the steward notices."""
    await door.submit(submission_id="train-1")
    await door.move_job("train-1", JobStatus.RUNNING)
    door.live_logs.write("alpha.train-1", "one\n")
    door.live_logs.close("alpha.train-1")
    following = follow(door, "train-1")
    assert await anext(following) == "one\n"
    rest = asyncio.ensure_future(anext(following))
    for _ in range(50):
        await asyncio.sleep(0)
    assert door.live_logs.tails == 1
    await door.move_job("train-1", JobStatus.FAILED, log="one\ntwo\n")
    assert await rest == "two\n"


async def test_a_live_log_that_falls_silent_for_good_ends_with_the_job(door: FrontDoor, monkeypatch):
    """A host that loses its power closes no connection."""
    monkeypatch.setattr(logs, "STALL_S", 0.001)
    await door.submit(submission_id="train-1")
    await door.move_job("train-1", JobStatus.RUNNING)
    door.live_logs.write("alpha.train-1", "one\n")
    following = follow(door, "train-1")
    assert await anext(following) == "one\n"
    rest = asyncio.ensure_future(anext(following, "the end"))
    await door.move_job("train-1", JobStatus.FAILED)
    assert await asyncio.wait_for(rest, timeout=10) == "the end"
    assert door.live_logs.open_tails == 0


async def test_a_consumer_that_stops_frees_the_tail_at_once(door: FrontDoor):
    await door.submit(submission_id="train-1")
    await door.move_job("train-1", JobStatus.RUNNING)
    door.live_logs.write("alpha.train-1", "one\n")
    principal = await authenticate(door.store, door.clock, door.tokens["alpha.viewer"])
    parts = door.context
    following = follow_log(
        parts.store, parts.artifacts, parts.live_logs, principal, "train-1", pause=lambda: asyncio.sleep(0)
    )
    await anext(following)
    assert door.live_logs.open_tails == 1
    await following.aclose()
    assert door.live_logs.open_tails == 0
