"""What was promised comes back: others' jobs and services are preempted, queued anew, and go on."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import RunningFarm, Tenant, new_farm, until
from .test_farm_services import ask, deploy, key, published, start_publishing

pytestmark = [pytest.mark.own_farm, pytest.mark.timeout(400)]

TRAIN = Path(__file__).parent / "preempt_jobs"
NOTICE_S = "6"


@pytest.fixture(scope="module")
def quota_farm() -> Iterator[RunningFarm]:
    """A farm whose two tenants are promised half of it each; borrowers may be preempted after ten seconds."""
    farm = new_farm("quota")
    farm.more_env = {"CLOUDFARM_MIN_RUN_S": "10", "CLOUDFARM_PREEMPT_NOTICE_S": NOTICE_S}
    farm.up()
    try:
        tenants = [farm.tenant("univ"), farm.tenant("solar")]
        half = {"gpus": 2}
        with farm.operator as operator:
            quotas = [{"id": tenant.slug, "guarantee": half} for tenant in tenants]
            operator.request("PUT", "/v1/quotas", json=quotas)
        yield farm
    finally:
        farm.remove()


@pytest.fixture(scope="module", autouse=True)
def publishing(quota_farm: RunningFarm) -> str:
    """The job that publishes the service's model: while the first test waits for others' epochs."""
    return start_publishing(quota_farm.tenant("univ"), "breeze")


def test_a_train_job_is_preempted_resumes_and_is_refunded(quota_farm: RunningFarm) -> None:
    univ, solar = quota_farm.tenant("univ"), quota_farm.tenant("solar")
    own = univ.hold("2x1", cpus=2)
    job = univ.start_job(
        "env",
        "RAY_DEDUP_LOGS=0",
        "python",
        "epochs.py",
        metadata={"gpus": "2x0.5", "cpus": "2", "hours": "1"},
        files=TRAIN,
    )
    univ.wait_job(job, "RUNNING")
    until(lambda: "epoch 4" in univ.logs(job), "some epochs", 180)
    promised = solar.ask("2x1", cpus=2)
    told = until(
        lambda: (found := univ.job(job))["message"] and "taken back" in found["message"] and found, "notice"
    )
    assert promised["id"] not in told["message"]  # nothing of another tenant's is told
    assert univ.lease(own["id"])["status"] == "ACTIVE"
    solar.wait_lease(promised["id"], "ACTIVE", timeout_s=120)
    waits = univ.wait_job(job, "PENDING", timeout_s=120)
    assert "preempted" in waits["message"] or "waits" in waits["message"]
    lease = next(each for each in leases(univ) if each["kind"] == "job")
    assert (lease["status"], lease["slices"]) == ("WAITING", [])
    solar.release(promised["id"])
    ended = univ.wait_job(job, timeout_s=240)
    log = univ.logs(job)
    assert ended["status"] == "SUCCEEDED", ended["message"] + log[-3000:]
    first, _, second = log.partition("attempt 2 begins here")
    assert "epoch 0" in first
    assert "resumed at epoch" in second
    assert "epoch 0\n" not in second
    entries = statement(quota_farm, lease["id"])
    refunds = [entry for entry in entries if entry["kind"] == "refund"]
    runs = [entry for entry in entries if entry["kind"] == "job"]
    assert len(runs) >= 1
    assert sum(entry["milli_gpu_seconds"] for entry in refunds) <= 0
    # What was saved in the notice leaves little to give back: less than the notice and a checkpoint's interval.
    assert -sum(entry["milli_gpu_seconds"] for entry in refunds) <= 1000 * (int(NOTICE_S) + 10)
    univ.release_all()


def test_a_service_is_preempted_waits_and_answers_again_and_what_it_answered_is_paid(
    quota_farm: RunningFarm, publishing: str
) -> None:
    univ, solar = quota_farm.tenant("univ"), quota_farm.tenant("solar")
    (model,) = published(univ, publishing, "breeze")
    deploy(univ, "breeze", "wind", gpus="0.5")
    # After it: of the two the service is the first that may be preempted at all, and then what loses least.
    own = univ.hold("2x1")
    secret, example = key(univ, "wind"), model["manifest"]["example_input"]
    assert ask(quota_farm, secret, "wind", example).status_code == 200
    first = service_lease(univ)
    promised = solar.ask("2x1")
    # Until it has to be gone it answers; then it says so, and waits in the queue as any lease does. A request that
    # comes as its replica goes waits for another one only until it is sure that there is none: not for its 60 s.
    while solar.lease(promised["id"])["status"] != "ACTIVE":
        answer = ask(quota_farm, secret, "wind", example)
        assert answer.status_code in (200, 503)
        assert answer.elapsed.total_seconds() < 30
    refused = ask(quota_farm, secret, "wind", example)
    assert refused.status_code == 503, refused.text
    assert int(refused.headers["Retry-After"]) >= 1
    assert univ.lease(own["id"])["status"] == "ACTIVE"
    solar.release(promised["id"])
    until(lambda: ask(quota_farm, secret, "wind", example).status_code == 200, "the service again", 120)
    lines = statement(quota_farm, first["id"])
    assert sum(line["milli_gpu_seconds"] for line in lines) > 0
    assert not [line for line in lines if line["kind"] == "refund"]
    univ.release_all()


def service_lease(tenant: Tenant) -> dict:
    (found,) = (each for each in leases(tenant) if each["kind"] == "service")
    return found


def leases(tenant: Tenant) -> list[dict]:
    with tenant.client as client:
        return client.get("/v1/leases", open_only=True)


def statement(farm: RunningFarm, lease_id: str) -> list[dict]:
    return json.loads(farm.cli("usage", "--lease", lease_id, "--json").stdout)["lines"]
