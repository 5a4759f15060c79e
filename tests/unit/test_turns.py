"""Requests to an engine wait until there is room for them."""

from dataclasses import dataclass

from cloudfarm.inference.turns import MAX_TURNS, Turns


@dataclass
class Asked:
    tokens: int
    cancelled: bool = False


def names(turns):
    return [each.tokens for each in turns.running]


def turns_of(room, *tokens):
    turns = Turns(room)
    turns.waiting.extend(map(Asked, tokens))
    turns.begin()
    return turns


def test_requests_wait_until_they_fit_beside_those_that_run():
    turns = turns_of(10, 4, 6, 1)
    assert names(turns) == [4, 6]
    turns.running.popleft()
    turns.begin()
    assert names(turns) == [6, 1]
    assert len(turns) == 2


def test_a_large_one_is_not_passed_by_small_ones():
    turns = turns_of(10, 4, 7, 1)
    assert names(turns) == [4]
    turns.running.popleft()
    turns.begin()
    assert names(turns) == [7, 1]


def test_those_that_were_left_take_no_room():
    turns = turns_of(10, 8, 7, 7, 2)
    for each in list(turns.waiting)[:2]:
        each.cancelled = True
    turns.begin()
    assert names(turns) == [8, 2]


def test_there_are_not_too_many_turns():
    assert len(turns_of(1000, *[1] * 20).running) == MAX_TURNS
