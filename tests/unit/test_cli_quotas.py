"""``cloudfarm quota``: a tree drawn from rows, and a file of a tree, in the forms that people write."""

import json

import httpx
import pytest

from cloudfarm.cli import quotas, remote
from cloudfarm.cli.session import out
from cloudfarm.client import FarmClient

from .test_cli import run

NO_LIMIT = {"milli_gpus": None, "cpus": None, "memory_bytes": None}
NOTHING = {"milli_gpus": 0, "cpus": 0, "memory_bytes": 0}
HALF = {"milli_gpus": 500, "cpus": 2, "memory_bytes": 3 * 2**30}


def row(quota_id, parent=None, **changes):
    found = {"id": quota_id, "parent": parent, "guarantee": NOTHING, "limit": NO_LIMIT, "weight": 1}
    return {**found, "committed_milli_gpu_ms": None, "held": NOTHING, **changes}


SHOWN = {
    "quotas": [{"id": "energy", "guarantee": {"gpus": "8"}}],
    "in_force": [
        row("energy", guarantee={**NOTHING, "milli_gpus": 8000}, weight=3, held=None),
        row("haenam", "energy", limit={**NO_LIMIT, "milli_gpus": 0}, held=HALF),
        row("haenam/wind", "haenam", held=HALF),
        row("arts"),
    ],
}


@pytest.fixture
def sent(monkeypatch):
    requests = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append((request.method, request.url.path, json.loads(request.content or "null")))
        return httpx.Response(200, json=SHOWN)

    def connect() -> FarmClient:
        return FarmClient("http://farm", "cf_x", transport=httpx.MockTransport(answer))

    for module in (quotas, remote):
        monkeypatch.setattr(module, "connect", connect)
    monkeypatch.setattr(out, "width", 120)
    return requests


def test_the_tree_is_drawn_by_its_depth(monkeypatch, sent, capsys):
    assert run(monkeypatch, "quota", "show") == 0
    head, *lines = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert head.split() == ["quota", "guarantee", "limit", "weight", "held"]
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 2, 4, 0]
    assert lines[0].split() == ["energy", "8", "GPU", "none", "3"]
    assert lines[1].split() == ["haenam", "nothing", "0", "GPU", "1", "0.5", "GPU,", "2", "CPU,", "3", "GiB"]
    assert lines[3].split() == ["arts", "nothing", "none", "1", "nothing"]


def test_the_answer_as_json_is_a_file_that_can_be_set(monkeypatch, sent, capsys, tmp_path):
    assert run(monkeypatch, "quota", "show", "--json") == 0
    file = tmp_path / "quotas.json"
    file.write_text(capsys.readouterr().out)
    assert run(monkeypatch, "quota", "set", str(file)) == 0
    assert sent[-1] == ("PUT", "/v1/quotas", SHOWN["quotas"])
    assert capsys.readouterr().out == "1 quotas are in force\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.json", '[{"id": "a", "guarantee": {"gpus": 1.5}}]'),
        ("q.toml", '[[quotas]]\nid = "a"\nguarantee = { gpus = 1.5 }\n'),
    ],
)
def test_the_forms_of_a_file(monkeypatch, sent, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert run(monkeypatch, "quota", "set", str(tmp_path / name)) == 0
    assert sent == [("PUT", "/v1/quotas", [{"id": "a", "guarantee": {"gpus": 1.5}}])]


@pytest.mark.parametrize(
    "bad",
    [
        ("q.json", "[{]", "line 1 column 3"),
        ("q.toml", "[[quotas]]\nid = \n", "line 2"),
        ("q.toml", "[[quota]]\nid = 'a'\n", "no list of quotas"),
        ("q.toml", "[[quotas]]\nid = 2026-11-21\n", "not JSON serializable"),
        ("q.toml", "[[quotas]]\nid = 'a'\nweight = inf\n", "not JSON compliant"),
        ("q.json", '{"id": "a"}', "no list of quotas"),
        ("q.json", '"\udcff"', "utf-8"),
        ("none.json", None, "No such file"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(monkeypatch, sent, capsys, tmp_path, bad):
    name, text, says = bad
    file = tmp_path / name
    if text is not None:
        file.write_bytes(text.encode(errors="surrogateescape"))
    assert run(monkeypatch, "quota", "set", str(file)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert "[invalid_input]" in line
    assert sent == []


def test_a_lease_is_requested_in_a_project(monkeypatch, sent):
    run(monkeypatch, "lease", "request", "1", "--project", "wind", "--priority", "-5", "--json")
    assert sent == [("POST", "/v1/leases", {"gpus": "1", "project": "wind", "priority": -5})]
