"""The demonstration, as a person runs it: it ends well, its report is whole, and nothing is left running."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.own_farm
@pytest.mark.timeout(900)
def test_the_demonstration() -> None:
    report_file = ROOT / "build" / "demo.json"
    report_file.unlink(missing_ok=True)
    run = subprocess.run(
        [sys.executable, "-m", "cloudfarm.demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    report = json.loads(report_file.read_text())
    assert report["left_running"] == []
    job = report["job"]
    assert job["status"] == "SUCCEEDED"
    assert job["held_out_rows"] > 100_000
    assert job["validation_mae_kw"] < job["persistence_mae_kw"]
    assert [lease["kind"] for lease in report["leases"]] == ["manual", "job", "service"]
    assert [lease["shape"] for lease in report["leases"]] == ["0.5", "2x0.5", "0.25"]
    assert {lease["grade"] for lease in report["leases"]} == {"simulated"}
    charged = sum(lease["milli_gpu_seconds"] for lease in report["leases"])
    assert report["statement"]["total"] == charged > 0
    assert [step["minutes_ahead"] for step in report["prediction"]["forecast"]] == [10, 20, 30, 40, 50, 60]
    assert processes_of(ROOT / "build" / "demo-state") == []


def processes_of(state: Path) -> list[str]:
    """Every process that names the folder in its environment or command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
        except OSError:
            continue
        if str(state).encode() in text:
            found.append(path.name)
    return found
