"""A comparison in words: tables, plain data, and a page with everything in it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from string import Template

from cloudfarm.domain.quantities import MILLI
from cloudfarm.simulate.compare import Figures, Outcome, Window

WHOLE = "the whole farm"
COLUMNS = (
    "tenant", "case", "leases", "never started", "wait", "wait p50", "wait p95", "took", "took p50", "took p95",
    "used", "preempted", "lost GPU-h", "idle",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same leases, as they really were and as they would have been."""

    outcomes: tuple[Outcome, ...]
    """The past first."""
    notes: tuple[str, ...]
    """What to know when one reads them."""

    @property
    def window(self) -> Window:
        """The time that is compared."""
        return self.outcomes[0].window

    @property
    def tenants(self) -> tuple[str, ...]:
        """The tenants, by name."""
        return self.outcomes[0].tenants

    @property
    def title(self) -> str:
        """From when to when."""
        return f"{clock(self.window.from_ms)} to {clock(self.window.until_ms)} UTC"

    def as_json(self) -> Mapping[str, object]:
        """Return plain data."""
        return {
            "from_ms": self.window.from_ms,
            "until_ms": self.window.until_ms,
            "notes": list(self.notes),
            "outcomes": {
                outcome.name: {
                    "title": outcome.title,
                    "milli_gpus": outcome.milli_gpus,
                    "farm": asdict(outcome.figures()),
                    "tenants": {tenant: asdict(outcome.figures(tenant)) for tenant in self.tenants},
                }
                for outcome in self.outcomes
            },
        }

    def rows(self) -> Sequence[Mapping[str, str]]:
        """Return the table: for the whole farm and for each tenant, every outcome."""
        return [
            dict(
                zip(
                    COLUMNS,
                    (who if first else "", outcome.name, *_cells(outcome.figures(tenant))),
                    strict=True,
                )
            )
            for who, tenant in ((WHOLE, None), *((each, each) for each in self.tenants))
            for first, outcome in zip(_first(), self.outcomes, strict=False)
        ]

    def legend(self) -> Sequence[str]:
        """Return what each outcome is."""
        return [
            f"{outcome.name}: {outcome.title} ({outcome.milli_gpus / MILLI:g} GPU)"
            for outcome in self.outcomes
        ]


def clock(at_ms: int) -> str:
    """Return a moment in UTC, to the minute."""
    return datetime.fromtimestamp(at_ms / MILLI, UTC).strftime("%Y-%m-%d %H:%M")


def span(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for most, unit_s, unit in ((60, 1, "s"), (3600, 60, "min"), (172_800, 3600, "h")):
        if seconds < most:
            return f"{seconds / unit_s:.3g} {unit}"
    return f"{seconds / 86_400:.3g} d"


def page(comparison: Comparison, charts: Mapping[str, str]) -> str:
    """Return a page with a table and charts in it, that needs nothing else.

    Args:
        comparison: what is told of.
        charts: SVG by caption.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(row[name])}</td>" for name in COLUMNS) + "</tr>"
        for row in comparison.rows()
    )
    return _PAGE.substitute(
        title=escape(comparison.title),
        legend="".join(f"<li>{escape(line)}</li>" for line in comparison.legend()),
        head=head,
        body=body,
        charts="\n".join(
            f"<figure><figcaption>{escape(caption)}</figcaption>\n{svg}</figure>"
            for caption, svg in charts.items()
        ),
        notes="".join(f"<li>{escape(note)}</li>" for note in comparison.notes),
    )


def _first() -> Iterator[bool]:
    yield True
    while True:
        yield False


def _cells(figures: Figures) -> Sequence[str]:
    return (
        str(figures.leases),
        str(figures.not_started),
        *(span(each) for each in (figures.wait_mean_s, figures.wait_p50_s, figures.wait_p95_s)),
        *(span(each) for each in (figures.took_mean_s, figures.took_p50_s, figures.took_p95_s)),
        f"{figures.utilisation:.1%}",
        str(figures.preemptions),
        f"{figures.lost_gpu_hours:.3g}",
        f"{figures.idle_wanted:.1%}",
    )


_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>Cloudfarm: what if, $title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; background: #fff; max-width: 1080px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; }
p.when { color: #59636e; margin-top: .2rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 2px solid #1f2328; padding: .3rem .7rem .3rem 0; vertical-align: bottom; }
td { border-bottom: 1px solid #d1d9e0; padding: .25rem .7rem .25rem 0; white-space: nowrap; }
div.wide { overflow-x: auto; }
figure { margin: 2rem 0; }
figcaption { font-weight: 600; margin-bottom: .4rem; }
svg { width: 100%; height: auto; }
ul { padding-left: 1.2rem; }
ul.notes { color: #59636e; font-size: 13px; }
</style>
</head>
<body>
<h1>What if</h1>
<p class="when">$title</p>
<ul>$legend</ul>
<div class="wide"><table>
<thead><tr>$head</tr></thead>
<tbody>
$body
</tbody>
</table></div>
$charts
<ul class="notes">$notes</ul>
</body>
</html>
""")
