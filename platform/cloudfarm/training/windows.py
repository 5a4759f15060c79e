"""Turbine readings as windows for forecasting: what is known at a time, what is asked, and who may see what.

A window ends at a time t. Its input is the ``lookback`` readings up to and including t; its target is the
power of the ``horizon`` readings after t. Time is split, never shuffled: every window lies wholly (inputs and
targets) inside one period, so no reading of a later period is seen in an earlier one, and the normalisation
is that of the fitting period.

The forecast to beat is persistence: the power stays what it is now. It is the usual yardstick for wind power
at horizons up to a few hours (Giebel and Kariniotakis, 'Wind power forecasting - a review of the state of the
art', 2017).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.fs

from cloudfarm.errors import CloudfarmError

STEP_MINUTES = 10
READINGS = ("power_kw", "wind_speed_m_s", "wind_direction_deg", "outdoor_temperature_c")
"""What a reading must have besides ``time_utc``."""
CHANNELS = (
    "power_kw",
    "wind_speed_m_s",
    "wind_direction_sin",
    "wind_direction_cos",
    "outdoor_temperature_c",
    "time_of_day_sin",
    "time_of_day_cos",
)
"""What the model sees of each reading. Power is first: the model adds its correction to the last one."""

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
_STEP_S = STEP_MINUTES * 60
_CONSTANT = 1e-3  # in the unit of any channel, less than its sensor can tell


class DataError(CloudfarmError):
    """The data lack a column, are not on a 10-minute clock, or leave a period without a whole window."""

    code: ClassVar[str] = "unusable_data"
    status: ClassVar[int] = 422
    title: ClassVar[str] = "The data cannot be used for training"


class Period(NamedTuple):
    """Times from ``start`` (included) to ``end`` (excluded), both UTC."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class Series:
    """The readings of some turbines, one after another on a regular clock.

    Attributes:
        times: ``[n]`` seconds since 1970 UTC, 600 s apart within a turbine.
        channels: ``[n, 7]`` float32 in the order and units of ``CHANNELS``; NaN where a reading is missing.
        turbine: ``[n]`` index into ``names``; a window never spans two turbines.
        names: the turbines.
    """

    times: Indices
    channels: Floats
    turbine: Indices
    names: tuple[str, ...]

    def window_ends(self, lookback: int, horizon: int, period: Period) -> Indices:
        """Return the rows t ``[k]`` whose window lies inside ``period``, in one turbine, nothing missing.

        The input rows are t - lookback + 1 .. t (every channel known), the target rows t + 1 .. t + horizon
        (power known).
        """
        inside = (self.times >= period.start.timestamp()) & (self.times < period.end.timestamp())
        readable = _run_lengths(inside & np.isfinite(self.channels).all(axis=1), self.turbine) >= lookback
        asked = _run_lengths(inside & np.isfinite(self.channels[:, 0]), self.turbine) >= lookback + horizon
        ends: Indices = np.flatnonzero(asked) - horizon
        return ends[readable[ends]]

    def windows(self, ends: Indices, lookback: int) -> Floats:
        """Return the inputs ``[k, lookback, 7]`` of the windows that end at the rows ``ends`` ``[k]``."""
        inputs: Floats = self.channels[ends[:, None] + input_offsets(lookback)]
        return inputs

    def targets_kw(self, ends: Indices, horizon: int) -> Floats:
        """Return the power ``[k, horizon]`` in kW of the steps after the rows ``ends`` ``[k]``."""
        targets: Floats = self.channels[:, 0][ends[:, None] + target_offsets(horizon)]
        return targets

    def persistence_kw(self, ends: Indices, horizon: int) -> Floats:
        """Return the persistence forecast ``[k, horizon]`` in kW: the power at ``ends``, for every step."""
        return np.repeat(self.channels[ends, :1], horizon, axis=1)

    def normalisation(self, period: Period) -> tuple[Floats, Floats]:
        """Return mean and (population) standard deviation ``[7]`` of the known channels inside ``period``.

        A channel that does not vary gets deviation 1: divided by next to nothing, rounding would be a signal.
        """
        inside = (self.times >= period.start.timestamp()) & (self.times < period.end.timestamp())
        known = self.channels[inside & np.isfinite(self.channels).all(axis=1)].astype(np.float64)
        if not len(known):
            raise DataError(f"no complete reading between {period.start:%Y-%m-%d} and {period.end:%Y-%m-%d}")
        std = known.std(axis=0)
        std[std < _CONSTANT] = 1.0
        return known.mean(axis=0).astype(np.float32), std.astype(np.float32)

    def readings(self, end: int, lookback: int) -> list[dict[str, Any]]:
        """Return the ``lookback`` readings up to row ``end`` as a forecast service takes them."""
        rows = []
        for row in range(end - lookback + 1, end + 1):
            power, speed, sine, cosine, degrees = (float(value) for value in self.channels[row, :5])
            rows.append(
                {
                    "time_utc": datetime.fromtimestamp(int(self.times[row]), UTC).strftime(
                        "%Y-%m-%dT%H:%M:%SZ"
                    ),
                    "power_kw": round(power, 2),
                    "wind_speed_m_s": round(speed, 2),
                    "wind_direction_deg": round(float(np.degrees(np.arctan2(sine, cosine))) % 360, 1),
                    "outdoor_temperature_c": round(degrees, 2),
                }
            )
        return rows


def input_offsets(lookback: int) -> Indices:
    """Return the rows of a window's input relative to its end ``[lookback]``: the last of them is 0, now."""
    return np.arange(1 - lookback, 1)


def target_offsets(horizon: int) -> Indices:
    """Return the rows of a window's target relative to its end ``[horizon]``: all of them later."""
    return np.arange(1, horizon + 1)


def channels(times: Indices, readings: Mapping[str, npt.NDArray[Any]]) -> Floats:
    """Return the channels ``[n, 7]`` of ``n`` readings; each row depends on its own reading only.

    Args:
        times: ``[n]`` seconds since 1970 UTC.
        readings: the four ``READINGS``, each ``[n]`` in the unit of its name.
    """
    direction = np.radians(readings["wind_direction_deg"])
    day = 2 * np.pi * (times % 86_400) / 86_400
    columns = (
        readings["power_kw"],
        readings["wind_speed_m_s"],
        np.sin(direction),
        np.cos(direction),
        readings["outdoor_temperature_c"],
        np.sin(day),
        np.cos(day),
    )
    return np.stack(columns, axis=1).astype(np.float32)


def series(turbines: Iterable[tuple[str, Indices, Mapping[str, npt.NDArray[Any]]]]) -> Series:
    """Put each turbine's readings on a regular 10-minute clock and return them all as one ``Series``.

    Args:
        turbines: name, times ``[n]`` (seconds, ascending, unique) and readings, each ``[n]``.

    Raises:
        DataError: times that are not in order, not unique, or not whole multiples of 10 minutes apart.
    """
    names: list[str] = []
    all_times, all_channels, owners = [], [], []
    for name, times, readings in turbines:
        gaps = np.diff(times)
        if (gaps <= 0).any() or (gaps % _STEP_S).any():
            raise DataError(
                f"the times of turbine {name} are not on a {STEP_MINUTES}-minute clock, once each, in order"
            )
        grid = np.arange(times[0], times[-1] + _STEP_S, _STEP_S, dtype=np.int64)
        filled = np.full((len(grid), len(CHANNELS)), np.nan, dtype=np.float32)
        filled[(times - times[0]) // _STEP_S] = channels(times, readings)
        owners.append(np.full(len(grid), len(names), dtype=np.int64))
        names.append(name)
        all_times.append(grid)
        all_channels.append(filled)
    if not names:
        raise DataError("the data hold no reading")
    return Series(
        np.concatenate(all_times), np.concatenate(all_channels), np.concatenate(owners), tuple(names)
    )


def load(data: str, turbines: Sequence[str] = ()) -> Series:
    """Read a Parquet data set partitioned by turbine (``turbine=NAME/*.parquet``).

    Args:
        data: path or URI of the directory.
        turbines: read only these; all when empty.

    Raises:
        DataError: nothing there, or a column is missing or of the wrong type.
    """
    try:
        filesystem, path = (
            pyarrow.fs.FileSystem.from_uri(data) if "://" in data else (pyarrow.fs.LocalFileSystem(), data)
        )
        found = pyarrow.dataset.dataset(path, filesystem=filesystem, format="parquet", partitioning="hive")
        keep = pc.field("turbine").isin(list(turbines)) if turbines else None
        table = found.to_table(columns=["turbine", "time_utc", *READINGS], filter=keep)
    except (FileNotFoundError, pa.ArrowInvalid, pa.ArrowKeyError) as bad:
        raise DataError(f"{data} is not a Parquet data set of turbine readings: {bad}") from bad
    table = table.sort_by([("turbine", "ascending"), ("time_utc", "ascending")])
    return series(_split(table))


def _split(table: pa.Table) -> Iterable[tuple[str, Indices, dict[str, npt.NDArray[Any]]]]:
    for name in sorted(pc.unique(table["turbine"]).to_pylist()):
        part = table.filter(pc.equal(table["turbine"], name))
        seconds = part["time_utc"].cast(pa.timestamp("s", "UTC")).cast(pa.int64()).to_numpy()
        yield str(name), seconds, {key: part[key].to_numpy() for key in READINGS}


def _run_lengths(good: npt.NDArray[np.bool_], group: Indices) -> Indices:
    """Return for each row how many rows in an unbroken run up to it, within its group, are good ``[n]``."""
    rows = np.arange(len(good), dtype=np.int64)
    first = np.diff(group, prepend=-1) != 0
    last_break = np.maximum.accumulate(np.where(~good, rows, np.where(first, rows - 1, -1)))
    return rows - last_break
