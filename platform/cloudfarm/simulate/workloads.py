"""Workloads as files: one lease a line, as a JSON object. ``docs/scheduling.md`` describes the members.

Times are whole milliseconds from the workload's beginning, so a workload that is written and read again is the same.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudfarm.domain.lease import Ask
from cloudfarm.domain.quantities import MAX_HOURS, Shape, parse_shape
from cloudfarm.domain.tenant import check_slug
from cloudfarm.errors import CloudfarmError, InvalidInputError
from cloudfarm.simulate.world import Work

LONGEST_MS = MAX_HOURS * 3_600_000
LAST_MS = 2**53
"""Above this JSON's numbers are no longer exact everywhere."""
MOST_CPUS = 4096
MOST_BYTES = 2**50
MOST_PRIORITY = 100
LONGEST_TEXT = 200
CHECKPOINT_MS = 600_000


def write_workload(path: Path, works: Iterable[Work], begin_ms: int = 0) -> None:
    """Write a workload that begins at a moment, the first arrival first.

    Raises:
        InvalidInputError: if the file cannot be written.
    """
    found = sorted(works, key=lambda work: (work.arrives_ms, work.id))
    lines = [json.dumps(_row(work, begin_ms)) + "\n" for work in found]
    try:
        path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error}") from error


def read_workload(path: Path) -> Sequence[Work]:
    """Read a workload, in the order of arrival.

    Raises:
        InvalidInputError: if it cannot be read; the line is named.
    """
    works: dict[str, Work] = {}
    for line, text in _lines(path):
        try:
            work = _work(text)
        except CloudfarmError as error:
            raise InvalidInputError(f"{path.name}, line {line}: {error.detail}") from None
        if work.id in works:
            raise InvalidInputError(f"{path.name}, line {line}: there is a lease {work.id} before it")
        works[work.id] = work
    if not works:
        raise InvalidInputError(f"{path.name}: no leases")
    return sorted(works.values(), key=lambda work: (work.arrives_ms, work.id))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield line, text
    except OSError as error:
        raise InvalidInputError(f"{path.name} cannot be read: {error}") from error


def _row(work: Work, begin_ms: int) -> Mapping[str, Any]:
    """Return a lease's members; those that say what would hold anyhow are left out."""
    values = {name: member.of(work) for name, member in MEMBERS.items()}
    for name in _FROM_BEGIN:
        if values[name] is not None:
            values[name] = max(0, values[name] - begin_ms)
    return {
        name: value
        for name, value in values.items()
        if MEMBERS[name].is_needed or value != MEMBERS[name].default
    }


def _work(text: bytes) -> Work:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"it is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise InvalidInputError("it is not a JSON object")
    unknown = [name for name in row if name not in MEMBERS]
    if unknown:
        raise InvalidInputError(f"there is no member {unknown[0][:40]!r}; there are {', '.join(MEMBERS)}")
    missing = [name for name, member in MEMBERS.items() if member.is_needed and name not in row]
    if missing:
        raise InvalidInputError(f"it has no {', '.join(missing)}")
    has = {
        name: member.read(name, row[name]) if name in row else member.default
        for name, member in MEMBERS.items()
    }
    shape: Shape = has["shape"]
    if has["gives_up_ms"] is not None and has["gives_up_ms"] < has["arrival_ms"]:
        raise InvalidInputError("it is given up (gives_up_ms) before it arrives (arrival_ms)")
    return Work(
        id=has["id"],
        tenant=has["tenant"],
        ask=Ask(
            shape=shape,
            cpus=has["cpus"],
            memory_bytes=has["memory_bytes"],
            duration_ms=has["limit_ms"],
            gpu_model=has["gpu_model"],
            distinct_gpus=has["distinct_gpus"],
            priority=has["priority"],
            not_before_ms=has["not_before_ms"],
        ),
        arrives_ms=has["arrival_ms"],
        runs_ms=has["run_ms"],
        project=has["project"],
        checkpoint_ms=has["checkpoint_ms"],
        saves_when_told=has["saves_when_told"],
        gives_up_ms=has["gives_up_ms"],
    )


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InvalidInputError(f"{name} is a whole number from {least} to {most}, not {_shown(value)}")
        return value

    return read


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_TEXT:
        raise InvalidInputError(f"{name} is a text of 1 to {LONGEST_TEXT} letters, not {_shown(value)}")
    return value


def _slug(name: str, value: Any) -> str:
    return check_slug(_text(name, value), what=name)


def _shape(name: str, value: Any) -> Shape:
    return parse_shape(_text(name, value))


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name} is true or false, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return json.dumps(value)[:40]


@dataclass(frozen=True, slots=True)
class _Member:
    """One member of a line."""

    read: Callable[[str, Any], Any]
    of: Callable[[Work], Any]
    default: Any = None
    is_needed: bool = False


MEMBERS: Mapping[str, _Member] = {
    "id": _Member(_text, lambda work: work.id, is_needed=True),
    "tenant": _Member(_slug, lambda work: work.tenant, is_needed=True),
    "project": _Member(_slug, lambda work: work.project, ""),
    "shape": _Member(_shape, lambda work: str(work.ask.shape), is_needed=True),
    "cpus": _Member(_whole(0, MOST_CPUS), lambda work: work.ask.cpus, is_needed=True),
    "memory_bytes": _Member(_whole(0, MOST_BYTES), lambda work: work.ask.memory_bytes, is_needed=True),
    "limit_ms": _Member(_whole(1, LONGEST_MS), lambda work: work.ask.duration_ms, is_needed=True),
    "arrival_ms": _Member(_whole(0, LAST_MS), lambda work: work.arrives_ms, is_needed=True),
    "run_ms": _Member(_whole(0, LONGEST_MS), lambda work: work.runs_ms, is_needed=True),
    "checkpoint_ms": _Member(_whole(1, LONGEST_MS), lambda work: work.checkpoint_ms, CHECKPOINT_MS),
    "saves_when_told": _Member(_flag, lambda work: work.saves_when_told, default=False),
    "gpu_model": _Member(_text, lambda work: work.ask.gpu_model),
    "distinct_gpus": _Member(_flag, lambda work: work.ask.distinct_gpus, default=True),
    "priority": _Member(_whole(-MOST_PRIORITY, MOST_PRIORITY), lambda work: work.ask.priority, 0),
    "not_before_ms": _Member(_whole(0, LAST_MS), lambda work: work.ask.not_before_ms),
    "gives_up_ms": _Member(_whole(0, LAST_MS), lambda work: work.gives_up_ms),
}
"""By its name in a line."""
_FROM_BEGIN = ("arrival_ms", "not_before_ms", "gives_up_ms")
"""Those that are moments."""
