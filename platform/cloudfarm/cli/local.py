"""Commands about the farm's processes on this machine."""

import asyncio
import os
from typing import Annotated, Any

import typer

from cloudfarm.cli.session import JsonOption, StateOption, connect, out, show, state_dir
from cloudfarm.container import load_settings
from cloudfarm.errors import NotFoundError
from cloudfarm.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(join)


def up(
    state: StateOption = None,
    hosts: Annotated[int | None, typer.Option(help="Hosts on this machine.")] = None,
    gpus: Annotated[
        int | None, typer.Option(help="Simulated GPUs of each host (default: the real ones, or 4).")
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="Database URL (default: SQLite in the state folder).")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port of the front door.")] = None,
    bind: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    internal_port_base: Annotated[int | None, typer.Option(help="First of Ray's own ports.")] = None,
    isolation: Annotated[str | None, typer.Option(help="best, user or none.")] = None,
) -> None:
    """Start a farm on this machine, or do nothing if it runs; after a crash, recover."""
    from cloudfarm.operations import bring_up  # noqa: PLC0415 - heavy

    given: dict[str, Any] = {
        "state_dir": state_dir(state),
        "hosts": hosts,
        "gpus": gpus,
        "database_url": database,
        "port": port,
        "bind_address": bind,
        "internal_port_base": internal_port_base,
        "isolation": isolation,
    }
    settings = Settings(**{key: value for key, value in given.items() if value is not None})
    farm = bring_up(settings, lambda text: out.print(f"· {text}", highlight=False))
    out.print(f"farm: {farm.url}", highlight=False)
    out.print(f"operator token: in {farm.paths.operator_token_file}", highlight=False, soft_wrap=True)
    out.print(f"dashboard: {farm.url}/dashboard/ (operators)", highlight=False)


def down(
    state: StateOption = None,
    wait_s: Annotated[float, typer.Option(help="How long leases may take to end in order.")] = 30.0,
) -> None:
    """End every lease, stop every process of the farm on this machine; the state stays."""
    from cloudfarm.operations import drain  # noqa: PLC0415 - heavy
    from cloudfarm.raylayer.farm import LocalFarm  # noqa: PLC0415 - imports Ray

    folder = state_dir(state)
    if not (folder / "settings.json").exists():
        raise NotFoundError(f"there is no farm in {folder}")
    farm = LocalFarm(load_settings(folder), progress=lambda text: out.print(f"· {text}", highlight=False))
    if farm.is_healthy():
        out.print("· ending leases", highlight=False)
        left = asyncio.run(drain(farm.settings, wait_s))
        if left:
            out.print(f"· not ended in order, killed now: {', '.join(left)}", highlight=False)
    farm.down()
    out.print("the farm is down")


def status(state: StateOption = None, *, as_json: JsonOption = False) -> None:
    """Show the farm: hosts, GPUs, leases."""
    if state is not None:
        os.environ["CLOUDFARM_STATE_DIR"] = str(state_dir(state))
    with connect() as farm:
        show(farm.get("/v1/farm"), as_json=as_json)


def join(
    gcs_address: Annotated[str, typer.Argument(help="The head's Ray address, host:port.")],
    host: Annotated[str | None, typer.Option(help="This host's id (default: its name).")] = None,
    bind: Annotated[str | None, typer.Option(help="This machine's address in the farm's network.")] = None,
    state: StateOption = None,
) -> None:
    """Make this machine a host of a farm whose head runs on another one."""
    from cloudfarm.raylayer.agent import host_name  # noqa: PLC0415 - imports Ray
    from cloudfarm.raylayer.farm import LocalFarm  # noqa: PLC0415

    given: dict[str, Any] = {"state_dir": state_dir(state), "bind_address": bind}
    settings = Settings(**{key: value for key, value in given.items() if value is not None})
    LocalFarm(settings).join(gcs_address, host or host_name())
    out.print(f"joined {gcs_address} as {host or host_name()}", highlight=False)
