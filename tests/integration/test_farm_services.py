"""From a job's model to an answer: registered, deployed on a lease of its own, called with a key, and kept apart."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from cloudfarm.client import FarmClient
from cloudfarm.errors import CloudfarmError

from .conftest import RunningFarm, Tenant, raylet_of, until

pytestmark = [pytest.mark.farm, pytest.mark.timeout(300), pytest.mark.usefixtures("clean_farm")]


def start_publishing(tenant: Tenant, *names: str) -> str:
    return tenant.start_job("python", "publish.py", *names, metadata={"gpus": "0"})


def published(tenant: Tenant, job: str, *names: str) -> list[dict]:
    ended = tenant.wait_job(job)
    assert ended["status"] == "SUCCEEDED", ended["message"] + tenant.logs(job)[-2000:]
    with tenant.client as client:
        return [client.get(f"/v1/model-versions/{name}") for name in names]


@pytest.fixture(scope="module")
def models(tenants: tuple[Tenant, Tenant]) -> dict[str, dict]:
    """Models that ``univ`` has published, by name, all by one job: one for each test."""
    univ, _ = tenants
    names = ("breeze", "squall", "thermal", "fog", "lull")
    return dict(zip(names, published(univ, start_publishing(univ, *names), *names), strict=True))


def deploy(tenant: Tenant, model: str, name: str, gpus: str = "0.25", replicas: int = 1) -> dict:
    with tenant.client as client:
        client.post("/v1/services", {"model": model, "name": name, "gpus": gpus, "replicas": replicas})
        running = until(
            lambda: (
                (found := client.get(f"/v1/services/{name}"))["status"] in ("RUNNING", "FAILED") and found
            ),
            f"service {name}",
            120,
        )
    assert running["status"] == "RUNNING", running["message"]
    return running


def key(tenant: Tenant, *services: str) -> str:
    with tenant.client as client:
        return client.post("/v1/keys", {"user": "app", "services": list(services)})["secret"]


def ask(farm: RunningFarm, secret: str, service: str, payload: dict) -> httpx.Response:
    with asker(farm, secret) as client:
        return client.post(f"/v1/services/{service}/predict", json=payload)


def asker(farm: RunningFarm, secret: str) -> httpx.Client:
    return httpx.Client(base_url=farm.url, headers={"Authorization": f"Bearer {secret}"}, timeout=60)


def replicas(farm: RunningFarm, tenant: Tenant) -> list[int]:
    return sorted(
        set(farm.actor_pids(f"ray::ServeReplica:{tenant.slug}."))
        & set(farm.processes(f"CLOUDFARM_TENANT={tenant.slug}"))
    )


def listening(farm: RunningFarm) -> set[str]:
    """Addresses on which any process of the farm listens."""
    found = set()
    for pid in farm.actor_pids("ray::") + farm.processes("CLOUDFARM_ROLE=control"):
        try:
            found |= {
                connection.laddr.ip
                for connection in psutil.Process(pid).net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            }
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_model_is_registered_served_and_kept_apart(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], models: dict[str, dict]
) -> None:
    univ, solar = tenants
    others = start_publishing(solar, "gale")
    model = models["breeze"]
    assert (model["ref"], model["manifest"]["metrics"]) == ("breeze:1", {"validation_mae_kw": 1.0})
    example = model["manifest"]["example_input"]

    service = deploy(univ, "breeze", "wind")
    lease = univ.lease(service["leases"][0])
    assert (lease["kind"], lease["shape"], lease["status"]) == ("service", "0.25", "ACTIVE")
    secret = key(univ, "wind")
    answer = ask(farm, secret, "wind", example)
    assert answer.status_code == 200, answer.text
    assert [step["minutes_ahead"] for step in answer.json()["forecast"]] == [10, 20, 30, 40, 50, 60]
    assert ask(farm, secret, "wind", {"nonsense": 1}).status_code == 422
    assert listening(farm) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}

    # The same name for another tenant is another service, and its coming and going does not touch ours.
    # (A process that is just writing its title has none; and a replica writes it at every request.)
    before = until(lambda: replicas(farm, univ), "the title of the replica")
    assert len(before) == 1
    published(solar, others, "gale")
    deploy(solar, "gale", "wind", gpus="0.5", replicas=2)
    other = key(solar)
    assert ask(farm, other, "wind", example).status_code == 200
    with solar.client as client:
        client.delete("/v1/services/wind")
        until(lambda: not client.get("/v1/services"), "the other service to go")
    until(lambda: replicas(farm, univ) == before, "the same replica as before", 20)
    assert ask(farm, secret, "wind", example).status_code == 200
    assert ask(farm, other, "wind", example).status_code == 404

    # A key opens its service and nothing else; the service's own port has no way around the front door.
    assert (
        httpx.get(f"{farm.url}/v1/leases", headers={"Authorization": f"Bearer {secret}"}).status_code == 403
    )
    assert httpx.post(f"{farm.url}/v1/services/wind/predict", json=example).status_code == 401
    with univ.client as client:
        client.delete("/v1/services/wind")
        # After its lease: a service that is being deleted is not gone yet, and says so.
        until(lambda: not client.get("/v1/services"), "the service to go")
    univ.wait_lease(lease["id"], "ENDED")
    assert ask(farm, secret, "wind", example).status_code == 404


@contextmanager
def asking(farm: RunningFarm, secret: str, service: str, payload: dict) -> Iterator[list[str]]:
    """Ask without a pause, two at a time, and note "ok" or what else was answered."""
    seen: list[str] = []
    over = threading.Event()

    def ask_on() -> None:
        with asker(farm, secret) as client:
            while not over.is_set():
                answer = client.post(f"/v1/services/{service}/predict", json=payload)
                seen.append("ok" if answer.is_success else f"{answer.status_code} {answer.text}")

    threads = [threading.Thread(target=ask_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_new_version_takes_over_and_is_rolled_back_without_dropping_a_request(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], models: dict[str, dict]
) -> None:
    univ, _ = tenants
    first, publishing = models["squall"], start_publishing(univ, "squall")
    deploy(univ, "squall:1", "gusts")
    (second,) = published(univ, publishing, "squall")
    assert (first["ref"], second["ref"]) == ("squall:1", "squall:2")
    secret, example = key(univ, "gusts"), first["manifest"]["example_input"]

    def settled(client: FarmClient, model: str) -> bool:
        found = client.get("/v1/services/gusts")
        return (found["model"], len(found["revisions"]), found["status"]) == (model, 1, "RUNNING")

    with univ.client as client, asking(farm, secret, "gusts", example) as seen:
        client.post("/v1/services", {"model": "squall:2", "name": "gusts", "gpus": "0.25", "replace": True})
        until(lambda: settled(client, "squall:2"), "the second version alone", 120)
        client.post("/v1/services/gusts/rollback")
        until(lambda: settled(client, "squall:1"), "the first version alone", 120)
    assert len(seen) > 500
    assert set(seen) == {"ok"}


def test_a_replica_whose_node_dies_is_replaced_and_the_others_go_on(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], models: dict[str, dict]
) -> None:
    univ, _ = tenants
    model = models["thermal"]
    before = deploy(univ, "thermal", "lift", replicas=2)["leases"]
    secret, example = key(univ, "lift"), model["manifest"]["example_input"]
    assert len(before) == 2
    of_first = set(farm.processes(f"CLOUDFARM_LEASE={before[0]}"))
    (stays,) = until(
        lambda: len(found := replicas(farm, univ)) == 2 and set(found) - of_first,
        "the titles of the replicas",
    )
    with univ.client as client, asking(farm, secret, "lift", example) as seen:
        os.kill(raylet_of(farm, before[0]), signal.SIGKILL)

        def replaced() -> bool:
            found = client.get("/v1/services/lift")
            return (
                found["status"] == "RUNNING"
                and len(found["leases"]) == 2
                and before[0] not in found["leases"]
                and len(replicas(farm, univ)) == 2
            )

        until(replaced, "another replica", 120)
        assert before[1] in client.get("/v1/services/lift")["leases"]
        assert stays in replicas(farm, univ)
    # What the lost replica had got is asked of the other one.
    assert set(seen) == {"ok"}


def test_a_service_that_does_not_run_gives_its_lease_back_and_runs_once_it_can(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], models: dict[str, dict]
) -> None:
    univ, _ = tenants
    model = models["fog"]
    weights = Path(model["uri"])
    hidden = weights.with_name("hidden")
    weights.rename(hidden)
    with univ.client as client:
        client.post("/v1/services", {"model": "fog", "name": "mist", "gpus": "0.25"})

        def status(wanted: str) -> dict | None:
            found = client.get("/v1/services/mist")
            return (
                found if found["status"] == wanted and len(found["leases"]) == (wanted == "RUNNING") else None
            )

        failed = until(lambda: status("FAILED"), "the service to give up its lease", 120)
        secret, example = key(univ, "mist"), model["manifest"]["example_input"]
        refused = ask(farm, secret, "mist", example)
        assert refused.status_code == 503, refused.text
        assert failed["message"] == f"{weights} does not exist"
        hidden.rename(weights)
        until(lambda: status("RUNNING"), "the service to be tried again", 120)
        assert ask(farm, secret, "mist", example).status_code == 200


def test_a_service_sleeps_without_a_lease_and_wakes_at_the_first_request(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], models: dict[str, dict]
) -> None:
    univ, _ = tenants
    model = models["lull"]
    with univ.client as client:
        body = {"model": "lull", "name": "calm", "gpus": "0.25", "min_replicas": 0, "idle_minutes": 0.1}
        client.post("/v1/services", body)

        def asleep() -> bool:
            found = client.get("/v1/services/calm")
            return found["status"] == "IDLE" and not found["leases"]

        def falls_asleep() -> bool:
            return client.get("/v1/services/calm")["status"] == "IDLE"

        secret = key(univ, "calm")
        # The second time the front door has known replicas that are just going.
        for state in (asleep, falls_asleep):
            until(state, "the service to sleep", 180)
            answer = ask(farm, secret, "calm", model["manifest"]["example_input"])
            assert answer.status_code == 200, answer.text
            assert len(client.get("/v1/services/calm")["leases"]) == 1


def test_what_can_never_be_is_refused_and_leaves_nothing(tenants: tuple[Tenant, Tenant]) -> None:
    univ, _ = tenants
    with univ.client as client:
        before = len(client.get("/v1/leases"))
        for gpus in ("3", "5x0.5", "1.3", "nan", "-1", "1000000000x1", "0.0001"):
            with pytest.raises(CloudfarmError) as refused:
                client.post("/v1/leases", {"gpus": gpus})
            assert refused.value.status == 422
        with pytest.raises(CloudfarmError):
            client.post("/v1/services", {"model": "no-such-model", "gpus": "0.25"})
        assert len(client.get("/v1/leases")) == before


def test_the_dashboard_is_for_operators(farm: RunningFarm, tenants: tuple[Tenant, Tenant]) -> None:
    univ, _ = tenants
    operator = (farm.state / "operator-token").read_text().strip()
    page = httpx.get(f"{farm.url}/dashboard/", headers={"Authorization": f"Bearer {operator}"})
    assert page.status_code == 200
    assert "Ray Dashboard" in page.text
    nodes = httpx.get(
        f"{farm.url}/dashboard/nodes?view=summary",
        headers={"Authorization": f"Bearer {operator}"},
        timeout=30,
    ).json()
    names = {node["raylet"].get("nodeName") for node in nodes["data"]["summary"]}
    assert {"head", "base-h0", "base-h1"} <= names, names
    refused = httpx.get(f"{farm.url}/dashboard/", headers={"Authorization": f"Bearer {univ.token}"})
    assert refused.status_code == 403
