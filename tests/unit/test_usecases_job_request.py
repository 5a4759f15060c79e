"""What a submission may ask for, and that every refusal names the key and says why."""

import json

import pytest
from ray.runtime_env import RuntimeEnv

from cloudfarm.errors import ForbiddenKeyError, InvalidInputError
from cloudfarm.usecases.job_request import JobRequest, read_job_request
from cloudfarm.usecases.runtime_env import ALLOWED_KEYS, REFUSED_ENV, REFUSED_KEYS, packages_of


def read(**fields) -> JobRequest:
    return read_job_request({"entrypoint": "python train.py", **fields})


def test_what_the_stock_client_sends_is_read():
    request = read(
        submission_id="raysubmit_abc",
        runtime_env={
            "working_dir": "gcs://_ray_pkg_0123.zip",
            "py_modules": ["gcs://_ray_pkg_4567.zip", "https://example.com/x.zip"],
            "pip": {"packages": ["einops"], "pip_check": False},
            "env_vars": {"HF_HOME": "/tmp/hf", "RAY_TRAIN_V2_ENABLED": "1", "OMP_NUM_THREADS": "2"},  # noqa: S108
            "config": {"setup_timeout_seconds": 600},
            "excludes": ["*.bin"],
            "worker_process_setup_hook": "mine.hook",
            "_ray_commit": "abc",
            "_ray_release": "2.60.0",
        },
        metadata={"gpus": "2x0.5", "anything": "else"},
        entrypoint_num_cpus=1,
        entrypoint_num_gpus=0.5,
        entrypoint_memory=1024,
        entrypoint_resources={"accelerator_type:H200": 0.001},
        entrypoint_label_selector={"host": "h0"},
        job_id=None,
    )
    assert request.submission_id == "raysubmit_abc"
    assert packages_of(request.runtime_env) == ["_ray_pkg_0123.zip", "_ray_pkg_4567.zip"]
    assert (request.num_cpus, request.num_gpus, request.memory) == (1, 0.5, 1024)
    assert request.lease is None


def test_the_old_name_of_the_id():
    assert read(job_id="old").submission_id == "old"


@pytest.mark.parametrize("key", sorted(REFUSED_KEYS))
def test_refused_runtime_env_keys(key):
    with pytest.raises(ForbiddenKeyError, match=f"'{key}'.*: {REFUSED_KEYS[key]}") as caught:
        read(runtime_env={key: "x"})
    assert caught.value.data == {"key": key}


def test_an_unknown_runtime_env_key_would_be_a_plugin():
    with pytest.raises(ForbiddenKeyError, match="'my_plugin' is not known"):
        read(runtime_env={"my_plugin": {}})


def test_every_field_of_rays_runtime_env_is_decided():
    """A new Ray may bring new keys: somebody has to look at each before jobs may use it."""
    assert set(RuntimeEnv.known_fields) <= set(ALLOWED_KEYS) | set(REFUSED_KEYS)


@pytest.mark.parametrize(
    "name",
    [
        *REFUSED_ENV,
        "CLOUDFARM_LEASE",
        "CUDA_MPS_PIPE_DIRECTORY",
        "RAY_ADDRESS",
        "RAY_AUTH_TOKEN",
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
    ],
)
def test_refused_environment_variables(name):
    with pytest.raises(ForbiddenKeyError, match=f"'{name}' is not allowed here: .{{10,}}"):
        read(runtime_env={"env_vars": {name: "x"}})


@pytest.mark.parametrize(
    "fields",
    [
        {"runtime_env": {"env_vars": {"A": 1}}},
        {"runtime_env": {"env_vars": {"A": None}}},
        {"runtime_env": {"env_vars": {"A=B": "1"}}},
        {"runtime_env": {"env_vars": {"": "1"}}},
        {"runtime_env": {"env_vars": {str(number): "1" for number in range(300)}}},
        {"runtime_env": {"env_vars": {"A": "x" * 300_000}}},
        {"runtime_env": {"env_vars": []}},
        {"runtime_env": {"working_dir": 5}},
        {"runtime_env": {"working_dir": "gcs://../../etc.zip"}},
        {"runtime_env": {"py_modules": [5]}},
        {"runtime_env": {"worker_process_setup_hook": {"not": "text"}}},
        {"runtime_env": "text"},
        {"runtime_env": []},
        {"entrypoint": ""},
        {"entrypoint": "  "},
        {"entrypoint": None},
        {"entrypoint": ["python"]},
        {"entrypoint": "x" * 40_000},
        {"entrypoint": "a\0b"},
        {"entrypoint": "\ud800"},
        {"submission_id": ""},
        {"submission_id": "a b"},
        {"submission_id": "a/b"},
        {"submission_id": "../x"},
        {"submission_id": ".."},
        {"submission_id": "x" * 129},
        {"submission_id": "é"},
        {"submission_id": 7},
        {"metadata": {"a": 1}},
        {"metadata": {"a": True}},
        {"metadata": {"a": "x" * 5000}},
        {"metadata": {str(number): "x" for number in range(100)}},
        {"metadata": []},
        {"metadata": {"lease": "mine", "gpus": "1"}},
        {"metadata": {"lease": "mine"}, "entrypoint_label_selector": {"lease": "other"}},
        {"entrypoint_num_cpus": True},
        {"entrypoint_num_cpus": -1},
        {"entrypoint_num_gpus": "1"},
        {"entrypoint_num_gpus": float("nan")},
        {"entrypoint_num_gpus": float("inf")},
        {"entrypoint_memory": 1.5},
        {"entrypoint_memory": True},
        {"entrypoint_resources": {"custom": 1}},
        {"entrypoint_resources": {"accelerator_type:X": True}},
        {"entrypoint_resources": []},
        {"entrypoint_label_selector": {"a": 1}},
        {"no_such_field": 1},
    ],
    ids=lambda fields: json.dumps(fields, default=str)[:60],
)
def test_what_cannot_be_right(fields):
    with pytest.raises(InvalidInputError) as caught:
        read(**fields)
    assert caught.value.code == "invalid_input"


@pytest.mark.parametrize("body", [None, [], "text", 5])
def test_a_submission_is_an_object(body):
    with pytest.raises(InvalidInputError):
        read_job_request(body)


def test_absurd_nesting_is_refused_without_recursion():
    deep: dict = {}
    for _ in range(5000):
        deep = {"x": deep}
    with pytest.raises(InvalidInputError, match="nested"):
        read(runtime_env={"config": deep})


@pytest.mark.parametrize(
    "fields",
    [
        {"entrypoint_resources": {"CPU_group_0_abc": 1}},
        {"entrypoint_resources": {"bundle_group_abc": 0.001}},
        {"entrypoint_resources": {"node:__internal_head__": 0.001}},
        {"entrypoint_resources": {"node:10.0.0.1": 0.001}},
        {"entrypoint_label_selector": {"lease": "!mine"}},
        {"entrypoint_label_selector": {"lease": "in(a,b)"}},
        {"entrypoint_label_selector": {"lease": "!in(a)"}},
        {"entrypoint_label_selector": {"lease": ""}},
        {"runtime_env": {"working_dir": "file:///etc"}},
        {"runtime_env": {"py_modules": ["local:///srv"]}},
    ],
)
def test_ways_out_of_the_lease(fields):
    with pytest.raises(ForbiddenKeyError) as caught:
        read(**fields)
    assert caught.value.data["key"]


def test_a_lease_by_metadata_or_label_or_both():
    assert read(metadata={"lease": "mine"}).lease == "mine"
    assert read(entrypoint_label_selector={"lease": "mine"}).lease == "mine"
    assert read(metadata={"lease": "mine"}, entrypoint_label_selector={"lease": "mine"}).lease == "mine"
    assert read(entrypoint_label_selector={"lease": "mine", "gpu": "0"}).label_selector == {"gpu": "0"}
