"""Commands about quotas."""

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cloudfarm.cli.session import JsonOption, connect, out, show
from cloudfarm.errors import InvalidInputError

MILLI = 1000
GIB = 1024**3
COLUMNS = ("quota", "guarantee", "limit", "weight", "held")
_TEXTS: Mapping[str, Callable[[int], str]] = {
    "milli_gpus": lambda amount: f"{amount / MILLI:g} GPU",
    "cpus": lambda amount: f"{amount} CPU",
    "memory_bytes": lambda amount: f"{amount / GIB:g} GiB",
}

quota = typer.Typer(no_args_is_help=True, help="Quotas: who is promised how much.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(quota, name="quota")


@quota.command("show")
def quota_show(*, as_json: JsonOption = False) -> None:
    """Show the quotas as a tree, and what each holds."""
    with connect() as farm:
        found = farm.get("/v1/quotas")
    if as_json:
        show(found, as_json=True)
    else:
        show(_drawn(found["in_force"]), as_json=False, columns=COLUMNS)


@quota.command("set")
def quota_set(
    file: Annotated[Path, typer.Argument(help="JSON or TOML: a list of quotas, or one named quotas.")],
) -> None:
    """Put the tree of a file in the place of the one there is."""
    tree = read_tree(file)
    with connect() as farm:
        farm.put("/v1/quotas", tree)
    out.print(f"{len(tree)} quotas are in force", highlight=False)


def read_tree(file: Path) -> list[Any]:
    """Return the quotas of a file as they are written there.

    What ``cloudfarm quota show --json`` prints is such a file.

    Raises:
        InvalidInputError: if it cannot be read or holds something else.
    """
    try:
        text = file.read_text(encoding="utf-8")
        found = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
        tree = found.get("quotas") if isinstance(found, dict) else found
        json.dumps(tree, allow_nan=False)  # TOML has dates, and both have numbers that JSON has not
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInputError(f"{file}: {error}") from None
    if not isinstance(tree, list):
        raise InvalidInputError(f"{file}: there is no list of quotas in it")
    return tree


def _drawn(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    depths: dict[str | None, int] = {None: -1}
    drawn = []
    for row in rows:
        depth = depths[row["id"]] = depths[row["parent"]] + 1
        drawn.append(
            {
                "quota": "  " * depth + row["id"],
                "guarantee": _amounts(row["guarantee"], left_out=0, if_all="nothing"),
                "limit": _amounts(row["limit"], left_out=None, if_all="none"),
                "weight": row["weight"],
                "held": _amounts(row["held"], left_out=0, if_all="nothing") if row["held"] else "",
            }
        )
    return drawn


def _amounts(amounts: Mapping[str, Any], *, left_out: int | None, if_all: str) -> str:
    said = [text(amounts[name]) for name, text in _TEXTS.items() if amounts[name] != left_out]
    return ", ".join(said) or if_all
