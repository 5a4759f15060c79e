"""Simulations: the farm's own decisions on public workloads and on its own past, without a farm."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cloudfarm.cli import what_if
from cloudfarm.cli.session import JsonOption, show

simulate = typer.Typer(
    no_args_is_help=True, help="The farm's decisions on workloads or its own past, without a farm."
)

FILE = {"exists": True, "dir_okay": False, "readable": True}
GENERATOR = "openb-like"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(simulate, name="simulate")
    simulate.command()(what_if.history)


@simulate.command()
def openb(
    nodes: Annotated[Path, typer.Option(help="CSV of the nodes.", **FILE)],
    pods: Annotated[Path, typer.Option(help="CSV of the pods.", **FILE)],
    seed: Annotated[int, typer.Option(help="Which order of arrivals.")],
    arrivals: Annotated[
        Path | None,
        typer.Option(help="NPZ with the arrivals by seed; made from the seed if not given.", **FILE),
    ] = None,
    moves: Annotated[
        float,
        typer.Option(help="Which part of the pods may be moved, once each: another protocol.", min=0, max=1),
    ] = 0.0,
    *,
    as_json: JsonOption = False,
) -> None:
    """Replay the public packing protocol (docs/packing.md) with the allocator that the farm uses."""
    from cloudfarm.simulate.openb import simulate as run  # noqa: PLC0415 - numpy is slow to import

    show(asdict(run(nodes, pods, seed, arrivals, moves)), as_json=as_json)


@simulate.command()
def tenants(
    hosts: Annotated[int, typer.Option(help="Hosts of the farm.")] = 8,
    gpus: Annotated[int, typer.Option(help="GPUs of each host.")] = 8,
    workload: Annotated[
        str,
        typer.Option(
            help=f"{GENERATOR}, or a file of leases (docs/scheduling.md): then each tenant of it is "
            "promised as many hosts as any other, and load, hours, seed and burst say nothing."
        ),
    ] = GENERATOR,
    policy: Annotated[str, typer.Option(help="fair (the live one), fair-no-preempt or first-come.")] = "fair",
    load: Annotated[float, typer.Option(help="GPU-time asked for, as a part of the farm's.")] = 1.0,
    hours: Annotated[float, typer.Option(help="For so long leases arrive.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Of the workload.")] = 42,
    min_run_s: Annotated[
        int, typer.Option(help="How long a borrower runs before it may be preempted.")
    ] = 300,
    notice_s: Annotated[int, typer.Option(help="How long it is told before.")] = 60,
    spare_gpus: Annotated[
        int, typer.Option(help="How many GPUs borrowers leave free for who is promised them.", min=0)
    ] = 0,
    moves: Annotated[
        int, typer.Option(help="How many may be on the move at once to make room for others.", min=0)
    ] = 0,
    *,
    burst: Annotated[
        bool, typer.Option("--burst", help="One tenant asks for 4 times its guarantee.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Let many tenants share a farm under the live policy: waits, shares, what is taken back (docs/scheduling.md)."""
    from cloudfarm.scheduler.rules import Rules  # noqa: PLC0415
    from cloudfarm.simulate.tenants import Setup, run  # noqa: PLC0415
    from cloudfarm.simulate.workloads import read_workload  # noqa: PLC0415

    rules = Rules(
        min_run_ms=1000 * min_run_s, preempt_notice_ms=1000 * notice_s, spare_gpus=spare_gpus, moves=moves
    )
    setup = Setup(hosts, gpus, load, burst, hours, seed, rules, workload, policy)
    works = None if workload == GENERATOR else read_workload(Path(workload))
    show(run(setup, works).as_json(), as_json=as_json)


@simulate.command()
def coverage(
    hosts: Annotated[int, typer.Option(help="Hosts of the farm.")] = 8,
    gpus: Annotated[int, typer.Option(help="GPUs of each host.")] = 8,
    load: Annotated[float, typer.Option(help="GPU-time asked for, as a part of the farm's.")] = 1.0,
    hours: Annotated[float, typer.Option(help="For so long leases arrive.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Of the workload.")] = 42,
    *,
    burst: Annotated[
        bool, typer.Option("--burst", help="One tenant asks for 4 times its guarantee.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Let many tenants share a farm, and compare when leases start with what they were told (docs/scheduling.md)."""
    from cloudfarm.simulate.coverage import report, samples  # noqa: PLC0415
    from cloudfarm.simulate.tenants import Setup  # noqa: PLC0415

    figures = report(samples(Setup(hosts, gpus, load, burst, hours, seed)))
    show({part: asdict(each) for part, each in figures.items()}, as_json=as_json)
