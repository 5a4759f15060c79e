"""Charts of a comparison: PNG files, and a page with the same charts in it. Needs matplotlib (the extra ``plots``).

The colours are of Okabe and Ito's palette, which colour-blind people can tell apart; lines differ in their style too.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cloudfarm.domain.quantities import MILLI
from cloudfarm.errors import ConflictError, InvalidInputError
from cloudfarm.simulate.compare import Curve, Numbers, Outcome
from cloudfarm.simulate.report import Comparison, page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES: Mapping[str, Mapping[str, Any]] = {
    "past": {"color": "#b0b0b0", "linewidth": 3.2, "linestyle": "-"},
    "replay": {"color": "#0072b2", "linewidth": 1.6, "linestyle": (0, (5, 1.5))},
    "what-if": {"color": "#d55e00", "linewidth": 1.8, "linestyle": "-"},
}
"""By an outcome's name."""
LOOK = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#8c959f",
    "axes.grid": True,
    "axes.labelcolor": "#1f2328",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica", "sans-serif"],
    "font.size": 10,
    "grid.color": "#e4e8ec",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "xtick.color": "#59636e",
    "ytick.color": "#59636e",
}
WIDTH_IN = 10.0
DPI = 150
BINS = 600
"""More steps than this are averaged over equal times: nobody could tell them apart."""
MOST_PANELS = 12
"""Of so many tenants at most the waits are drawn."""
SHORTEST_S = 1.0
"""Waits below this are drawn as this: the axis is logarithmic."""
TICKS = (
    (1, "≤ 1 s"), (10, "10 s"), (60, "1 min"), (600, "10 min"), (3600, "1 h"), (36_000, "10 h"), (432_000, "5 d"),
    (4_320_000, "50 d"),
)  # fmt: skip
REPORT = "report.html"


def need_matplotlib() -> None:
    """See that charts can be drawn.

    Raises:
        ConflictError: if matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401, PLC0415 - an extra
    except ImportError:
        raise ConflictError(
            "charts need matplotlib, which is not installed; run: pip install 'cloudfarm[plots]'"
        ) from None


def write_plots(comparison: Comparison, folder: Path) -> Sequence[Path]:
    """Write the charts and the page to a folder, which is made if it is not there; return the files.

    Raises:
        ConflictError: if matplotlib is not installed.
        InvalidInputError: if the folder cannot be written to.
    """
    need_matplotlib()
    charts: dict[str, str] = {}
    files: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (caption, draw) in _CHARTS.items():
            with _look():
                figure = draw(comparison)
                figure.savefig(folder / f"{name}.png", dpi=DPI)
                charts[caption] = _svg(figure, name)
            files.append(folder / f"{name}.png")
        (folder / REPORT).write_text(page(comparison, charts), encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"{folder} cannot be written to: {error}") from error
    return [folder / REPORT, *files]


@contextmanager
def _look() -> Iterator[None]:
    import matplotlib as mpl  # noqa: PLC0415

    with mpl.rc_context(LOOK):
        yield


def _svg(figure: "Figure", name: str) -> str:
    """Return a figure for a page in which there are others: its ids begin with its name."""
    out = StringIO()
    figure.savefig(out, format="svg", metadata={"Creator": None, "Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)


def _used(comparison: Comparison) -> "Figure":
    figure, axes = _panel(3.6)
    for outcome in comparison.outcomes:
        curve = outcome.curve()
        _steps(axes, outcome, curve, curve.held)
    for milli_gpus in sorted({outcome.milli_gpus for outcome in comparison.outcomes}):
        axes.axhline(milli_gpus / MILLI, color="#1f2328", linewidth=0.9, linestyle=":")
        axes.annotate(
            f"{milli_gpus / MILLI:g} GPU",
            (1, milli_gpus / MILLI),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="#59636e",
        )
    return _over_time(figure, axes, comparison, "GPUs in use")


def _queue(comparison: Comparison) -> "Figure":
    figure, axes = _panel(3.2)
    for outcome in comparison.outcomes:
        curve = outcome.curve()
        _steps(axes, outcome, curve, curve.waited_for)
    return _over_time(figure, axes, comparison, "GPUs waited for")


def _waits(comparison: Comparison) -> "Figure":
    from matplotlib.figure import Figure  # noqa: PLC0415

    demand = {tenant: comparison.outcomes[0].figures(tenant).leases for tenant in comparison.tenants}
    shown = sorted(sorted(demand), key=lambda tenant: -demand[tenant])[:MOST_PANELS]
    columns = min(3, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(WIDTH_IN, 0.6 + 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    longest_s = max([60.0, *(wait for outcome in comparison.outcomes for wait in outcome.waits_s())])
    for axes, tenant in zip(panels, shown, strict=False):
        for outcome in comparison.outcomes:
            _share_started(axes, outcome, tenant, longest_s)
        axes.set_title(f"{tenant} ({demand[tenant]} leases)", fontsize=10, loc="left")
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    for number, axes in enumerate(panels[: len(shown)]):
        if number + columns >= len(shown):
            axes.tick_params(labelbottom=True)  # also where the last row is not full
        axes.set_xscale("log")
        axes.set_xlim(SHORTEST_S, longest_s * 1.1)
        ticks = [(at, label) for at, label in TICKS if at <= longest_s]
        axes.set_xticks([at for at, _ in ticks], [label for _, label in ticks], fontsize=8)
        axes.minorticks_off()
        axes.set_ylim(0, 102)
    some = (
        f" (the {len(shown)} of {len(demand)} tenants with most leases)" if len(shown) < len(demand) else ""
    )
    figure.supxlabel(f"wait to the first start{some}", fontsize=10)
    figure.supylabel("leases that have started, %", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), fontsize=9)
    return figure


def _share_started(axes: "Axes", outcome: Outcome, tenant: str, longest_s: float) -> None:
    """Draw which part of a tenant's leases had started after how long; those that never did are in the whole."""
    waits = np.sort(np.maximum(np.array(outcome.waits_s(tenant), dtype=np.float64), SHORTEST_S))
    leases = max(1, outcome.figures(tenant).leases)
    x = np.concatenate([[SHORTEST_S], waits, [longest_s * 1.1]])
    y = np.concatenate([[0.0], np.arange(1, len(waits) + 1), [len(waits)]]) * 100 / leases
    line = axes.step(x, y, where="post", label=_label(outcome), **STYLES[outcome.name])[0]
    line.set_gid(f"{outcome.name}-{tenant}")


def _label(outcome: Outcome) -> str:
    return f"{outcome.name}: {outcome.title}"


def _panel(height_in: float) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots()


def _steps(axes: "Axes", outcome: Outcome, curve: Curve, milli_gpus: Numbers) -> None:
    times_ms, values = averaged(curve, milli_gpus)
    x = times_ms.astype("datetime64[ms]")
    y = np.append(values, values[-1]) / MILLI
    line = axes.step(x, y, where="post", label=_label(outcome), **STYLES[outcome.name])[0]
    line.set_gid(outcome.name)
    if outcome.name == "past":
        axes.fill_between(x, y, step="post", color="#8c8c8c", alpha=0.15, linewidth=0)


def averaged(curve: Curve, values: Numbers) -> tuple[Numbers, Numbers]:
    """Return a curve's values as they are if they are few, else their means over equal times."""
    times_ms = curve.times_ms.astype(np.float64)
    if len(values) <= BINS:
        return times_ms, values
    sums = np.concatenate([[0.0], np.cumsum(values * curve.lengths_ms)])
    edges = np.linspace(times_ms[0], times_ms[-1], BINS + 1)
    return edges, np.diff(np.interp(edges, times_ms, sums)) / np.diff(edges)


def _over_time(figure: "Figure", axes: "Axes", comparison: Comparison, label: str) -> "Figure":
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # noqa: PLC0415

    window = comparison.window
    axes.set_xlim(np.datetime64(window.from_ms, "ms"), np.datetime64(window.until_ms, "ms"))
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlabel("time, UTC")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=len(comparison.outcomes), fontsize=9, borderpad=0
    )
    return figure


_CHARTS: Mapping[str, tuple[str, Callable[[Comparison], "Figure"]]] = {
    "utilisation": ("GPUs in use over time", _used),
    "queue": ("GPUs waited for over time", _queue),
    "waits": ("How long leases waited: part of a tenant's leases that had started after a time", _waits),
}
"""By the file's name: a caption, and what draws it."""
