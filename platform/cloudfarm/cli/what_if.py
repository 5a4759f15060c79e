"""``cloudfarm simulate history``: the farm's own past under other hosts, quotas or policies."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloudfarm.cli.quotas import read_tree
from cloudfarm.cli.session import JsonOption, StateOption, errors, out, show, state_dir
from cloudfarm.container import default_limit_of, load_settings, memory_of, open_past, rules_of
from cloudfarm.errors import InvalidInputError, NotFoundError
from cloudfarm.settings import Settings

if TYPE_CHECKING:
    from cloudfarm.simulate.history import Past


def history(
    state: StateOption = None,
    database: Annotated[
        str | None, typer.Option(help="Database URL (default: that of the farm in the state folder).")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", help="2026-11-21 or 2026-11-21T08:00, UTC (default: the first lease)."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Likewise (default: when the farm was last seen).")
    ] = None,
    hosts: Annotated[int | None, typer.Option(help="What if there were so many hosts, all alike?")] = None,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs of each new host (default: as the most common host has).")
    ] = None,
    add_hosts: Annotated[int, typer.Option(help="What if there were so many hosts more?")] = 0,
    without_host: Annotated[
        list[str] | None, typer.Option(help="What if this host were not there? May be given several times.")
    ] = None,
    quotas: Annotated[
        Path | None,
        typer.Option(help="What if these quotas were in force? As `cloudfarm quota set` takes them."),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="What if another policy decided? fair-no-preempt or first-come.")
    ] = None,
    min_run_s: Annotated[
        int | None, typer.Option(min=0, help="What if borrowers ran for at least so long?")
    ] = None,
    notice_s: Annotated[
        int | None, typer.Option(min=1, help="What if they were told so long before?")
    ] = None,
    checkpoint_s: Annotated[int, typer.Option(min=1, help="How often work is taken to be saved.")] = 600,
    plots: Annotated[
        Path | None, typer.Option(help="Write charts and a page with them to this folder.")
    ] = None,
    export: Annotated[Path | None, typer.Option(help="Write the past as a workload to this file.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Replay the farm's own past by its live policy, as it was and as it would have been (docs/operator-guide.md)."""
    from cloudfarm.api.quota_schemas import read_quotas  # noqa: PLC0415 - FastAPI and numpy are slow to import
    from cloudfarm.simulate import what_if  # noqa: PLC0415
    from cloudfarm.simulate.history import retell, window_of  # noqa: PLC0415
    from cloudfarm.simulate.plots import need_matplotlib, write_plots  # noqa: PLC0415
    from cloudfarm.simulate.report import COLUMNS  # noqa: PLC0415
    from cloudfarm.simulate.workloads import write_workload  # noqa: PLC0415

    if plots is not None:
        need_matplotlib()
    if hosts is not None and (add_hosts or without_host):
        raise InvalidInputError(
            "--hosts says how many there are: --add-hosts and --without-host say nothing then"
        )
    if gpus is not None and hosts is None and not add_hosts:
        raise InvalidInputError("--gpus is of new hosts: say with --hosts or --add-hosts how many")
    settings = _settings(state, database)
    past = asyncio.run(_read(settings))
    told = retell(
        past, window_of(past, _moment(from_, "--from"), _moment(until, "--until")), 1000 * checkpoint_s
    )
    if export is not None:
        write_workload(export, told.works, told.begin_ms)
        _say(f"written: {export}")

    limit, present = default_limit_of(settings), what_if.present(past.hosts)
    base = what_if.Scenario(
        present, what_if.tree_of(past, present, limit), rules_of(settings), memory_of(settings)
    )
    changed = what_if.changed(present, count=hosts, gpus=gpus, add=add_hosts, without=without_host or ())
    rules = base.rules
    other = what_if.Scenario(
        changed,
        what_if.tree_of(past, changed, limit, None if quotas is None else read_quotas(read_tree(quotas))),
        replace(
            rules,
            min_run_ms=rules.min_run_ms if min_run_s is None else 1000 * min_run_s,
            preempt_notice_ms=rules.preempt_notice_ms if notice_s is None else 1000 * notice_s,
        ),
        base.memory,
        policy or base.policy,
    )
    comparison = what_if.compare(past, told, base, other)
    if plots is not None:
        for file in write_plots(comparison, plots):
            _say(f"written: {file}")
    if as_json:
        show(comparison.as_json(), as_json=True)
        return
    out.print(comparison.title, highlight=False)
    for line in comparison.legend():
        out.print(f"  {line}", highlight=False, soft_wrap=True)
    show(comparison.rows(), as_json=False, columns=COLUMNS)
    for note in comparison.notes:
        out.print(f"· {note}", highlight=False, soft_wrap=True)


def _say(text: str) -> None:
    """Tell of a file, beside the answer, which may be JSON."""
    errors.print(text, highlight=False, markup=False, soft_wrap=True)


def _settings(state: Path | None, database: str | None) -> Settings:
    folder = state_dir(state)
    if (folder / "settings.json").exists():
        settings = load_settings(folder)
    elif database is not None:
        settings = Settings(state_dir=folder)
    else:
        raise NotFoundError(f"there is no farm in {folder}; name its folder with --state, or its --database")
    return settings if database is None else settings.model_copy(update={"database_url": database})


async def _read(settings: Settings) -> "Past":
    from cloudfarm.simulate.history import read_past  # noqa: PLC0415

    store = await open_past(settings)
    try:
        return await read_past(store)
    finally:
        await store.close()


def _moment(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
        return int((at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise InvalidInputError(f"{name}: write a moment as 2026-11-21 or 2026-11-21T08:00") from None
