"""Limits of keys and tenants: rates that may run into debt, budgets of a month."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudfarm.domain.tenant import Limits
from cloudfarm.errors import InvalidInputError, TooManyError
from cloudfarm.usecases.limits import MOST, Allowances, Bucket, Budget, checked_limits, month_of

MINUTE_MS = 60_000
NOW = 1_800_000_000_000


def at(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp()) * 1000


def allowances(limits: Limits = Limits(), budget: Budget | None = None, of_tenant: Budget | None = None):  # noqa: B008
    made = Allowances()
    budgets = {("kaist", "k1"): budget, ("kaist", None): of_tenant}
    made.put({"k1": limits}, {whose: each for whose, each in budgets.items() if each is not None}, NOW)
    return made


def refusal(made: Allowances, now_ms: int = NOW, tenant: str = "kaist", key_id: str = "k1"):
    with pytest.raises(TooManyError) as refused:
        made.admit(tenant, key_id, now_ms)
    return refused.value.data


def test_as_many_requests_as_the_limit_says_then_one_by_one():
    made = allowances(Limits(requests_per_minute=3))
    for _ in range(3):
        made.admit("kaist", "k1", NOW)
    told = {"limit": "requests_per_minute", "limit_value": 3, "used": 3}
    assert refusal(made) == {**told, "retry_after_s": 20}
    assert refusal(made, NOW + 19_001) == {**told, "retry_after_s": 1}
    made.admit("kaist", "k1", NOW + 20_000)
    assert refusal(made, NOW + 20_000) == {**told, "retry_after_s": 20}


def test_a_refused_request_costs_nothing():
    made = allowances(Limits(requests_per_minute=1))
    made.admit("kaist", "k1", NOW)
    for _ in range(100):
        refusal(made, NOW + 1)
    made.admit("kaist", "k1", NOW + MINUTE_MS)


def test_tokens_may_run_into_debt_which_is_made_good_first():
    made = allowances(Limits(tokens_per_minute=60))
    made.take("kaist", "k1", 59, NOW)
    made.admit("kaist", "k1", NOW)
    made.take("kaist", "k1", 121, NOW)
    # 120 too many, at one a second; then a first 60,000th.
    assert refusal(made) == {
        "limit": "tokens_per_minute",
        "limit_value": 60,
        "used": 180,
        "retry_after_s": 121,
    }
    refusal(made, NOW + 120_000)
    made.admit("kaist", "k1", NOW + 120_001)


def test_the_month_of_a_key_and_of_its_tenant():
    made = allowances(budget=Budget(100, 90), of_tenant=Budget(1000, 50))
    made.take("kaist", "k1", 9, NOW)
    made.admit("kaist", "k1", NOW)
    made.take("kaist", "k1", 20, NOW)
    assert refusal(made)["limit"] == "tokens_per_month"
    assert refusal(made)["used"] == 119
    made.admit("kaist", "k2", NOW)
    made.take("kaist", "k2", 921, NOW)
    told = refusal(made, key_id="k2")
    assert (told["limit"], told["limit_value"], told["used"]) == ("limit_tokens_per_month", 1000, 1000)
    made.admit("snu", "k3", NOW)
    assert [made.used(*whose, NOW) for whose in (("kaist", "k1"), ("kaist", None), ("snu", "k3"))] == [
        119,
        1000,
        None,
    ]


@pytest.mark.parametrize(
    ("limits", "budget", "name"),
    [
        ({"tokens_per_minute": 100}, {}, "tokens_per_minute"),
        ({}, {"budget": Budget(100, 0)}, "tokens_per_month"),
        ({}, {"of_tenant": Budget(100, 0)}, "limit_tokens_per_month"),
    ],
)
def test_what_requests_under_way_may_still_use_is_held(limits, budget, name):
    made = allowances(Limits(**limits), **budget)
    made.take("kaist", "k1", 99, NOW)
    first = made.admit("kaist", "k1", NOW, 50)
    told = {"limit": name, "limit_value": 100, "used": 99, "held": 50, "retry_after_s": 1}
    assert [refusal(made) for _ in range(3)] == [told] * 3
    with pytest.raises(TooManyError, match="held by requests under way, which may still use 50"):
        made.admit("kaist", "k1", NOW, 50)
    made.admit("snu", "k9", NOW, 50)
    made.leave(first, NOW)
    second = made.admit("kaist", "k1", NOW, 50)
    made.draw(second, 50)
    made.admit("kaist", "k1", NOW)
    made.take("kaist", "k1", 50, NOW)
    assert "held" not in refusal(made)


def test_what_is_held_is_no_more_than_what_is_not_used_yet():
    made = allowances(budget=Budget(100, 0))
    first = made.admit("kaist", "k1", NOW, 60)
    for _ in range(2):
        made.draw(first, 20)
        made.take("kaist", "k1", 20, NOW)
    second = made.admit("kaist", "k1", NOW, 60)
    assert refusal(made)["held"] == 80
    made.draw(first, 1000)  # a prompt that was longer than it seemed
    made.leave(first, NOW)
    assert made._held == {("kaist", "k1"): 60, ("kaist", None): 60}
    made.leave(second, NOW)
    assert made._held == {}


REQUESTS = st.lists(
    st.tuples(st.sampled_from(["k1", "k2"]), st.sampled_from(["admit", "use", "leave"]), st.integers(0, 300)),
    max_size=60,
)


@given(limit=st.integers(1, 500), requests=REQUESTS)
def test_however_many_are_under_way_one_of_them_uses_more_than_was_left(limit, requests):
    made = Allowances()
    made.put({"k1": Limits(tokens_per_minute=limit)}, {("kaist", None): Budget(2 * limit, 0)}, NOW)
    open_requests, used, largest = [], {"k1": 0, "k2": 0}, 0
    for key_id, what, number in requests:
        if what == "admit":
            try:
                admission = made.admit("kaist", key_id, NOW, number)
            except TooManyError:
                continue
            open_requests.append(admission)
            largest = max(largest, number)
        elif open_requests:
            admission = open_requests[number % len(open_requests)]
            tokens = admission.held if what == "leave" else min(number, admission.held)
            made.draw(admission, tokens)
            made.take("kaist", admission.key_id, tokens, NOW)
            used[admission.key_id] += tokens
            if what == "leave":
                open_requests.remove(admission)
                made.leave(admission, NOW)
    for admission in open_requests:
        made.take("kaist", admission.key_id, admission.held, NOW)
        used[admission.key_id] += admission.held
    assert used["k1"] <= max(0, limit - 1) + largest
    assert sum(used.values()) <= 2 * limit - 1 + largest


def test_a_month_ends():
    last = at(2026, 11, 30, 23, 59, 30)
    made = Allowances()
    made.put({}, {("kaist", "k1"): Budget(100, 100)}, last)
    assert refusal(made, last)["retry_after_s"] == 30
    assert refusal(made, at(2026, 11, 2))["retry_after_s"] == 86_400
    made.admit("kaist", "k1", at(2026, 12, 1))
    made.take("kaist", "k1", 100, at(2026, 12, 1))
    refusal(made, at(2026, 12, 31))


def test_other_limits_forget_nothing():
    made = allowances(Limits(requests_per_minute=2, tokens_per_minute=10))
    made.admit("kaist", "k1", NOW)
    made.admit("kaist", "k1", NOW)
    made.take("kaist", "k1", 15, NOW)
    made.put({"k1": Limits(requests_per_minute=3, tokens_per_minute=100)}, {}, NOW)
    made.admit("kaist", "k1", NOW)
    assert refusal(made)["limit"] == "requests_per_minute"
    made.put({"k1": Limits(requests_per_minute=1000, tokens_per_minute=12)}, {}, NOW)
    assert refusal(made)["used"] == 15
    made.put({"k1": Limits(requests_per_minute=1000)}, {}, NOW)
    made.admit("kaist", "k1", NOW)
    made.put({}, {}, NOW)
    for _ in range(2000):
        made.admit("kaist", "k1", NOW)


def test_a_clock_that_is_set_back_fills_nothing():
    made = allowances(Limits(requests_per_minute=1))
    made.admit("kaist", "k1", NOW)
    refusal(made, NOW - MINUTE_MS)
    refusal(made, NOW - MINUTE_MS + 59_999)
    made.admit("kaist", "k1", NOW)


@pytest.mark.parametrize("value", [0, -1, MOST + 1])
@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute", "tokens_per_month"])
def test_a_limit_that_cannot_be_kept_is_refused(name, value):
    with pytest.raises(InvalidInputError, match=name):
        checked_limits(Limits(**{name: value}))
    assert checked_limits(Limits(**{name: MOST}))


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - UTC
def test_every_instant_is_in_its_month(when):
    now_ms = int(when.timestamp() * 1000)
    first, following = (datetime.fromtimestamp(each / 1000, tz=UTC) for each in month_of(now_ms))
    assert first <= when < following
    assert (first.year, first.month, first.day, first.hour) == (when.year, when.month, 1, 0)
    assert (following.day, following.hour) == (1, 0)
    assert 28 <= (following - first).days <= 31


STEPS = st.lists(st.tuples(st.integers(0, 90_000), st.integers(0, 5000)), max_size=40)


@given(per_minute=st.integers(1, 5000), steps=STEPS)
def test_no_time_sees_more_than_its_share_and_the_last_request(per_minute, steps):
    """Requests one after another, each admitted when the bucket says so: what any span of time sees is bounded."""
    bucket = Bucket.full(per_minute, 0)
    now_ms, taken = 0, []
    for pause_ms, tokens in steps:
        now_ms += pause_ms
        wait_ms = bucket.wait_ms(now_ms, 1)
        assert (wait_ms == 0) == (bucket.level > 0)
        if wait_ms:
            # Exactly when it was told, and not a millisecond sooner.
            assert bucket.wait_ms(now_ms + wait_ms - 1, 1) == 1
            now_ms += wait_ms
            assert bucket.wait_ms(now_ms, 1) == 0
        bucket.take(tokens, now_ms)
        taken.append((now_ms, tokens))
    for first, (from_ms, _) in enumerate(taken):
        for last in range(first, len(taken)):
            until_ms, overshoot = taken[last]
            used = sum(tokens for _, tokens in taken[first : last + 1])
            minutes_worth = per_minute * (until_ms - from_ms + MINUTE_MS)
            assert used * MINUTE_MS <= minutes_worth + overshoot * MINUTE_MS
