"""Figures and curves of what became of leases, on cases counted by hand; the page and the charts."""

import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudfarm.errors import ConflictError, InvalidInputError
from cloudfarm.simulate import plots
from cloudfarm.simulate.compare import Course, Curve, Outcome, Window
from cloudfarm.simulate.report import COLUMNS, Comparison, page, span

HOUR = 3_600_000
WINDOW = Window(0, 10 * HOUR)


def course(id_, asked, *segments, over=None, milli=1000, **more):
    fields = {"is_new": True, "is_known": over is not None, **more}
    return Course(
        id_,
        id_.rstrip("0123456789"),
        milli,
        asked * HOUR,
        tuple((start * HOUR, end * HOUR) for start, end in segments),
        None if over is None else over * HOUR,
        **fields,
    )


TWO_GPUS = (
    course("aa1", 0, (0, 4), (6, 10), preempted=1, lost_ms=HOUR),  # runs on
    course("aa2", 1, (4, 8), over=8, milli=500),
    course("bb1", 2, over=5, is_known=False),  # given up
    course("bb2", 8, milli=2000),  # waits on
    course("bb3", 0, (0, 1), over=1, is_new=False),  # was there before
)
PAST = Outcome("past", "as it really was", 2000, WINDOW, TWO_GPUS)
WHAT_IF = Outcome("what-if", "3 hosts", 3000, WINDOW, (course("aa1", 0, (0, 8), over=8), *TWO_GPUS[1:]))


def comparison():
    again = Outcome("replay", "<replayed>", 2000, WINDOW, TWO_GPUS)
    return Comparison((PAST, again, WHAT_IF), ("x < y",))


def test_the_curve_of_what_was_held_and_waited_for():
    curve = PAST.curve()
    assert (curve.times_ms / HOUR).tolist() == [0, 1, 2, 4, 5, 6, 8, 10]
    assert curve.held.tolist() == [2000, 1000, 1000, 500, 500, 1500, 1000]
    assert curve.waited_for.tolist() == [0, 500, 1500, 2000, 1000, 0, 2000]
    own = PAST.curve("bb")
    assert own.times_ms.tolist() == curve.times_ms.tolist()
    assert own.waited_for.tolist() == [0, 0, 1000, 1000, 0, 0, 2000]


def test_the_figures():
    figures = PAST.figures()
    assert (figures.leases, figures.not_started) == (4, 2)
    waits = [0, 3, 3, 2]  # until the start, the end of the waiting, or that of the window
    assert figures.wait_mean_s == sum(waits) * 3600 / 4
    assert figures.wait_p50_s == 2.5 * 3600
    assert figures.took_mean_s == 7 * 3600  # of aa2, the only one whose run time is known
    assert figures.gpu_hours == pytest.approx(8 + 2 + 1)
    assert figures.utilisation == pytest.approx(11 / 20)
    assert (figures.preemptions, figures.lost_gpu_hours) == (1, 1)
    # Free and waited for at once: 0.5 for an hour, 1 for two hours, 1.5 and 1 for an hour each, 1 for two hours.
    assert figures.idle_wanted == pytest.approx((0.5 + 2 + 1.5 + 1 + 2) / 20)


def test_the_figures_of_one_tenant():
    figures = PAST.figures("bb")
    assert (figures.leases, figures.not_started, figures.preemptions) == (2, 2, 0)
    assert figures.utilisation == pytest.approx(1 / 20)
    assert figures.idle_wanted == pytest.approx((2 + 1 + 2) / 20)
    assert PAST.waits_s("bb") == []
    assert PAST.waits_s() == [0, 3 * 3600]


def test_what_is_not_done_counts_as_long_as_the_window():
    outcome = Outcome("past", "", 1000, WINDOW, (course("aa1", 4, (6, 10), is_known=True), course("aa2", 20)))
    figures = outcome.figures()
    assert figures.took_mean_s == 6 * 3600
    assert figures.wait_p95_s == pytest.approx(
        0.95 * 2 * 3600
    )  # a reservation for later has not begun to wait
    assert figures.idle_wanted == pytest.approx(2 / 10)


def test_nobody_and_nothing():
    figures = Outcome("past", "", 0, WINDOW, ()).figures()
    assert {getattr(figures, name) for name in figures.__slots__} == {0}


@given(st.integers(1, 3 * plots.BINS), st.integers(0, 2**32 - 1))
def test_averaging_keeps_the_sum(number, seed):
    rng = np.random.default_rng(seed)
    values = rng.uniform(0, 10, number).tolist()
    times = np.cumsum([0, *rng.integers(1, 50, number)])
    curve = Curve(times, np.array(values), np.zeros(number))
    edges, means = plots.averaged(curve, curve.held)
    assert len(means) <= plots.BINS
    assert float(means @ np.diff(edges)) == pytest.approx(float(curve.held @ curve.lengths_ms))
    if len(values) <= plots.BINS:
        assert means.tolist() == values


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0, "0 s"), (59.4, "59.4 s"), (60, "1 min"), (5400, "1.5 h"), (172_799, "48 h"), (864_000, "10 d")],
)
def test_times_are_told_in_the_unit_that_suits_them(seconds, says):
    assert span(seconds) == says


def test_the_table_and_the_plain_data():
    found = comparison()
    rows = found.rows()
    assert [(row["tenant"], row["case"]) for row in rows] == [
        ("the whole farm", "past"), ("", "replay"), ("", "what-if"),
        ("aa", "past"), ("", "replay"), ("", "what-if"),
        ("bb", "past"), ("", "replay"), ("", "what-if"),
    ]  # fmt: skip
    assert set(rows[0]) == set(COLUMNS)
    assert (rows[0]["leases"], rows[0]["never started"], rows[0]["used"]) == ("4", "2", "55.0%")
    assert found.as_json()["outcomes"]["what-if"]["tenants"]["aa"]["gpu_hours"] == pytest.approx(10)
    assert found.title == "1970-01-01 00:00 to 1970-01-01 10:00 UTC"
    assert found.legend()[2] == "what-if: 3 hosts (3 GPU)"


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self._open = False

    def handle_starttag(self, tag, _attrs):
        self._open = tag == "td"
        if self._open:
            self.found.append("")

    def handle_data(self, data):
        if self._open:
            self.found[-1] += data

    def handle_endtag(self, tag):
        self._open = self._open and tag != "td"


def test_the_page_has_the_table_and_all_that_strangers_wrote_is_escaped():
    strange = replace(PAST, courses=(replace(TWO_GPUS[0], tenant="<b>"),))
    found = Comparison((*comparison().outcomes[1:], strange)[::-1], ("x < y",))
    text = page(found, {"a < b": "<svg/>"})
    cells = Cells()
    cells.feed(text)
    assert cells.found == [row[name] for row in found.rows() for name in COLUMNS]
    assert "<b>" in cells.found
    tree = ET.fromstring(text.partition("\n")[2])  # noqa: S314 - our own
    assert [each.text for each in tree.iter("figcaption")] == ["a < b"]
    assert [each.text for each in tree.iter("li")][-1] == "x < y"
    assert "&lt;replayed&gt;" in text


def test_the_report_has_every_series_of_every_chart_and_needs_no_other_file(tmp_path):
    files = plots.write_plots(comparison(), tmp_path / "made" / "here")
    assert [file.name for file in files] == ["report.html", "utilisation.png", "queue.png", "waits.png"]
    for file in files[1:]:
        assert file.read_bytes().startswith(b"\x89PNG")
    text = files[0].read_text()
    ids = [each.get("id") for each in ET.fromstring(text.partition("\n")[2]).iter() if each.get("id")]  # noqa: S314
    assert len(ids) == len(set(ids))
    for name in ("past", "replay", "what-if"):
        assert {f"utilisation-{name}", f"queue-{name}", f"waits-{name}-aa", f"waits-{name}-bb"} <= set(ids)
    for reference in ("http://", "https://", "src=", "@import"):
        where = [
            line
            for line in text.splitlines()
            if reference in line and "xmlns" not in line and "rdf" not in line
        ]
        assert where == [], "nothing is fetched"


def test_the_waits_end_below_the_whole_if_some_never_started():
    half = replace(PAST, courses=(*TWO_GPUS, course("bb9", 8, (9, 10))))
    figure = plots._waits(Comparison((half,), ()))
    lines = {line.get_gid(): line for axes in figure.axes for line in axes.lines}
    assert lines["past-aa"].get_ydata().tolist() == [0, 50, 100, 100]
    assert lines["past-aa"].get_xdata().tolist()[:3] == [
        1,
        1,
        3 * 3600,
    ]  # what is below a second is drawn there
    assert lines["past-bb"].get_ydata()[-1] == pytest.approx(100 / 3)  # one of three


def test_a_missing_matplotlib_is_told_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConflictError, match=r"pip install 'cloudfarm\[plots\]'"):
        plots.write_plots(comparison(), tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be written to"):
        plots.write_plots(comparison(), tmp_path / "file")
