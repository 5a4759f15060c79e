"""Quotas over HTTP: who sees and sets what, what is refused in which words, and what an ask may still be."""

import re

import pytest

from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_problem

TREE = [
    {"id": "energy", "guarantee": {"gpus": 3, "cpus": "24", "memory": "96GiB"}, "weight": 2},
    {
        "id": "alpha",
        "parent": "energy",
        "guarantee": {"gpus": "2.5"},
        "limit": {"gpus": 3, "memory": "64GiB"},
        "committed_gpu_hours": "0.1",
    },
    {"id": "alpha/wind", "parent": "alpha", "limit": {"gpus": "1"}},
    {"id": "beta", "parent": "energy"},
]
NO_LIMIT = {"milli_gpus": None, "cpus": None, "memory_bytes": None}
NOTHING = {"milli_gpus": 0, "cpus": 0, "memory_bytes": 0}
GIB = 2**30


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path) as opened:
        yield opened


async def put(door: FrontDoor, tree, who="operator"):
    return await door.call(who, "PUT", "/v1/quotas", json=tree)


async def shown(door: FrontDoor, who="operator"):
    answer = await door.call(who, "GET", "/v1/quotas")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def hold(door: FrontDoor, who="alpha.member", **fields):
    lease = await door.lease(who, **fields)
    await door.start_lease(lease["id"])


async def test_without_quotas_every_tenant_has_its_own_limit(door: FrontDoor):
    await door.call("operator", "PATCH", "/v1/tenants/beta", json={"limit_gpus": "0.5"})
    found = await shown(door)
    assert found["quotas"] == []
    assert [(row["id"], row["parent"], row["limit"]["milli_gpus"]) for row in found["in_force"]] == [
        ("alpha", None, 4000),
        ("beta", None, 500),
    ]


async def test_what_is_set_is_shown_and_can_be_set_again(door: FrontDoor):
    answer = await put(door, TREE)
    assert answer.status_code == 200, answer.text
    assert answer.json() == await shown(door)
    alpha, wind, beta, energy = answer.json()["quotas"]
    assert alpha == {
        "id": "alpha",
        "parent": "energy",
        "guarantee": {"gpus": "2.5", "cpus": 20, "memory": 64 * GIB},  # in the farm's proportion
        "limit": {"gpus": "3", "cpus": None, "memory": 64 * GIB},
        "weight": 1,
        "committed_gpu_hours": "0.1",
    }
    assert (energy["weight"], energy["committed_gpu_hours"], beta["limit"]["gpus"]) == (2, None, None)
    assert wind["parent"] == "alpha"
    assert (await put(door, answer.json()["quotas"])).json() == answer.json()
    async with door.store.begin(write=False) as uow:
        events = await uow.events.list(subject="quotas")
    assert [(event.kind, event.tenant, event.message) for event in events] == [
        ("quotas.changed", None, "4 quotas")
    ] * 2
    assert {event.actor for event in events} == {"operator:operator-of-farm"}
    assert door.nudge.count == 2


async def test_an_empty_tree_takes_all_away(door: FrontDoor):
    await put(door, TREE)
    assert (await put(door, [])).json()["quotas"] == []


async def test_held_is_rolled_up_and_each_stands_below_its_parent(door: FrontDoor):
    await put(door, TREE)
    await hold(door, gpus="0.5", cpus=2, memory="3GiB", project="wind")
    await hold(door, gpus="2x0.25", cpus=1, memory="1GiB", project="sun")
    await hold(door, gpus="1", cpus=4, memory="2GiB")
    await hold(door, "beta.member", gpus="0.25", cpus=1, memory="1GiB")
    await door.lease(gpus="1")  # it waits
    rows = (await shown(door))["in_force"]
    assert {row["id"]: tuple(row["held"].values()) for row in rows} == {
        "energy": (2250, 9, 8 * GIB),
        "alpha": (2000, 8, 7 * GIB),
        "alpha/wind": (500, 2, 3 * GIB),
        "alpha/sun": (500, 2, 2 * GIB),
        "beta": (250, 1, GIB),
    }
    assert [row["id"] for row in rows] == ["energy", "alpha", "alpha/sun", "alpha/wind", "beta"]


async def test_a_tenant_sees_its_path_and_nothing_of_others(door: FrontDoor):
    await put(door, [*TREE, {"id": "arts"}, {"id": "arts-lab", "parent": "arts"}])
    for who in ("alpha.member", "beta.member"):
        await hold(door, who, gpus="0.5")
    found = await shown(door, "alpha.viewer")
    assert [row["id"] for row in found["in_force"]] == ["energy", "alpha", "alpha/wind"]
    assert [row["id"] for row in found["quotas"]] == ["alpha", "alpha/wind", "energy"]
    energy, alpha, wind = found["in_force"]
    assert energy["held"] is None  # beta's part could be reckoned from it
    assert energy["guarantee"]["milli_gpus"] == 3000
    assert (alpha["held"]["milli_gpus"], wind["held"]) == (500, NOTHING)
    assert "beta" not in str(found)
    assert [row["id"] for row in (await shown(door, "beta.viewer"))["in_force"]] == ["energy", "beta"]


async def test_a_tenants_own_limit_is_in_force_and_what_was_set_stays(door: FrontDoor):
    await put(door, TREE)
    await door.call("operator", "PATCH", "/v1/tenants/alpha", json={"limit_gpus": 1})
    found = await shown(door)
    assert found["quotas"][0]["limit"]["gpus"] == "3"
    assert [row["limit"]["milli_gpus"] for row in found["in_force"] if row["id"] == "alpha"] == [1000]


BAD = [
    ([{"id": "a1", "parent": "b1"}, {"id": "b1", "parent": "a1"}], "quota a1 stands below itself"),
    ([{"id": "a1", "parent": "b1"}], "quota a1 stands below b1, which there is not"),
    ([{"id": "a1"}, {"id": "a1"}], "quota a1 is given twice"),
    ([{"id": "a1", "guarantee": {"gpus": 5}}], "below the top come to 5 GPUs.*the farm has: 4 GPUs, 32 CPUs"),
    ([{"id": "a1", "guarantee": {"cpus": 33}}], "the farm has"),
    ([{"id": "a1", "guarantee": {"gpus": 2}, "limit": {"gpus": 1}}], "its guarantee is above its limit"),
    ([{"id": "a1", "weight": 0}], "quota a1: weight must be a whole number from 1"),
    ([{"id": "a1", "weight": -2}], "quota a1: weight"),
    ([{"id": "a1", "weight": 1.5}], "quota a1: weight"),
    ([{"id": "a1", "limit": {"gpus": "many"}}], "quota a1: 'many' is not a number of GPUs"),
    ([{"id": "a1", "limit": {"gpus": -1}}], "quota a1: a number of GPUs is 0 or more"),
    ([{"id": "a1", "limit": {"cpus": 1.5}}], "quota a1: cpus"),
    ([{"id": "a1", "limit": {"memory": "64 apples"}}], "quota a1: '64 apples' is not a size"),
    ([{"id": "a1", "limit": {"memory": "999999999T"}}], "quota a1: memory is at most"),
    ([{"id": "a1", "committed_gpu_hours": -1}], "quota a1: GPU-hours"),
    ([{"id": "a1", "committed_gpu_hours": 1e10}], "quota a1: GPU-hours"),
    ([{"id": "a1", "committed_gpu_hours": "inf"}], "quota a1: GPU-hours"),
    ([{"id": "a1", "committed_gpu_hours": "long"}], "quota a1: 'long' is not a number of GPU-hours"),
    ([{"id": "Energy"}], "quota 'Energy': use 2 to 32"),
    ([{"id": ""}], "use 2 to 32"),
    ([{"id": "/x1"}], "use 2 to 32"),
    ([{"id": "alpha"}, {"id": "alpha/Wind", "parent": "alpha"}], "project 'Wind': use 2 to 32"),
    ([{"id": "alpha"}, {"id": "alpha/a1/b1", "parent": "alpha"}], "use 2 to 32"),
    ([{"id": "alpha"}, {"id": "alpha/wind"}], "a project stands below its tenant, alpha"),
    ([{"id": "alpha"}, {"id": "gamma", "parent": "alpha"}], "alpha is a tenant; only its projects"),
    ([{"id": "a1", "limits": {}}], "limits"),
    ([{"id": "a1", "limit": {"gpu": 1}}], "gpu"),
    ([{}], "id"),
    ({"id": "a1"}, "list"),
    ([{"id": f"q{number}"} for number in range(2001)], "2001 quotas are too many; 2000 are the most"),
]


@pytest.mark.parametrize(("tree", "says"), BAD)
async def test_a_bad_tree_is_refused_in_a_sentence_and_the_old_one_stays(door: FrontDoor, tree, says):
    await put(door, TREE)
    before = await shown(door)
    answer = await put(door, tree)
    assert_problem(answer, 422, "invalid_input")
    assert re.search(says, answer.text), answer.text
    assert await shown(door) == before
    async with door.store.begin(write=False) as uow:
        assert len(await uow.events.list(subject="quotas")) == 1


async def test_no_guarantee_is_given_on_a_farm_that_nobody_has_seen(tmp_path):
    async with open_front_door(tmp_path, hosts=()) as door:
        assert_problem(await put(door, TREE), 503, "unavailable")


async def test_a_tenant_cannot_take_a_programmes_name(door: FrontDoor):
    await put(door, [*TREE, {"id": "gamma"}])
    answer = await door.call("operator", "POST", "/v1/tenants", json={"id": "energy"})
    assert_problem(answer, 409, "already_exists")
    answer = await door.call("operator", "POST", "/v1/tenants", json={"id": "gamma"})  # it was meant for it
    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("ask", "says", "data"),
    [
        (
            {"gpus": "2x0.75", "project": "wind"},
            "2x0.75 is 1.5 GPUs; project alpha/wind may hold 1 GPUs at once",
            {"quota": "alpha/wind", "limit_milli_gpus": 1000, "asked_milli_gpus": 1500},
        ),
        ({"gpus": "4x1", "project": "sun"}, "tenant alpha may hold 3 GPUs at once", {"quota": "alpha"}),
        (
            {"gpus": "0", "memory": "65GiB", "project": "sun"},
            "0 is 65 GiB; tenant alpha may hold 64 GiB at once",
            {"limit_memory_bytes": 64 * GIB, "asked_memory_bytes": 65 * GIB},
        ),
        (
            {"gpus": "4x0", "cpus": 7, "project": "sun"},
            "4x0 is 28 CPUs; programme energy may hold 24 CPUs at once",
            {"quota": "energy", "limit_cpus": 24, "asked_cpus": 28},
        ),
        (
            {"gpus": "0.25"},
            "what of tenant alpha is in no project may hold 0.1 GPUs at once",
            {"quota": "alpha/"},
        ),
    ],
)
async def test_an_ask_beyond_a_limit_on_its_path_is_refused_and_told_which(door: FrontDoor, ask, says, data):
    outside = {"id": "alpha/", "parent": "alpha", "limit": {"gpus": "0.1"}}
    await put(door, [{**TREE[0], "limit": {"cpus": 24}}, *TREE[1:], outside])
    answer = await door.call("alpha.member", "POST", "/v1/leases", json=ask)
    problem = assert_problem(answer, 422, "limit_exceeded")
    assert says in problem["detail"]
    assert problem.items() >= data.items()


async def test_an_ask_that_just_fills_every_limit_is_taken(door: FrontDoor):
    await put(door, [{**TREE[0], "limit": {"gpus": 3, "cpus": 24}}, *TREE[1:]])
    await door.lease(gpus="1", project="wind")
    await door.lease(gpus="2x1", cpus=12, project="sun")


async def test_a_job_is_bounded_by_its_project_too(door: FrontDoor):
    await put(door, TREE)
    body = {"entrypoint": "true", "metadata": {"gpus": "2x0.75", "project": "wind"}}
    answer = await door.call("alpha.member", "POST", "/api/jobs/", json=body)
    assert answer.status_code == 422
    assert "project alpha/wind may hold 1 GPUs" in answer.text
    assert (await door.call("alpha.member", "GET", "/api/jobs/")).json() == []


async def test_a_quota_that_is_full_lets_wait_and_does_not_refuse(door: FrontDoor):
    await put(door, TREE)
    await hold(door, gpus="1", project="wind")
    assert (await door.lease(gpus="1", project="wind"))["status"] == "WAITING"
