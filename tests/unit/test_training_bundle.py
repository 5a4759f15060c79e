"""A bundle goes round whole, and nothing but a whole, plain one is ever read."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from cloudfarm.domain.bundles import MAX_MANIFEST_BYTES, manifest_digest, parse_manifest
from cloudfarm.errors import InvalidInputError, NotFoundError
from cloudfarm.training import publish
from cloudfarm.training.bundle import BundleError, DataCard, list_bundles, read_bundle, read_manifest
from cloudfarm.training.publish import publish_model

WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, dtype=np.float32)}


def put(outbox, name="wind", **changes):
    options = {
        "kind": "windpower-forecaster",
        "spec": {"horizon_steps": 6},
        "config": {"seed": 0},
        "metrics": {"validation_mae_kw": 128.0},
        "card": DataCard(name="la-haute-borne", source="here", licence="Etalab Open Licence 2.0"),
        "outbox": outbox and str(outbox),
    }
    return publish_model(name, changes.pop("weights", WEIGHTS), **(options | changes))


def edit(where, change):
    path = Path(where) / "model.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_round_trip(tmp_path):
    where = put(tmp_path, example_input={"observations": []})
    found = read_bundle(where)
    assert found.weights.keys() == WEIGHTS.keys()
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(found.weights[name], array)
    assert found.manifest == read_manifest(where)
    assert found.manifest.metrics == {"validation_mae_kw": 128.0}
    assert found.manifest.created_at.utcoffset().total_seconds() == 0
    assert len(found.manifest.version) == 12


def test_a_uri_does_as_well_as_a_path(tmp_path):
    where = put(tmp_path.as_uri())
    assert where == tmp_path.as_uri() + "/wind"
    assert read_bundle(where).manifest == read_bundle(str(tmp_path / "wind")).manifest


def test_the_environment_names_the_outbox(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOUDFARM_MODEL_OUTBOX", str(tmp_path / "out"))
    assert put(None) == str(tmp_path / "out" / "wind")
    monkeypatch.delenv("CLOUDFARM_MODEL_OUTBOX")
    monkeypatch.chdir(tmp_path)
    assert put(None) == "models/wind"
    assert read_bundle("models/wind").manifest.name == "wind"


def test_publishing_again_replaces_and_the_version_follows_the_weights(tmp_path):
    first = read_bundle(put(tmp_path)).manifest
    same = read_bundle(put(tmp_path)).manifest
    other = read_bundle(put(tmp_path, weights={"a": np.zeros(1)})).manifest
    assert first.version == same.version != other.version
    assert sorted(path.name for path in (tmp_path / "wind").iterdir()) == [
        "model.json",
        "weights.safetensors",
    ]


def test_a_publisher_that_dies_leaves_no_bundle(tmp_path, monkeypatch):
    put(tmp_path)
    real = publish._write

    def dies(filesystem, path, content):
        if path.endswith("model.json"):
            raise KeyboardInterrupt
        real(filesystem, path, content)

    monkeypatch.setattr(publish, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path, weights={"a": np.zeros(1)})
    with pytest.raises(NotFoundError, match=r"model\.json is not there"):
        read_bundle(str(tmp_path / "wind"))
    assert list_bundles(str(tmp_path)) == []


def test_list_bundles_names_the_whole_ones(tmp_path):
    assert list_bundles(str(tmp_path / "nowhere")) == []
    put(tmp_path, "b")
    put(tmp_path, "a")
    (tmp_path / "half").mkdir()
    (tmp_path / "file").write_text("x")
    assert list_bundles(str(tmp_path)) == [str(tmp_path / "a"), str(tmp_path / "b")]


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "A", "x" * 64, ".hidden", "a\n"])
def test_a_name_cannot_leave_the_outbox(tmp_path, name):
    with pytest.raises(InvalidInputError, match="cannot be published"):
        put(tmp_path / "box", name)
    assert not (tmp_path / "box").exists()


def test_a_figure_that_is_not_a_number_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="validation_mae_kw"):
        put(tmp_path, metrics={"validation_mae_kw": float("nan")})


def test_changed_weights_are_noticed(tmp_path):
    where = put(tmp_path)
    path = tmp_path / "wind" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"is not the file that model\.json describes"):
        read_bundle(where)
    path.write_bytes(content + b"more")
    with pytest.raises(BundleError, match="more than"):
        read_bundle(where)
    path.unlink()
    with pytest.raises(BundleError, match="is missing"):
        read_bundle(where)


def test_only_the_bundle_that_was_registered_is_read(tmp_path):
    where = put(tmp_path)
    path = tmp_path / "wind" / "model.json"
    registered = manifest_digest(parse_manifest(path.read_bytes()))
    edit(where, lambda manifest: manifest.update(manifest))  # written otherwise, it says the same
    assert read_bundle(where, registered).manifest == read_manifest(where)
    for change in (
        lambda manifest: manifest["spec"].update(horizon_steps=7),
        lambda manifest: manifest["metrics"].update(validation_mae_kw=1.0),
    ):
        edit(where, change)
        with pytest.raises(BundleError, match="wind has changed since it was registered"):
            read_bundle(where, registered)
    put(tmp_path, weights={"a": np.zeros(1)})
    with pytest.raises(BundleError, match="wind has changed since it was registered"):
        read_bundle(where, registered)
    assert read_bundle(where).weights.keys() == {"a"}


def test_a_pickle_is_never_opened(tmp_path):
    where = put(tmp_path)
    evil = pickle.dumps(print)
    (tmp_path / "wind" / "weights.safetensors").write_bytes(evil)

    def describe(manifest, name="weights.safetensors"):
        manifest["files"] = {name: {"bytes": len(evil), "sha256": hashlib.sha256(evil).hexdigest()}}

    edit(where, describe)
    with pytest.raises(BundleError, match="not a readable safetensors file"):
        read_bundle(where)
    edit(where, lambda manifest: describe(manifest, "weights.pt"))
    with pytest.raises(BundleError, match=r"model\.json is not valid"):
        read_bundle(where)


@pytest.mark.parametrize(
    "name",
    [
        "../other.safetensors",
        "/etc/passwd.safetensors",
        "a/b.safetensors",
        "..safetensors",
        "x.safetensors\n",
    ],
)
def test_a_file_name_cannot_leave_the_bundle(tmp_path, name):
    where = put(tmp_path)
    edit(where, lambda manifest: manifest["files"].update({name: manifest["files"]["weights.safetensors"]}))
    with pytest.raises(BundleError, match=r"model\.json is not valid"):
        read_bundle(where)


def test_links_and_special_files_are_not_followed(tmp_path):
    where = put(tmp_path)
    weights = tmp_path / "wind" / "weights.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is not a plain file"):
        read_bundle(where)
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(BundleError, match="is not a plain file"):
        read_bundle(where)
    (tmp_path / "link").symlink_to(tmp_path / "wind")
    with pytest.raises(BundleError, match="is not a plain directory"):
        read_manifest(str(tmp_path / "link"))


def test_a_manifest_has_a_form_and_a_size(tmp_path):
    where = put(tmp_path)
    for change in (
        lambda manifest: manifest.update(format_version=2),
        lambda manifest: manifest.update(surprise=1),
        lambda manifest: manifest.update(files={}),
        lambda manifest: manifest.update(created_at="2026-01-01T00:00:00"),
    ):
        put(tmp_path)
        edit(where, change)
        with pytest.raises(BundleError, match=r"model\.json is not valid"):
            read_bundle(where)
    (tmp_path / "wind" / "model.json").write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(BundleError, match="more than"):
        read_manifest(where)
    with pytest.raises(NotFoundError, match="does not exist"):
        read_bundle(str(tmp_path / "nowhere"))


def test_weights_must_be_finite(tmp_path):
    with pytest.raises(BundleError, match="not finite"):
        read_bundle(put(tmp_path, weights={"a": np.array([np.inf])}))


def test_errors_survive_a_pickle():
    again = pickle.loads(pickle.dumps(BundleError("bad", file="x")))  # noqa: S301 - our own
    assert (again.code, again.status, again.detail, again.data) == ("bad_bundle", 422, "bad", {"file": "x"})
