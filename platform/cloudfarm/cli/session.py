"""Which farm and whose token a command uses, and how answers are printed."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from cloudfarm.client import FarmClient
from cloudfarm.errors import UnauthenticatedError
from cloudfarm.settings import default_state_dir

OPERATOR_TOKEN = "operator-token"  # noqa: S105 - a file's name

StateOption = Annotated[
    Path | None, typer.Option("--state", help="State folder of the farm on this machine.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", help="Of this tenant (operators).")]

out = Console()
errors = Console(stderr=True)


def state_dir(given: Path | None) -> Path:
    """Return the state folder: as given, by CLOUDFARM_STATE_DIR, or the default."""
    found = given or Path(os.environ.get("CLOUDFARM_STATE_DIR") or default_state_dir())
    return found.expanduser().absolute()


def connect() -> FarmClient:
    """Return a client for CLOUDFARM_URL and CLOUDFARM_TOKEN, or for the farm on this machine as its operator.

    Raises:
        UnauthenticatedError: if there is neither a token nor a local farm.
    """
    folder = state_dir(None)
    token = os.environ.get("CLOUDFARM_TOKEN", "")
    if not token and (folder / OPERATOR_TOKEN).exists():
        token = (folder / OPERATOR_TOKEN).read_text().strip()
    if not token:
        raise UnauthenticatedError(
            "set CLOUDFARM_TOKEN to your token (and CLOUDFARM_URL to the farm's address)"
        )
    return FarmClient(os.environ.get("CLOUDFARM_URL") or local_url(folder), token)


def local_url(folder: Path) -> str:
    """Return the address of the farm on this machine."""
    settings = folder / "settings.json"
    if settings.exists():
        found = json.loads(settings.read_text())
        return f"http://{found['bind_address']}:{found['port']}"
    return "http://127.0.0.1:8000"


def show(answer: Any, *, as_json: bool, columns: tuple[str, ...] = ()) -> None:
    """Print an answer: as JSON, as a table of the columns, or as lines ``key: value``."""
    if as_json:
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    elif isinstance(answer, list):
        # What has no room in its column goes on below: half of a path or an id is of no use.
        table = Table(*(Column(each, overflow="fold") for each in columns), box=None, pad_edge=False)
        for row in answer:
            table.add_row(*(_cell(row.get(column)) for column in columns))
        out.print(table)
    elif isinstance(answer, dict):
        for key, value in answer.items():
            if value not in (None, "", []):
                out.print(f"{key}: {_cell(value)}", highlight=False, soft_wrap=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
