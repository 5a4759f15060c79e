"""A window holds what was known at its time and nothing later; periods do not overlap."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudfarm.training import windows
from cloudfarm.training.windows import DataError, Period, Series

START = 1_388_534_400  # 2014-01-01 UTC
ALWAYS = Period(datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


def readings(count, seed):
    random = np.random.default_rng(seed)
    return {
        "power_kw": random.uniform(0, 2050, count),
        "wind_speed_m_s": random.uniform(0, 20, count),
        "wind_direction_deg": random.uniform(0, 360, count),
        "outdoor_temperature_c": random.uniform(-10, 30, count),
    }


def make(counts, seed=0, missing=()):
    """A series of turbines with ``counts`` readings each; rows ``missing`` of the whole are lost."""
    parts = []
    for number, count in enumerate(counts):
        times = START + 600 * np.arange(count)
        parts.append((f"T{number}", times, readings(count, seed + number)))
    found = windows.series(parts)
    found.channels[list(missing)] = np.nan
    return found


@given(
    count=st.integers(8, 60),
    lookback=st.integers(1, 6),
    horizon=st.integers(1, 4),
    cut=st.integers(0, 59),
    seed=st.integers(0, 1000),
)
def test_inputs_never_change_when_data_after_their_time_change(count, lookback, horizon, cut, seed):
    then = readings(count, seed)
    later = readings(count, seed + 1)
    times = START + 600 * np.arange(count)
    after = np.arange(count) > cut
    changed = {name: np.where(after, later[name], then[name]) for name in then}
    one, other = (windows.series([("T", times, values)]) for values in (then, changed))
    ends = one.window_ends(lookback, horizon, ALWAYS)
    known = ends[ends <= cut]
    np.testing.assert_array_equal(one.windows(known, lookback), other.windows(known, lookback))
    np.testing.assert_array_equal(one.persistence_kw(known, horizon), other.persistence_kw(known, horizon))


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    lost=st.sets(st.integers(0, 29), max_size=6),
    first=st.integers(-2, 30),
    length=st.integers(0, 40),
)
def test_window_ends_are_exactly_the_whole_windows(shape, counts, lost, first, length):
    """Against the plain definition, row by row."""
    lookback, horizon = shape
    missing = [row for row in lost if row < sum(counts)]
    found = make(counts, missing=missing)
    start = datetime.fromtimestamp(START, UTC) + first * timedelta(minutes=10)
    period = Period(start, start + length * timedelta(minutes=10))
    expected = []
    for end in range(len(found.times)):
        rows = range(end - lookback + 1, end + horizon + 1)
        whole = rows[0] >= 0 and rows[-1] < len(found.times)
        if (
            whole
            and len({int(found.turbine[row]) for row in rows}) == 1
            and not set(rows) & set(missing)
            and all(period.start.timestamp() <= found.times[row] < period.end.timestamp() for row in rows)
        ):
            expected.append(end)
    assert found.window_ends(lookback, horizon, period).tolist() == expected


def test_a_target_may_lack_everything_but_its_power():
    found = make([10])
    found.channels[8, 1] = np.nan
    assert found.window_ends(3, 1, ALWAYS).tolist() == [2, 3, 4, 5, 6, 7]


def test_windows_targets_and_persistence_have_the_documented_shape_and_order():
    found = make([12])
    ends = np.array([4, 7])
    assert found.windows(ends, 3).shape == (2, 3, 7)
    np.testing.assert_array_equal(found.windows(ends, 3)[1, -1], found.channels[7])
    np.testing.assert_array_equal(found.targets_kw(ends, 2)[0], found.channels[5:7, 0])
    np.testing.assert_array_equal(
        found.persistence_kw(ends, 2), [[found.channels[4, 0]] * 2, [found.channels[7, 0]] * 2]
    )


def test_persistence_error_by_hand():
    values = readings(5, 0) | {"power_kw": np.array([100.0, 110, 130, 100, 100])}
    found = windows.series([("T", START + 600 * np.arange(5), values)])
    ends = found.window_ends(1, 2, ALWAYS)
    errors = np.abs(found.persistence_kw(ends, 2) - found.targets_kw(ends, 2)).mean(axis=0)
    np.testing.assert_allclose(errors, [(10 + 20 + 30) / 3, (30 + 10 + 30) / 3])


def test_normalisation_sees_its_own_period_only():
    found = make([40])
    half = datetime.fromtimestamp(START, UTC) + timedelta(minutes=200)
    mean, std = found.normalisation(Period(ALWAYS.start, half))
    np.testing.assert_allclose(mean, found.channels[:20].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(std, found.channels[:20].std(axis=0), rtol=1e-4)
    found.channels[:, 4] = 12.5 + np.resize([0, 1e-6], 40)
    assert found.normalisation(ALWAYS)[1][4] == 1
    with pytest.raises(DataError, match="no complete reading"):
        found.normalisation(Period(ALWAYS.start, ALWAYS.start))


def test_channels_wrap_direction_and_time_of_day():
    times = np.array([0, 21_600, 43_200])
    values = {
        "power_kw": np.zeros(3),
        "wind_speed_m_s": np.zeros(3),
        "wind_direction_deg": np.array([0.0, 90, 360]),
        "outdoor_temperature_c": np.zeros(3),
    }
    made = windows.channels(times, values)
    np.testing.assert_allclose(made[:, 2:4], [[0, 1], [1, 0], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(made[:, 5:], [[0, 1], [1, 0], [0, -1]], atol=1e-6)


def test_gaps_become_missing_rows_and_bad_clocks_are_refused():
    values = readings(3, 0)
    found = windows.series([("T", START + np.array([0, 600, 1800]), values)])
    assert np.isnan(found.channels).all(axis=1).tolist() == [False, False, True, False]
    for times in ([0, 600, 600], [600, 0, 1200], [0, 600, 1201]):
        with pytest.raises(DataError, match="10-minute clock"):
            windows.series([("T", START + np.array(times), values)])
    with pytest.raises(DataError, match="no reading"):
        windows.series([])


def test_load_reads_turbines_and_says_what_is_wrong(tmp_path):
    for turbine in ("A", "B"):
        (tmp_path / f"turbine={turbine}").mkdir()
        clock = pa.array(1000 * (START + 600 * np.arange(9)), pa.timestamp("ms", "UTC"))
        table = pa.table(
            {"time_utc": clock} | {k: pa.array(v, pa.float32()) for k, v in readings(9, 1).items()}
        )
        pyarrow.parquet.write_table(table, tmp_path / f"turbine={turbine}" / "part-0.parquet")
    both = windows.load(str(tmp_path))
    assert both.names == ("A", "B")
    assert isinstance(both, Series)
    assert len(both.times) == 18
    assert windows.load(tmp_path.as_uri(), ["B"]).names == ("B",)
    with pytest.raises(DataError, match="not a Parquet data set"):
        windows.load(str(tmp_path / "nowhere"))
    pyarrow.parquet.write_table(pa.table({"time_utc": clock}), tmp_path / "turbine=A" / "part-0.parquet")
    (tmp_path / "turbine=B" / "part-0.parquet").unlink()
    with pytest.raises(DataError, match="not a Parquet data set"):
        windows.load(str(tmp_path))


def test_readings_come_back_as_a_service_takes_them():
    found = make([6])
    rows = found.readings(5, 2)
    assert [row["time_utc"] for row in rows] == ["2014-01-01T00:40:00Z", "2014-01-01T00:50:00Z"]
    assert rows[1]["power_kw"] == pytest.approx(found.channels[5, 0], abs=0.01)
    again = windows.channels(found.times[5:], {key: np.array([rows[1][key]]) for key in windows.READINGS})
    np.testing.assert_allclose(again[0], found.channels[5], atol=0.01)
