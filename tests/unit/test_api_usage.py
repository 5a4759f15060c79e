"""Keys' limits at the front door, and what its statements say of calls."""

from dataclasses import astuple

import pytest

from cloudfarm.domain.served import Used
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_openai_error, assert_problem
from cloudfarm.usecases.routes import Route

ZERO = dict.fromkeys(("requests", "prompt_tokens", "completion_tokens", "busy_ms", "milli_gpu_ms"), 0)


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path) as opened:
        await opened.serve("talk")
        yield opened


async def chat(door: FrontDoor, who: str, **fields):
    body = {"model": "talk", "messages": [{"role": "user", "content": "wind from the sea"}], **fields}
    return await door.call(who, "POST", "/v1/chat/completions", json=body)


async def limit(door: FrontDoor, **limits):
    answer = await door.call("alpha.admin", "PATCH", "/v1/keys/c-alpha-key", json=limits)
    assert answer.status_code == 200, answer.text


async def served(door: FrontDoor, who: str, **params):
    await door.meter.step()
    return (await door.call(who, "GET", "/v1/usage", params=params)).json()["served"]


async def call_of_another_tenant(door: FrontDoor):
    """As through a service that the operator has opened to all tenants."""
    async with door.store.begin(write=False) as uow:
        (service,) = await uow.services.list(tenant="alpha")
    route = Route(
        tenant="beta",
        key_id="c-beta-key",
        service=service,
        app_name="alpha.talk.1",
        milli_gpus=service.milli_gpus,
        model="talk:secret",
        kind="causal-lm",
    )
    use = door.meter.begin(route, door.meter.admit(route))
    use.count(prompt_tokens=100, completion_tokens=200)
    door.clock.advance(2000)
    use.end()


async def test_a_key_is_refused_beyond_its_limit_and_told_why(door: FrontDoor):
    await limit(door, requests_per_minute=2)
    assert [(await chat(door, "alpha.key")).status_code for _ in range(3)] == [200, 200, 429]
    refused = await chat(door, "alpha.key")
    error = assert_openai_error(refused, 429, "rate_limit_exceeded")
    assert (error["limit"], error["limit_value"], error["used"]) == ("requests_per_minute", 2, 2)
    assert refused.headers["retry-after"] == "30"
    assert (await chat(door, "alpha.member")).status_code == 200, (
        "another of the tenant has a limit of its own"
    )
    door.clock.advance(30_000)
    assert (await chat(door, "alpha.key")).status_code == 200


async def test_a_stream_is_refused_before_it_begins(door: FrontDoor):
    await limit(door, tokens_per_month=1)
    assert (await chat(door, "alpha.key", stream=True)).status_code == 200
    error = assert_openai_error(await chat(door, "alpha.key", stream=True), 429, "rate_limit_exceeded")
    assert (error["limit"], error["used"]) == ("tokens_per_month", 9)


async def test_the_budget_of_a_tenant_holds_for_all_its_callers(door: FrontDoor):
    await door.call("operator", "PATCH", "/v1/tenants/alpha", json={"limit_tokens_per_month": 9})
    assert (await chat(door, "alpha.key")).status_code == 200
    error = assert_openai_error(await chat(door, "alpha.member"), 429, "rate_limit_exceeded")
    assert error["limit"] == "limit_tokens_per_month"
    await door.call("operator", "PATCH", "/v1/tenants/alpha", json={"limit_tokens_per_month": None})
    assert (await chat(door, "alpha.member")).status_code == 200


async def test_a_key_issued_with_a_limit_has_it_at_once(door: FrontDoor):
    made = await door.call("alpha.admin", "POST", "/v1/keys", json={"user": "bot", "requests_per_minute": 1})
    door.tokens["new"] = made.json()["secret"]
    assert [(await chat(door, "new")).status_code for _ in range(2)] == [200, 429]


async def test_calls_of_other_kinds_count_as_requests(door: FrontDoor):
    await door.serve("gale", "windpower-forecaster")
    await limit(door, requests_per_minute=1)
    answers = [await door.call("alpha.key", "POST", "/v1/services/gale/predict", json={}) for _ in range(2)]
    assert answers[0].status_code == 200
    problem = assert_problem(answers[1], 429, "too_many")
    assert (problem["limit"], answers[1].headers["retry-after"]) == ("requests_per_minute", "60")
    found = await served(door, "alpha.viewer")
    assert found["by_service"] == {"alpha/gale": {**ZERO, "requests": 1}}


async def test_the_statement_of_calls(door: FrontDoor):
    empty = await served(door, "alpha.viewer")
    assert empty == {
        "total": ZERO,
        "by_day": {},
        "by_tenant": {},
        "by_key": {},
        "by_service": {},
        "by_model": {},
        "lines": [],
    }
    for who in ("alpha.key", "alpha.key", "alpha.member"):
        assert (await chat(door, who)).status_code == 200
    await call_of_another_tenant(door)
    found = await served(door, "alpha.viewer")
    (day,) = found["by_day"]
    own = {"day": day, "tenant": "alpha", "service": "alpha/talk", "model": "talk", "project": ""}
    times = {"busy_ms": 0, "milli_gpu_ms": 0}
    assert found["lines"] == [
        {**own, "key": "c-alpha-key", "requests": 2, "prompt_tokens": 8, "completion_tokens": 10, **times},
        {**own, "key": "c-alpha-member", "requests": 1, "prompt_tokens": 4, "completion_tokens": 5, **times},
        {
            **own,
            "tenant": "beta",
            "key": "",
            "model": "",
            "requests": 1,
            "prompt_tokens": 100,
            "completion_tokens": 200,
            "busy_ms": 2000,
            "milli_gpu_ms": 500_000,
        },
    ]
    assert found["total"] == {
        "requests": 4,
        "prompt_tokens": 112,
        "completion_tokens": 215,
        "busy_ms": 2000,
        "milli_gpu_ms": 500_000,
    }
    for name in ("by_day", "by_tenant", "by_key", "by_service", "by_model"):
        parts = [Used(**each) for each in found[name].values()]
        assert astuple(sum(parts, Used())) == tuple(found["total"].values()), name
    assert found["by_tenant"]["beta"]["completion_tokens"] == 200
    assert set(found["by_key"]) == {"c-alpha-key", "c-alpha-member", ""}


async def test_a_caller_sees_its_own_calls_of_anothers_service_and_nothing_else(door: FrontDoor):
    assert (await chat(door, "alpha.key")).status_code == 200
    await call_of_another_tenant(door)
    found = await served(door, "beta.viewer")
    (line,) = found["lines"]
    assert (line["tenant"], line["key"], line["model"]) == ("beta", "c-beta-key", "talk:secret")
    assert (line["service"], line["project"]) == ("farm/talk", "")
    assert "alpha" not in str(found)
    every = await served(door, "operator")
    assert set(every["by_service"]) == {"alpha/talk"}
    assert [each["key"] for each in every["lines"]] == ["c-alpha-key", "c-beta-key"]
    assert await served(door, "operator", tenant="beta") == found


async def test_projects_are_seen_by_the_services_own_tenant_only(door: FrontDoor):
    await door.model("gust", kind="windpower-forecaster")
    await door.call("alpha.member", "POST", "/v1/services", json={"model": "gust", "project": "secret"})
    async with door.store.begin(write=False) as uow:
        service = await uow.services.find("alpha", "gust")
    for tenant in ("alpha", "beta"):
        names = {"app_name": "", "model": "gust", "kind": "windpower-forecaster", "milli_gpus": 0}
        route = Route(tenant=tenant, key_id=f"c-{tenant}-key", service=service, **names)
        door.meter.begin(route, door.meter.admit(route)).end()
    assert {each["project"] for each in (await served(door, "alpha.viewer"))["lines"]} == {"secret"}
    assert {each["project"] for each in (await served(door, "beta.viewer"))["lines"]} == {""}


async def test_days_of_calls_are_cut_as_those_of_leases(door: FrontDoor):
    days = []
    for _ in range(3):
        await chat(door, "alpha.key")
        await door.meter.step()
        days += [day for day in (await served(door, "alpha.viewer"))["by_day"] if day not in days]
        door.clock.advance(86_400_000)
    middle = await served(door, "alpha.viewer", **{"from": days[1], "to": days[1]})
    assert set(middle["by_day"]) == {days[1]}
    assert middle["total"]["requests"] == 1
    assert (await served(door, "alpha.viewer", to=days[1]))["total"]["requests"] == 2
    assert (await served(door, "alpha.viewer", lease="l1"))["lines"] == []
