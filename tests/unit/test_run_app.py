"""What the job that runs a tenant's own application imports, and what it shows of its replicas' logs."""

import sys
from pathlib import Path

import pytest

from cloudfarm.inference.run_app import Logs, load

MODULE = """
from ray import serve

@serve.deployment
class Model:
    pass

class Models:
    bound = Model.bind()

app = Model.bind()
number = 7

def build(args: dict) -> serve.Application:
    return Model.options(name=args["name"]).bind()
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "tenants_own.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "tenants_own"
    sys.modules.pop("tenants_own", None)


@pytest.mark.parametrize("name", ["app", "Models.bound"])
def test_an_application_is_found(module, name):
    assert load(f"{module}:{name}", {})._bound_deployment.name == "Model"


def test_a_builder_makes_one(module):
    assert load(f"{module}:build", {"name": "Other"})._bound_deployment.name == "Other"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("tenants_own:number", TypeError),
        ("tenants_own:no", AttributeError),
        ("tenants_other:app", ImportError),
    ],
)
def test_what_is_no_application_is_refused(module, path, error):
    del module
    with pytest.raises(error, match=r"number is int|no|tenants_other"):
        load(path, {})


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "serve").mkdir()
    return tmp_path


def test_logs_of_the_applications_replicas_are_read_on(folder):
    logs = Logs(folder, "kaist.sea.1", "05000000")
    replica = folder / "serve" / "replica_kaist.sea.1_Model_x.log"
    replica.write_text("INFO one\nINFO two\nINFO thr")
    (folder / "serve" / "replica_kaist.sea.2_Model_x.log").write_text("of another revision\n")
    (folder / "worker-a-01000000-7.out").write_text(":job_id:01000000\n:actor_name:ServeReplica\nprinted\n")
    (folder / "worker-b-05000000-8.out").write_text("shown by Ray\n")
    assert list(logs.news()) == ["INFO one", "INFO two", "printed"]
    assert list(logs.news()) == []
    with replica.open("a") as file:
        file.write("ee\nINFO four\n")
    assert list(logs.news()) == ["INFO three", "INFO four"]


def test_a_line_without_an_end_is_shown_in_pieces(folder, monkeypatch):
    monkeypatch.setattr("cloudfarm.inference.run_app._MAX_READ_BYTES", 4)
    (folder / "worker-a-01000000-7.err").write_bytes(b"12345678\xff")
    logs = Logs(folder, "kaist.sea.1", "05000000")
    assert [*logs.news(), *logs.news(), *logs.news()] == ["1234", "5678"]
