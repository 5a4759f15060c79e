"""A farm with fewer rights and another database: no namespaces, and PostgreSQL for its records."""

import asyncio
import json

import pytest

from cloudfarm.store import SqlStore
from cloudfarm.testing.invariants import check_invariants

from .conftest import HOOK_SCRIPTS, new_farm
from .test_farm_jobs import seen


@pytest.mark.own_farm
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("farm")  # without namespaces a farm sees the processes of another one beside it
def test_without_namespaces_jobs_stay_in_their_leases_and_the_lease_says_what_is_not_enforced(
    postgres,
) -> None:
    database = postgres.url(postgres.create())
    farm = new_farm("plain")
    farm.up("--isolation", "none", "--database", database)
    try:
        univ, solar = farm.tenant("univ"), farm.tenant("solar")
        theirs = solar.hold("0.5")
        ours = univ.hold("2x0.5")
        assert {piece["isolation"].split(",")[0] for piece in ours["slices"]} == {"no namespace"}
        job = univ.start_job(
            "python", "work.py", "tasks,core", metadata={"lease": ours["id"]}, files=HOOK_SCRIPTS
        )
        ended = univ.wait_job(job)
        assert ended["status"] == "SUCCEEDED", ended["message"] + univ.logs(job)[-3000:]
        places = seen(univ.logs(job))
        assert {part: leases for part, leases in places.items() if leases != [ours["id"]]} == {}
        univ.release(ours["id"])
        assert farm.processes(f"CLOUDFARM_LEASE={ours['id']}") == []
        assert solar.lease(theirs["id"])["status"] == "ACTIVE"
        usage = farm.cli("usage", "--json").stdout
        assert json.loads(usage)["by_lease"][ours["id"]] > 0
    finally:
        farm.remove()
    asyncio.run(check(database))


async def check(database: str) -> None:
    store = await SqlStore.open(database)
    try:
        await check_invariants(store)
    finally:
        await store.close()
