"""``cloudfarm simulate history`` on a real database: what it reads, prints and writes, and what it refuses."""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cloudfarm import cli
from cloudfarm.cli.session import out
from cloudfarm.domain.lease import LeaseKind
from cloudfarm.domain.quantities import Shape
from cloudfarm.domain.quota import Amounts, Quota
from cloudfarm.domain.status import EndReason, LeaseStatus
from cloudfarm.domain.tenant import Tenant
from cloudfarm.simulate.workloads import read_workload
from cloudfarm.store import SqlStore
from cloudfarm.testing.factories import ASK, keep, make_entry, make_lease
from cloudfarm.testing.fake_farm import make_host

T0 = 1_763_683_200_000
"""2025-11-21, 00:00 UTC."""
MINUTE = 60_000


def lived(id_, tenant, asked, start, end):
    """Return a lease of one GPU, and its charge; times are minutes."""
    lease = make_lease(
        id_,
        tenant,
        T0 + asked * MINUTE,
        kind=LeaseKind.JOB,
        ask=replace(ASK, shape=Shape(1, 1000)),
        status=LeaseStatus.ENDED,
        reason=EndReason.JOB_FINISHED,
        granted_ms=T0 + start * MINUTE,
        started_ms=T0 + start * MINUTE,
        ended_ms=T0 + end * MINUTE,
        segment=1,
    )
    entry = make_entry(id_, 1, T0 + start * MINUTE, T0 + end * MINUTE, tenant=tenant)
    return lease, entry


@pytest.fixture
def database(url):
    """A farm of one GPU, on which kaist ran from 0 to 30 minutes and kpx, waiting all the time, from 30 to 60."""

    async def fill():
        store = await SqlStore.open(url)

        async def work(uow):
            for tenant in ("kaist", "kpx"):
                await uow.tenants.add(Tenant(tenant, tenant, 0))
            for lease, entry in (lived("l1", "kaist", 0, 0, 30), lived("l2", "kpx", 0, 30, 60)):
                await uow.leases.add(lease)
                await uow.ledger.append(entry)
            await uow.put_hosts([make_host("h0", 1)])
            await uow.heartbeat(T0 + 100 * MINUTE)
            await uow.quotas.replace_all([Quota("kpx", weight=2)])

        await keep(store, work)
        await store.close()

    asyncio.run(fill())
    return url


@pytest.fixture
def simulate(monkeypatch, tmp_path, capsys):
    """Runs ``cloudfarm simulate history`` and returns the exit code, what it printed, and what it complained of."""
    monkeypatch.setenv("CLOUDFARM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(out, "width", 160)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["cloudfarm", "simulate", "history", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    return run


def test_what_if_there_were_one_host_more(simulate, database, tmp_path):
    folder, export = tmp_path / "plots", tmp_path / "w.jsonl"
    code, text, told = simulate(
        "--database", database, "--add-hosts", 1, "--plots", folder, "--export", export, "--json"
    )
    assert code == 0, told
    found = json.loads(text)
    assert (found["from_ms"], found["until_ms"]) == (T0, T0 + 100 * MINUTE)
    outcomes = found["outcomes"]
    waits = {name: each["tenants"]["kpx"]["wait_mean_s"] for name, each in outcomes.items()}
    assert waits == {"past": 1800, "replay": 1800, "what-if": 0}
    assert {name: each["farm"]["utilisation"] for name, each in outcomes.items()} == {
        "past": pytest.approx(0.6),
        "replay": pytest.approx(0.6),
        "what-if": pytest.approx(0.3),
    }
    assert [Path(line.removeprefix("written: ")) for line in told.splitlines()] == [
        export,
        *(folder / name for name in ("report.html", "utilisation.png", "queue.png", "waits.png")),
    ]
    assert [(work.id, work.arrives_ms, work.runs_ms) for work in read_workload(export)] == [
        ("l1", 0, 30 * MINUTE),
        ("l2", 0, 30 * MINUTE),
    ]


def test_a_table_of_a_window(simulate, database):
    code, text, told = simulate(
        "--database", database, "--from", "2025-11-21T00:10", "--until", "2025-11-21T09:40+09:00"
    )
    assert code == 0, told
    lines = text.splitlines()
    assert lines[0] == "2025-11-21 00:10 to 2025-11-21 00:40 UTC"
    assert lines[1].strip() == "past: as it really was (1 GPU)"
    assert [line.split()[:4] for line in lines if line.startswith("the whole farm")] == [
        ["the", "whole", "farm", "past"]
    ]
    assert "100.0%" in text
    assert sum("replay" in line for line in lines) == 4  # in the legend, for the farm, and for two tenants


def test_other_quotas_from_a_file(simulate, database, tmp_path):
    file = tmp_path / "quotas.toml"
    file.write_text('[[quotas]]\nid = "kpx"\nguarantee = { gpus = 1 }\n')
    _, text, _ = simulate(
        "--database", database, "--quotas", file, "--min-run-s", 0, "--notice-s", 60, "--json"
    )
    found = json.loads(text)["outcomes"]
    assert found["what-if"]["title"] == "other quotas, borrowers run 0 s at least"
    assert found["what-if"]["tenants"]["kpx"]["wait_mean_s"] == 0  # now kaist waits
    assert found["what-if"]["tenants"]["kaist"]["wait_mean_s"] == 1800


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"id": "kpx", "gpus": 1}]', "0.gpus: Extra inputs are not permitted"),
        ('[{"id": "kpx", "guarantee": {"gpus": 2}}]', "more than the farm has"),
        ("[7]", "valid dictionary"),
    ],
)
def test_quotas_that_cannot_be_are_refused(simulate, database, tmp_path, text, says):
    file = tmp_path / "quotas.json"
    file.write_text(text)
    code, _, told = simulate("--database", database, "--quotas", file)
    assert code == 1
    assert says in told


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--hosts", "2", "--add-hosts", "1"], "--hosts says how many"),
        (["--gpus", "2"], "--gpus is of new hosts"),
        (["--without-host", "h7"], "there is no host h7"),
        (["--policy", "fairest"], "there is no policy 'fairest'"),
        (["--from", "yesterday"], "--from: write a moment as 2026-11-21"),
        (["--until", "2025-11-20"], "nothing to replay"),
    ],
)
def test_what_cannot_be_asked_is_refused(simulate, database, args, says):
    code, _, told = simulate("--database", database, *args)
    assert code == 1
    assert says in told


def test_without_a_farm_it_says_how_to_name_one(simulate, tmp_path):
    code, _, told = simulate()
    assert code == 1
    assert "--state, or its --database" in told
    code, _, told = simulate("--database", f"sqlite:///{tmp_path}/none.db")
    assert code == 1
    assert "there is no database" in told
    assert not (tmp_path / "none.db").exists()


def test_a_farms_own_settings_are_those_of_its_state_folder(simulate, database, tmp_path):
    (tmp_path / "state").mkdir()
    settings = {"state_dir": str(tmp_path / "state"), "database_url": database, "default_limit_gpus": "0.5"}
    (tmp_path / "state" / "settings.json").write_text(json.dumps(settings))
    code, text, told = simulate("--json")
    assert code == 0, told
    assert (
        json.loads(text)["notes"][1] == "Leases that can never start under the present hosts and quotas: 1."
    )


def test_a_charge_of_nothing_known_is_fine(simulate, url):
    code, _, told = simulate("--database", url)
    assert code == 1
    assert "nothing to replay" in told


def test_the_amounts_of_a_quota_are_those_that_the_api_reads():
    from cloudfarm.api.quota_schemas import read_quotas  # noqa: PLC0415 - only here

    (quota,) = read_quotas([{"id": "kpx", "guarantee": {"gpus": "1.5", "cpus": 3, "memory": "2GiB"}}])
    assert quota.guarantee == Amounts(1500, 3, 2 * 2**30)
