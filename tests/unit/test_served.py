"""How GPU time is divided among requests, and how notes are summed up."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from cloudfarm.domain.served import MINUTE_MS, Account, Note, Shares, Used, by_minute

ACCOUNT = Account("kaist", "k1", "s1", "snu", "chat", "", "chat")
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 5000), st.sampled_from(["begin", "begin", "end", "look", "change"]), st.integers(0, 99)
    ),
    max_size=60,
)


@given(milli_gpus=st.lists(st.integers(0, 8000), min_size=1), events=EVENTS)
def test_shares_add_up_to_the_busy_time_at_every_moment(milli_gpus, events):
    """Whatever begins, ends and changes: nothing is lost, nothing is given twice, and nobody pays less than nothing."""
    shares = Shares(milli_gpus[0], 0)
    now_ms, busy, running, ended = 0, 0, [], []
    gpus, most = milli_gpus[0], 1
    for step, (pause_ms, what, which) in enumerate(events):
        now_ms += pause_ms
        busy += gpus * pause_ms if running else 0
        if what == "begin":
            gpus = milli_gpus[step % len(milli_gpus)]
            running.append(shares.begin(now_ms, gpus))
        elif what == "change":
            gpus = milli_gpus[which % len(milli_gpus)]
            shares.change(now_ms, gpus)
        elif what == "end" and running:
            began = running.pop(which % len(running))
            ended.append(shares.end(now_ms) - began)
        clock = shares.go_on(now_ms)
        most = max(most, len(running))
        given_so_far = [*ended, *(clock - began for began in running)]
        assert all(each >= 0 for each in given_so_far)
        assert sum(given_so_far) + shares.rest_milli_gpu_ms == busy
        assert 0 <= shares.rest_milli_gpu_ms < most
        assert shares.under_way == len(running)


@given(
    milli_gpus=st.integers(1, 8000),
    begins=st.lists(st.integers(0, 1000), min_size=1, max_size=12),
    length_ms=st.integers(0, 10_000),
    data=st.data(),
)
def test_who_leaves_first_at_one_instant_changes_nothing(milli_gpus, begins, length_ms, data):
    begins = sorted(begins)
    end_ms = begins[-1] + length_ms

    def played(order):
        shares = Shares(milli_gpus, 0)
        began = [shares.begin(at_ms, milli_gpus) for at_ms in begins]
        cost = {index: shares.end(end_ms) - began[index] for index in order}
        return [cost[index] for index in sorted(cost)], shares.rest_milli_gpu_ms

    every = list(range(len(begins)))
    assert played(data.draw(st.permutations(every))) == played(every)


@given(
    milli_gpus=st.integers(1, 8000),
    spans=st.lists(st.tuples(st.integers(0, 500), st.integers(1, 500)), max_size=10),
)
@example(1, [(25, 24)] * 4 + [(25, 25)])
def test_a_share_is_what_the_definition_says(milli_gpus, spans):
    """Against the definition itself, instant by instant, but for what whole numbers cannot say.

    That is less than one for each event, and for each request that leaves: those that stay get its part of the rest.
    """
    shares = Shares(milli_gpus, 0)
    instants = sorted({at for begin, length in spans for at in (begin, begin + length)})
    began, cost = {}, {}
    for now_ms in instants:
        for index, (begin, length) in enumerate(spans):
            if begin + length == now_ms:
                cost[index] = shares.end(now_ms) - began[index]
        for index, (begin, _) in enumerate(spans):
            if begin == now_ms:
                began[index] = shares.begin(now_ms, milli_gpus)
    for index, (begin, length) in enumerate(spans):
        wanted = Fraction(0)
        for from_ms, until_ms in pairwise(instants):
            if begin <= from_ms and until_ms <= begin + length:
                others = sum(b <= from_ms and until_ms <= b + n for b, n in spans)
                wanted += Fraction(milli_gpus * (until_ms - from_ms), others)
        assert abs(cost[index] - wanted) < len(instants) + len(spans)


def test_a_clock_that_is_set_back_stands_still():
    shares = Shares(500, 1000)
    shares.begin(1000, 500)
    assert shares.go_on(2000) == 500_000
    assert shares.go_on(1500) == 500_000
    assert shares.end(2100) == 550_000


NOTES = st.lists(
    st.builds(
        lambda account, start_ms, length_ms, used: Note(account, start_ms, start_ms + length_ms, used),
        st.sampled_from([ACCOUNT, replace(ACCOUNT, model="chat:mine")]),
        st.integers(0, 10 * MINUTE_MS),
        st.integers(0, 3 * MINUTE_MS),
        st.builds(Used, *(st.integers(0, 1000) for _ in range(5))),
    )
)


@given(NOTES)
def test_sums_by_minute_lose_nothing_and_are_of_one_minute(notes):
    rows = by_minute(notes)
    for account in {note.account for note in notes}:
        assert total(rows, account) == total(notes, account)
    assert len({(row.account, row.end_ms // MINUTE_MS) for row in rows}) == len(rows)
    for row in rows:
        assert row.start_ms <= row.end_ms
        assert row.start_ms // MINUTE_MS == row.end_ms // MINUTE_MS
    assert by_minute(rows) == rows


def total(notes, account) -> Used:
    return sum((note.used for note in notes if note.account == account), Used())
