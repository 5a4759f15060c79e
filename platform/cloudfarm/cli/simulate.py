"""Simulations: the farm's own decisions on public workloads, without a farm."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cloudfarm.cli.session import JsonOption, show

simulate = typer.Typer(no_args_is_help=True, help="The farm's decisions on public workloads, without a farm.")

FILE = {"exists": True, "dir_okay": False, "readable": True}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(simulate, name="simulate")


@simulate.command()
def openb(
    nodes: Annotated[Path, typer.Option(help="CSV of the nodes.", **FILE)],
    pods: Annotated[Path, typer.Option(help="CSV of the pods.", **FILE)],
    seed: Annotated[int, typer.Option(help="Which order of arrivals.")],
    arrivals: Annotated[
        Path | None,
        typer.Option(help="NPZ with the arrivals by seed; made from the seed if not given.", **FILE),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Replay the public packing protocol (docs/packing.md) with the allocator that the farm uses."""
    from cloudfarm.simulate.openb import simulate as run  # noqa: PLC0415 - numpy is slow to import

    show(asdict(run(nodes, pods, seed, arrivals)), as_json=as_json)
