import json
import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudfarm.errors import CloudfarmError
from cloudfarm.raylayer.launcher import LauncherError, NodeSpec
from cloudfarm.raylayer.launcher.spec import MIN_PORTS

SPEC = NodeSpec(
    name="l7k2-0", gcs_address="127.0.0.1:6379", node_ip="127.0.0.1", cpus=2, gpus=1, memory_bytes=1 << 30,
    object_store_bytes=1 << 27, labels={"lease": "l7k2", "host": "h0"}, env={"CUDA_VISIBLE_DEVICES": "3"},
    temp_dir="/var/cf/l7k2-0", worker_ports=(21000, 21039),
)  # fmt: skip
texts = st.text(max_size=20)


@given(
    st.dictionaries(texts, texts),
    st.dictionaries(texts, texts),
    st.tuples(st.integers(), st.integers()),
    st.integers(),
    st.booleans(),
)
def test_a_spec_survives_json(
    labels: dict[str, str], env: dict[str, str], ports: tuple[int, int], amount: int, isolate: bool
) -> None:
    spec = replace(SPEC, labels=labels, env=env, worker_ports=ports, memory_bytes=amount, isolate=isolate)
    assert NodeSpec.from_json(spec.to_json()) == spec


def test_a_spec_written_by_a_newer_version_can_be_read() -> None:
    data = json.loads(SPEC.to_json()) | {"colour": "blue"}
    assert NodeSpec.from_dict(data) == SPEC


def test_the_ports_are_distinct_and_within_the_range() -> None:
    ports = SPEC.ports
    used = [*ports.fixed(), *range(ports.first_worker, ports.last_worker + 1)]
    assert used == list(range(21000, 21040))


def test_a_head_also_binds_the_gcs_and_the_dashboard() -> None:
    assert SPEC.bound_ports() == SPEC.ports.fixed()
    assert {6379, 8265} <= set(replace(SPEC, dashboard_port=8265).bound_ports())


def test_a_good_spec_is_valid() -> None:
    SPEC.validate()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "L7"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a" * 41}, "name"),
        ({"name": "../x"}, "name"),
        ({"gcs_address": "127.0.0.1"}, "gcs_address"),
        ({"cpus": -1}, "negative"),
        ({"memory_bytes": -1}, "negative"),
        ({"object_store_bytes": 0}, "object_store_bytes"),
        ({"temp_dir": "relative"}, "absolute"),
        ({"temp_dir": "/var/" + "x" * 36}, "107"),
        ({"worker_ports": (80, 200)}, "1024"),
        ({"worker_ports": (21000, 20999)}, "1024"),
        ({"worker_ports": (65000, 70000)}, "1024"),
        ({"worker_ports": (21000, 21000 + MIN_PORTS - 2)}, "at least"),
        ({"env": {"A": "b\0c"}}, "env"),
        ({"env": {"A=B": "c"}}, "env"),
    ],
)
def test_a_spec_that_can_never_work_is_refused_with_the_reason(change: dict[str, object], says: str) -> None:
    with pytest.raises(LauncherError, match=says) as refused:
        replace(SPEC, **change).validate()
    assert refused.value.reason == "bad_spec"


def test_the_error_keeps_its_reason_between_actors() -> None:
    error = LauncherError("no", reason="port_in_use", log_tail="the log")
    assert isinstance(error, CloudfarmError)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(copy), copy.reason, str(copy)) == (LauncherError, "port_in_use", str(error))
    assert "the log" in str(copy)
