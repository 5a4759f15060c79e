"""A Hugging Face folder goes round whole, and nothing in one that could run code is ever loaded."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from cloudfarm.domain.bundles import CAUSAL_LM, LORA_ADAPTER, manifest_digest, parse_manifest
from cloudfarm.errors import InvalidInputError, NotFoundError
from cloudfarm.training import bundle, hf_folder, publish
from cloudfarm.training.bundle import BundleError, DataCard, read_manifest
from cloudfarm.training.hf_folder import fetch_bundle, weight_shapes
from cloudfarm.training.publish import publish_folder

SPEC = {"context_tokens": 128, "architecture": "LlamaForCausalLM", "licence": "Apache-2.0"}
ADAPTER_SPEC = {"base": "0123456789ab", "base_name": "small", "rank": 2}
ADAPTER = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
    "bias": "none",
    "auto_mapping": None,
    "init_lora_weights": True,
}


def model_folder(at):
    at.mkdir()
    safetensors.numpy.save_file({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, at / "model.safetensors")
    (at / "config.json").write_text('{"model_type": "llama"}')
    (at / "tokenizer.json").write_text("{}")
    (at / "tokenizer_config.json").write_text("{}")
    return at


def adapter_folder(at, **changes):
    at.mkdir()
    arrays = {"q_proj.lora_A.weight": np.zeros((2, 6), np.float32), "q_proj.lora_B.weight": np.zeros((6, 2))}
    safetensors.numpy.save_file(arrays, at / "adapter_model.safetensors")
    (at / "adapter_config.json").write_text(json.dumps(ADAPTER | changes))
    return at


def put(folder, outbox, **changes):
    options = {
        "kind": CAUSAL_LM,
        "spec": SPEC,
        "config": {},
        "metrics": {"loss": 2.5},
        "card": DataCard(name="x", source="y", licence="z"),
        "outbox": str(outbox),
    }
    return publish_folder(changes.pop("name", "small"), folder, **(options | changes))


def put_adapter(folder, outbox, **changes):
    return put(folder, outbox, kind=LORA_ADAPTER, spec=ADAPTER_SPEC, **changes)


@pytest.fixture
def folder(tmp_path):
    return model_folder(tmp_path / "folder")


def test_round_trip(folder, tmp_path):
    where = put(folder, tmp_path / "out")
    manifest = fetch_bundle(where, tmp_path / "copy")
    assert manifest == read_manifest(where)
    assert (manifest.kind, manifest.spec, manifest.framework) == (CAUSAL_LM, SPEC, "transformers")
    names = {path.name for path in folder.iterdir()}
    assert set(manifest.files) == names == {path.name for path in (tmp_path / "copy").iterdir()}
    for name in names:
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


def test_a_uri_does_as_well_as_a_path_and_files_are_copied_a_piece_at_a_time(folder, tmp_path, monkeypatch):
    for module in (bundle, publish):
        monkeypatch.setattr(module, "COPIED_BYTES", 7)
    where = put(folder, (tmp_path / "out").as_uri())
    assert where == (tmp_path / "out").as_uri() + "/small"
    fetch_bundle(where, tmp_path / "copy")
    assert weight_shapes(tmp_path / "copy" / "model.safetensors") == {"w": (2, 3)}


def test_only_the_bundle_that_was_registered_is_copied(folder, tmp_path):
    where = put(folder, tmp_path / "out")
    registered = manifest_digest(parse_manifest(Path(where, "model.json").read_bytes()))
    fetch_bundle(where, tmp_path / "copy", registered)
    put(folder, tmp_path / "out", spec=SPEC | {"context_tokens": 64})
    with pytest.raises(BundleError, match="small has changed since it was registered"):
        fetch_bundle(where, tmp_path / "changed", registered)
    assert not (tmp_path / "changed").exists()


def test_the_version_follows_every_file(folder, tmp_path):
    first = read_manifest(put(folder, tmp_path / "out")).version
    (folder / "tokenizer_config.json").write_text('{"eos_token": "x"}')
    assert read_manifest(put(folder, tmp_path / "out")).version != first


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "model.pt",
        "model.pkl",
        "modeling.py",
        "model.ckpt",
        ".hidden",
        "training_args.bin",
    ],
)
def test_what_runs_code_is_refused_by_name(folder, tmp_path, name):
    (folder / name).write_bytes(pickle.dumps(print))
    with pytest.raises(BundleError, match=f"{name} may not be in a bundle"):
        put(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_and_links_are_refused(folder, tmp_path):
    (folder / "1_Pooling").mkdir()
    with pytest.raises(BundleError, match="1_Pooling is a folder"):
        put(folder, tmp_path / "out")
    (folder / "1_Pooling").rmdir()
    (folder / "vocab.json").symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match=r"vocab\.json is a folder, a link"):
        put(folder, tmp_path / "out")
    (folder / "vocab.json").unlink()
    os.mkfifo(folder / "merges.txt")
    with pytest.raises(BundleError, match=r"merges\.txt is a folder, a link or a special file"):
        put(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.Config"}}),
        ("config.json", {"text_config": {"auto_map": {"AutoModel": "evil.Model"}}}),
        ("config.json", {"parts": [{"trust_remote_code": True}]}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}),
        ("generation_config.json", {"trust_remote_code": True}),
    ],
)
def test_a_configuration_that_names_code_is_refused(folder, tmp_path, name, content):
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=f"{name}: .* would run code"):
        put(folder, tmp_path / "out")


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 200_000])
def test_a_configuration_is_a_json_object(folder, tmp_path, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(BundleError, match=r"config\.json is not"):
        put(folder, tmp_path / "out")


def test_words_of_a_vocabulary_are_only_words(folder, tmp_path):
    (folder / "vocab.json").write_text('{"auto_map": 17}')
    put(folder, tmp_path / "out")


def test_weights_are_safetensors_whatever_their_name_says(folder, tmp_path):
    (folder / "model.safetensors").write_bytes(pickle.dumps(print))
    with pytest.raises(BundleError, match=r"model\.safetensors is not a readable safetensors file"):
        put(folder, tmp_path / "out")


@pytest.mark.parametrize("part", ["../../secret.safetensors", "/etc/x.safetensors", "absent.safetensors", 7])
def test_an_index_names_files_of_the_bundle(folder, tmp_path, part):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": part}}))
    with pytest.raises(BundleError, match="names files that are not in the bundle"):
        put(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_is_whole(folder, tmp_path, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=r"missing|is there"):
        put(folder, tmp_path / "out")


def test_a_name_a_kind_and_a_spec_are_checked(folder, tmp_path):
    with pytest.raises(InvalidInputError, match="cannot be published"):
        put(folder, tmp_path / "out", name="../x")
    with pytest.raises(BundleError, match="not a Hugging Face folder"):
        put(folder, tmp_path / "out", kind="windpower-forecaster")
    with pytest.raises(BundleError, match="context_tokens"):
        put(folder, tmp_path / "out", spec=SPEC | {"context_tokens": 0})
    assert not (tmp_path / "out").exists()


def test_a_changed_file_is_noticed_and_leaves_nothing(folder, tmp_path):
    where = put(folder, tmp_path / "out")
    weights = tmp_path / "out" / "small" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    for changed in (bytes(content), content[:-1], bytes(content) + b"x"):
        weights.write_bytes(changed)
        with pytest.raises(BundleError, match=r"is not the file that|more than"):
            fetch_bundle(where, tmp_path / "copy")
    weights.unlink()
    with pytest.raises(BundleError, match="is missing"):
        fetch_bundle(where, tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "out"]


def test_what_a_stranger_put_into_a_bundle_is_checked_again(folder, tmp_path):
    where = put(folder, tmp_path / "out")
    path = Path(where) / "model.json"
    whole = json.loads(path.read_text())

    def edit(**changes):
        path.write_text(json.dumps(whole | changes))

    a_file = whole["files"]["config.json"]
    for name in ("evil.py", "../config.json", "weights.bin", "sub/config.json", "config.json\n"):
        edit(files=whole["files"] | {name: a_file})
        with pytest.raises(BundleError, match=r"model\.json is not valid"):
            fetch_bundle(where, tmp_path / "copy")
    edit(files=whole["files"] | {"vocab.txt": {"bytes": hf_folder.MAX_TEXT_BYTES + 1, "sha256": "0" * 64}})
    with pytest.raises(BundleError, match=r"vocab\.txt has more than"):
        fetch_bundle(where, tmp_path / "copy")
    edit(kind="windpower-forecaster")
    with pytest.raises(BundleError, match="not a Hugging Face folder"):
        fetch_bundle(where, tmp_path / "copy")
    edit()
    (Path(where) / "config.json").unlink()
    (Path(where) / "config.json").symlink_to(folder / "config.json")
    with pytest.raises(BundleError, match="not a plain file"):
        fetch_bundle(where, tmp_path / "copy")
    path.write_bytes(b" " * (bundle.MAX_MANIFEST_BYTES + 1))
    with pytest.raises(BundleError, match="more than"):
        fetch_bundle(where, tmp_path / "copy")
    with pytest.raises(NotFoundError):
        fetch_bundle(str(tmp_path / "nowhere"), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_an_adapter_goes_round(tmp_path):
    where = put_adapter(adapter_folder(tmp_path / "adapter"), tmp_path / "out")
    assert fetch_bundle(where, tmp_path / "copy").spec == ADAPTER_SPEC


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"auto_mapping": {"parent_library": "evil"}}, "auto_mapping is not served"),
        ({"megatron_config": {"x": 1}, "megatron_core": "evil"}, "megatron_config is not served"),
        ({"use_dora": True}, "use_dora is not served"),
        (
            {"alora_invocation_tokens": [1, 2]},
            "alora_invocation_tokens is not served",
        ),  # peft would ignore the adapter
        ({"bias": "all"}, "bias is not served"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not served"),
        ({"peft_type": "PREFIX_TUNING"}, "peft_type is not LORA"),
        ({"r": 3}, "r is 3"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"target_modules": "(a+)+$"}, "target_modules"),
        ({"target_modules": ["(a+)+$"]}, "target_modules"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": ["q_proj", "nope"]}, "nothing for the target module nope"),
        ({"target_modules": ["nope"]}, "is no target module"),
        ({"lora_dropout": 2}, "lora_dropout is 2"),
        ({"lora_alpha": "many"}, "lora_alpha is 'many'"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
    ],
)
def test_only_plain_lora_is_served(tmp_path, changes, said):
    with pytest.raises(BundleError, match=said):
        put_adapter(adapter_folder(tmp_path / "adapter", **changes), tmp_path / "out")


def test_an_adapter_is_whole_and_of_its_rank(tmp_path):
    folder = adapter_folder(tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    safetensors.numpy.save_file({"q_proj.lora_A.weight": np.zeros((3, 6), np.float32)}, weights)
    with pytest.raises(BundleError, match="is not of rank 2"):
        put_adapter(folder, tmp_path / "out")
    weights.unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(print))
    with pytest.raises(BundleError, match=r"adapter_model\.bin may not be in a bundle"):
        put_adapter(folder, tmp_path / "out")
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(BundleError, match=r"adapter_model\.safetensors is missing"):
        put_adapter(folder, tmp_path / "out")


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_that_is_too_large_is_refused_before_anything_is_copied(tmp_path, monkeypatch, beside):
    folder = adapter_folder(tmp_path / "adapter")
    if beside:
        safetensors.numpy.save_file({"x": np.zeros(1)}, folder / "more.safetensors")
    with monkeypatch.context() as unchecked:
        unchecked.setattr(publish, "check_sizes", lambda *_: None)
        where = put_adapter(folder, tmp_path / "out")
    copied = []
    monkeypatch.setattr(bundle.Directory, "copy", lambda *args: copied.append(args))
    if not beside:
        monkeypatch.setattr(hf_folder, "MAX_ADAPTER_BYTES", 100)
    why = "weights are adapter_model" if beside else r"has \d+ bytes, more than 100"
    with pytest.raises(BundleError, match=why):
        fetch_bundle(where, tmp_path / "copy")
    assert copied == []
    with pytest.raises(BundleError, match=why):
        put_adapter(folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()
