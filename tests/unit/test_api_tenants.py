"""Tenants, tokens, keys and sessions."""

import pytest

from cloudfarm.domain.tenant import hash_secret
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_problem

HOUR_MS = 3_600_000


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path) as opened:
        yield opened


async def status_with(door: FrontDoor, secret: str, path: str = "/v1/leases") -> int:
    async with door.client(None, Authorization=f"Bearer {secret}") as client:
        return (await client.get(path)).status_code


async def test_whoami(door: FrontDoor):
    assert (await door.call("alpha.admin", "GET", "/v1/whoami")).json() == {
        "tenant": "alpha",
        "user": "admin-of-alpha",
        "role": "admin",
        "token": "c-alpha-admin",
    }
    assert (await door.call("operator", "GET", "/v1/whoami")).json()["tenant"] is None


async def test_create_change_and_close_a_tenant(door: FrontDoor):
    body = {"id": "gamma", "title": "감마 연구소", "limit_gpus": "2.5"}
    made = await door.call("operator", "POST", "/v1/tenants", json=body)
    assert made.status_code == 201
    assert (made.json()["limit_milli_gpus"], made.json()["title"]) == (2500, "감마 연구소")
    assert_problem(await door.call("operator", "POST", "/v1/tenants", json=body), 409, "already_exists")
    changed = await door.call("operator", "PATCH", "/v1/tenants/gamma", json={"limit_gpus": 1})
    assert (changed.json()["limit_milli_gpus"], changed.json()["title"]) == (1000, "감마 연구소")
    listed = await door.call("operator", "GET", "/v1/tenants")
    assert [each["id"] for each in listed.json()] == ["alpha", "beta", "gamma"]


async def test_a_closed_tenants_tokens_stop_working(door: FrontDoor):
    lease = await door.lease()
    assert_problem(
        await door.call("operator", "PATCH", "/v1/tenants/alpha", json={"closed": True}), 409, "conflict"
    )
    await door.start_lease(lease["id"])
    await door.end_lease(lease["id"])
    assert (await door.call("operator", "PATCH", "/v1/tenants/alpha", json={"closed": True})).json()["closed"]
    assert_problem(await door.call("alpha.viewer", "GET", "/v1/leases"), 401, "unauthenticated")
    await door.call("operator", "PATCH", "/v1/tenants/alpha", json={"closed": False})
    assert (await door.call("alpha.viewer", "GET", "/v1/leases")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"id": ""},
        {"id": "A"},
        {"id": "-x"},
        {"id": "x" * 33},
        {"id": "a\u0000b"},
        {"id": "gamma", "title": "x" * 201},
        {"id": "gamma", "title": "line\nbreak"},
        {"id": "gamma", "limit_gpus": -1},
        {"id": "gamma", "limit_gpus": "0.0001"},
        {"id": "gamma", "limit_gpus": "nan"},
        {"id": "gamma", "limit_gpus": True},
        {"id": "gamma", "limit_gpus": 1e12},
        {"id": 5},
    ],
)
async def test_bad_tenants(door: FrontDoor, body):
    assert_problem(await door.call("operator", "POST", "/v1/tenants", json=body), 422, "invalid_input")
    assert len((await door.call("operator", "GET", "/v1/tenants")).json()) == 2


async def test_a_token_is_shown_once_and_stored_hashed(door: FrontDoor):
    made = await door.call("alpha.admin", "POST", "/v1/tokens", json={"user": "eve", "role": "member"})
    assert made.status_code == 201
    secret = made.json()["secret"]
    assert secret.startswith("cf_")
    assert len(secret) == len("cf_") + 43  # 256 bits in base 64
    async with door.store.begin(write=False) as uow:
        stored = await uow.credentials.get(made.json()["id"])
    assert stored.secret_sha256 == hash_secret(secret)
    assert secret not in repr(stored)
    listed = (await door.call("alpha.admin", "GET", "/v1/tokens")).json()
    assert "eve" in {each["user"] for each in listed}
    assert all(each["secret"] is None for each in listed)
    assert await status_with(door, secret) == 200


async def test_a_token_expires(door: FrontDoor):
    made = await door.call(
        "alpha.admin", "POST", "/v1/tokens", json={"user": "eve", "role": "viewer", "hours": 2}
    )
    secret = made.json()["secret"]
    door.clock.advance(2 * HOUR_MS - 1)
    assert await status_with(door, secret) == 200
    door.clock.advance(1)
    assert await status_with(door, secret) == 401


async def test_a_token_is_revoked_at_once_and_for_good(door: FrontDoor):
    made = (
        await door.call("alpha.admin", "POST", "/v1/tokens", json={"user": "eve", "role": "viewer"})
    ).json()
    for _ in range(2):
        assert (await door.call("alpha.admin", "DELETE", f"/v1/tokens/{made['id']}")).status_code == 204
    assert await status_with(door, made["secret"]) == 401
    events = (await door.call("alpha.admin", "GET", "/v1/events", params={"subject": made["id"]})).json()
    assert [event["kind"] for event in events] == ["token.revoked", "token.issued"]


async def test_unknown_expired_and_revoked_are_answered_alike(door: FrontDoor):
    async with door.client(None, Authorization="Bearer cf_unknown") as client:
        unknown = await client.get("/v1/leases")
    await door.call("alpha.admin", "DELETE", "/v1/tokens/c-alpha-viewer")
    assert (await door.call("alpha.viewer", "GET", "/v1/leases")).json() == unknown.json()


async def test_who_may_issue_what(door: FrontDoor):
    async def issue(who: str, **body) -> int:
        return (await door.call(who, "POST", "/v1/tokens", json={"user": "eve", **body})).status_code

    assert await issue("alpha.admin", role="admin") == 201
    assert await issue("alpha.admin", role="operator") == 422
    assert await issue("operator", role="operator") == 201
    assert await issue("operator", role="member", tenant="alpha") == 201
    assert await issue("operator", role="operator", tenant="alpha") == 422
    assert await issue("operator", role="member") == 422
    assert await issue("operator", role="member", tenant="nobody") == 404
    assert await issue("alpha.member", role="viewer") == 403


async def test_keys_and_tokens_are_apart(door: FrontDoor):
    made = await door.call(
        "alpha.admin", "POST", "/v1/keys", json={"user": "robot", "services": ["wind", "wind"]}
    )
    assert made.json()["secret"].startswith("cfk_")
    assert made.json()["services"] == ["wind"]
    key_id = made.json()["id"]
    assert_problem(await door.call("alpha.admin", "DELETE", f"/v1/tokens/{key_id}"), 404, "not_found")
    assert (await door.call("alpha.admin", "DELETE", f"/v1/keys/{key_id}")).status_code == 204
    assert key_id not in {each["id"] for each in (await door.call("alpha.admin", "GET", "/v1/tokens")).json()}
    assert_problem(
        await door.call("operator", "POST", "/v1/keys", json={"user": "robot"}), 422, "invalid_input"
    )
    body = {"user": "robot", "services": ["../x"]}
    assert_problem(await door.call("alpha.admin", "POST", "/v1/keys", json=body), 422, "invalid_input")


LIMITS = ("requests_per_minute", "tokens_per_minute", "tokens_per_month")


async def test_a_key_has_limits_which_can_be_changed(door: FrontDoor):
    body = {"user": "robot", "requests_per_minute": 60, "tokens_per_month": 10**6}
    made = (await door.call("alpha.admin", "POST", "/v1/keys", json=body)).json()
    assert [made[name] for name in LIMITS] == [60, None, 10**6]
    path = f"/v1/keys/{made['id']}"
    change = {"tokens_per_minute": 500, "requests_per_minute": None}
    changed = (await door.call("alpha.admin", "PATCH", path, json=change)).json()
    assert [changed[name] for name in LIMITS] == [None, 500, 10**6]
    assert "secret" not in changed or changed["secret"] is None
    (listed,) = [
        each
        for each in (await door.call("alpha.admin", "GET", "/v1/keys")).json()
        if each["id"] == made["id"]
    ]
    assert [listed[name] for name in LIMITS] == [None, 500, 10**6]
    events = (await door.call("alpha.viewer", "GET", "/v1/events", params={"subject": made["id"]})).json()
    assert events[0]["kind"] == "key.changed"
    assert events[0]["message"] == (
        "requests_per_minute unlimited, tokens_per_minute 500, tokens_per_month 1000000"
    )


@pytest.mark.parametrize("wrong", [{"tokens_per_minute": 0}, {"tokens_per_month": 1.5}, {"rpm": 3}])
async def test_a_limit_that_cannot_be_is_refused(door: FrontDoor, wrong):
    answer = await door.call("alpha.admin", "POST", "/v1/keys", json={"user": "robot", **wrong})
    assert_problem(answer, 422, "invalid_input")
    answer = await door.call("alpha.admin", "PATCH", "/v1/keys/c-alpha-key", json=wrong)
    assert_problem(answer, 422, "invalid_input")


async def test_tokens_have_no_limits(door: FrontDoor):
    answer = await door.call("alpha.admin", "PATCH", "/v1/keys/c-alpha-member", json={"tokens_per_minute": 1})
    assert_problem(answer, 404, "not_found")


async def test_an_operator_limits_the_tokens_of_a_tenant(door: FrontDoor):
    path = "/v1/tenants/alpha"

    async def change(**body):
        answer = await door.call("operator", "PATCH", path, json=body)
        return answer.json()["limit_tokens_per_month"]

    assert await change(limit_tokens_per_month=5000) == 5000
    assert await change(title="renamed") == 5000
    assert (await door.call("alpha.viewer", "GET", path)).json()["limit_tokens_per_month"] == 5000
    assert await change(limit_tokens_per_month=None) is None
    answer = await door.call("operator", "PATCH", path, json={"limit_tokens_per_month": -1})
    assert_problem(answer, 422, "invalid_input")
    answer = await door.call("alpha.admin", "PATCH", path, json={"limit_tokens_per_month": 10})
    assert_problem(answer, 403, "forbidden")


async def test_a_session_is_a_cookie_that_pages_cannot_read_and_other_sites_cannot_use(door: FrontDoor):
    begun = await door.call("alpha.member", "POST", "/v1/session")
    assert begun.status_code == 204
    cookie = begun.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    async with door.client(None, Cookie=cookie.split(";")[0]) as client:
        assert (await client.get("/v1/whoami")).json()["user"] == "member-of-alpha"
        body = {"gpus": "0.5"}
        for origin in (
            {},
            {"Origin": "https://evil.example"},
            {"Origin": "http://farm.test:9999"},
            {"Origin": "null"},
        ):
            assert_problem(await client.post("/v1/leases", json=body, headers=origin), 403, "forbidden")
        answer = await client.post("/v1/leases", json=body, headers={"Origin": "http://farm.test"})
        assert answer.status_code == 201
        renewed = await client.post("/v1/session", headers={"Origin": "http://farm.test"})
        assert renewed.headers["set-cookie"] == cookie
    ended = await door.call(None, "DELETE", "/v1/session")
    assert 'cloudfarm-session=""' in ended.headers["set-cookie"]


async def test_a_session_over_tls_is_never_sent_without(door: FrontDoor):
    async with door.client("alpha.member") as client:
        begun = await client.post("https://farm.test/v1/session")
    assert "Secure" in begun.headers["set-cookie"]
