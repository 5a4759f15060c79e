"""A tenant's own Serve application on a farm: deployed by one command, asked with a key, kept apart, and gone."""

import json
import re
import time
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from .conftest import RunningFarm, Tenant, until

pytestmark = [pytest.mark.farm, pytest.mark.timeout(420), pytest.mark.usefixtures("clean_farm")]
APPS = str(Path(__file__).parent / "app_jobs")


def deploy(farm: RunningFarm, tenant: Tenant, app: str, name: str, *more: str) -> dict:
    """Deploy by the command line, and return the service when it runs or has failed."""
    options = ("--working-dir", APPS, "--gpus", "0.5", "--name", name, *more)
    env = {"CLOUDFARM_URL": farm.url, "CLOUDFARM_TOKEN": tenant.token}
    farm.cli("deploy", "--app", app, *options, **env)

    def look() -> dict | None:
        with tenant.client as client:
            found = client.get(f"/v1/services/{name}")
        return found if found["status"] in ("RUNNING", "FAILED") else None

    return until(look, f"the application {name}", 240)


def key(tenant: Tenant, *services: str) -> dict[str, str]:
    with tenant.client as client:
        secret = client.post("/v1/keys", {"user": "app", "services": list(services)})["secret"]
    return {"Authorization": f"Bearer {secret}"}


def replicas(farm: RunningFarm, tenant: Tenant) -> list[int]:
    pids = farm.actor_pids(f"ray::ServeReplica:{tenant.slug}.")
    return sorted(set(pids) & set(farm.processes(f"CLOUDFARM_TENANT={tenant.slug}")))


def test_an_ordinary_application_runs_in_its_lease_behind_its_key(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant]
) -> None:
    univ, solar = tenants
    service = deploy(farm, univ, "shop:app", "shop")
    assert service["status"] == "RUNNING", service["message"]
    (lease,) = service["leases"]
    assert univ.lease(lease)["shape"] == "0.5"
    base, headers = f"{farm.url}/v1/services/shop/app", key(univ, "shop")
    answer = httpx.get(f"{base}/double/21", headers=headers, timeout=60)
    assert (answer.status_code, answer.json()) == (200, {"double": 42, "lease": lease}), answer.text
    assert httpx.get(f"{base}/openapi.json", headers=headers, timeout=60).json()["servers"] == [
        {"url": "/v1/services/shop/app"}
    ]

    with httpx.stream("GET", f"{base}/count", headers=headers, timeout=60) as stream:
        came = [(time.monotonic(), piece) for piece in stream.iter_text()]
    assert "".join(piece for _, piece in came) == "".join(f"data: {number}\n\n" for number in range(5))
    assert came[-1][0] - came[0][0] > 0.5, "it came in one piece at the end"

    socket = base.replace("http://", "ws://") + "/haggle"
    with connect(socket, additional_headers=headers, subprotocols=["prices"], open_timeout=60) as talk:
        assert talk.subprotocol == "prices"
        for number in (3, 4):
            talk.send(str(number))
            assert json.loads(talk.recv(60)) == {"double": 2 * number, "lease": lease}
        talk.send("done")
        with pytest.raises(ConnectionClosed) as closed:
            talk.recv(60)
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "sold")
    with pytest.raises(InvalidStatus) as refused, connect(socket, open_timeout=60):
        pass
    assert refused.value.response.status_code == 401

    assert httpx.get(f"{base}/double/1", timeout=60).status_code == 401
    assert httpx.get(f"{base}/double/1", headers=key(solar), timeout=60).status_code == 404
    # Ray's log monitor tells of a replica's lines a moment later.
    until(lambda: "asked for 21" in univ.ray("job", "logs", f"app-shop-1-{lease}").stdout, "the log", 60)
    assert f"app-shop-1-{lease}" not in solar.ray("job", "list").stdout

    # Another tenant's application of the same name comes and goes, and ours stays.
    before = until(lambda: len(found := replicas(farm, univ)) == 2 and found, "both replicas")
    theirs = deploy(farm, solar, "shop:app", "shop")
    assert theirs["status"] == "RUNNING", theirs["message"]
    with solar.client as client:
        client.delete("/v1/services/shop")
        until(lambda: not client.get("/v1/services"), "their application to go", 120)
    assert httpx.get(f"{base}/double/2", headers=headers, timeout=60).json()["double"] == 4
    until(lambda: replicas(farm, univ) == before, "the same replicas as before", 20)

    with univ.client as client:
        client.delete("/v1/services/shop")
    univ.wait_lease(lease, "ENDED", timeout_s=120)
    # The service itself goes when nothing of it is left.
    until(lambda: httpx.get(f"{base}/double/1", headers=headers, timeout=60).status_code == 404, "a 404", 30)
    until(lambda: replicas(farm, univ) == [], "the replicas to be gone", 20)


def test_an_application_that_does_not_start_says_why_and_is_tried_again_on_another_lease(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant]
) -> None:
    univ, _ = tenants
    service = deploy(farm, univ, "shop:build", "closed")
    assert service["status"] == "FAILED"
    assert "the shop is closed" in service["message"]
    (first,) = service["leases"]
    assert univ.wait_lease(first, "ENDED")["reason"] == "scaled_down"

    def tries() -> list[str]:
        return re.findall(r"app-closed-1-(\w+)", univ.ray("job", "list").stdout)

    until(lambda: set(tries()) > {first}, "the next try", 120)
    assert "the shop is closed" in univ.ray("job", "logs", f"app-closed-1-{first}").stdout
