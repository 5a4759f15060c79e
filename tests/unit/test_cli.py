"""The command line: what goes wrong is one clear line and an exit code; answers are tables or JSON."""

import json
import sys
from pathlib import Path

import httpx
import pytest

from cloudfarm import cli
from cloudfarm.cli import remote, services, session
from cloudfarm.client import FarmClient


@pytest.fixture
def farm(monkeypatch):
    """Answers for paths, as the API would give them."""
    answers: dict[tuple[str, str], httpx.Response] = {}
    sent: list[tuple[str, str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(
            (request.method, request.url.path, json.loads(request.content) if request.content else None)
        )
        return answers[request.method, request.url.path]

    def connect() -> FarmClient:
        return FarmClient("http://farm", "cf_x", transport=httpx.MockTransport(answer))

    for module in (remote, services):
        monkeypatch.setattr(module, "connect", connect)
    return answers, sent


def run(monkeypatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cloudfarm", *args])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_a_lease_is_requested_with_only_what_was_said(monkeypatch, farm, capsys) -> None:
    answers, sent = farm
    answers["POST", "/v1/leases"] = httpx.Response(201, json={"id": "l1", "status": "WAITING"})
    assert run(monkeypatch, "lease", "request", "2x0.5", "--hours", "4", "--json") == 0
    assert sent == [("POST", "/v1/leases", {"gpus": "2x0.5", "hours": "4"})]
    assert json.loads(capsys.readouterr().out)["id"] == "l1"


def test_a_lease_is_reserved_for_a_time_to_come(monkeypatch, farm) -> None:
    answers, sent = farm
    answers["POST", "/v1/leases"] = httpx.Response(201, json={"id": "l1"})
    assert run(monkeypatch, "lease", "request", "1", "--from", "2026-11-22T09:00Z") == 0
    assert sent == [("POST", "/v1/leases", {"gpus": "1", "not_before": "2026-11-22T09:00Z"})]


LEASE = {"id": "l1", "project": "wind", "preempted": "2026-11-22T09:00:00.000Z", "not_before": None}


def test_a_lease_says_whose_it_is_and_until_when(monkeypatch, farm, capsys) -> None:
    answers, _ = farm
    answers["GET", "/v1/leases/l1"] = httpx.Response(200, json=LEASE)
    assert run(monkeypatch, "lease", "show", "l1") == 0
    assert capsys.readouterr().out == "id: l1\nproject: wind\npreempted: 2026-11-22T09:00:00.000Z\n"


def test_a_list_of_leases_says_so_too(monkeypatch, farm, capsys) -> None:
    answers, _ = farm
    answers["GET", "/v1/leases"] = httpx.Response(200, json=[LEASE])
    monkeypatch.setattr(session.out, "width", 200)
    assert run(monkeypatch, "lease", "list") == 0
    assert capsys.readouterr().out.split()[-3:] == ["l1", "wind", "2026-11-22T09:00:00.000Z"]


@pytest.mark.parametrize("width", [60, 200])
def test_a_list_of_models_says_where_they_lie_whole(monkeypatch, farm, capsys, width) -> None:
    answers, _ = farm
    uri = f"/farm/artifacts/tenants/univ/outbox/{'j' * 60}/chat"
    model = {"ref": "chat:1", "uri": uri, "created": "2026", "manifest": {"kind": "causal-lm"}}
    answers["GET", "/v1/model-versions"] = httpx.Response(200, json=[model])
    monkeypatch.setattr(session.out, "width", width)
    assert run(monkeypatch, "models") == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert shown.count("j") >= 60
    assert uri in shown or width == 60


def test_a_service_is_deployed_for_a_project(monkeypatch, farm) -> None:
    answers, sent = farm
    answers["POST", "/v1/services"] = httpx.Response(201, json={"name": "wind", "revisions": []})
    assert run(monkeypatch, "deploy", "wind", "--project", "night") == 0
    assert sent[0][2] == {"model": "wind", "project": "night", "replace": False}


def test_a_services_revisions_are_shown_with_their_share(monkeypatch, farm, capsys) -> None:
    answers, sent = farm
    revisions = [{"number": number, "model": f"wind:{number}", "percent": 50} for number in (1, 2)]
    found = httpx.Response(200, json={"name": "wind", "revisions": revisions})
    answers["POST", "/v1/services/wind/promote"] = answers["POST", "/v1/services/wind/rollback"] = found
    answers["PATCH", "/v1/services/wind"] = found
    assert run(monkeypatch, "service", "promote", "wind") == 0
    shown = capsys.readouterr().out.split()
    assert shown[:2] == ["name:", "wind"]
    assert [word for word in shown if word.startswith("wind:")] == ["wind:1", "wind:2"]
    assert run(monkeypatch, "service", "rollback", "wind") == 0
    assert run(monkeypatch, "service", "scale", "wind", "--min", "0", "--idle-minutes", "2") == 0
    assert sent[-1] == ("PATCH", "/v1/services/wind", {"min_replicas": 0, "idle_minutes": 2.0})
    assert run(monkeypatch, "service", "share", "wind", "--tenant", "univ", "--none") == 0
    assert sent[-1] == ("PATCH", "/v1/services/wind", {"shared": False})


def test_a_refusal_is_one_line_and_exit_code_1(monkeypatch, farm, capsys) -> None:
    answers, _ = farm
    body = {"code": "invalid_shape", "detail": "'9x' is not a shape", "status": 422}
    answers["POST", "/v1/leases"] = httpx.Response(422, json=body)
    assert run(monkeypatch, "lease", "request", "9x") == 1
    assert capsys.readouterr().err.strip() == "cloudfarm: '9x' is not a shape [invalid_shape]"


def test_a_farm_that_does_not_answer_is_exit_code_3(monkeypatch, farm, capsys) -> None:
    answers, _ = farm
    answers["GET", "/v1/model-versions"] = httpx.Response(
        503, json={"code": "unavailable", "detail": "try again"}
    )
    assert run(monkeypatch, "models") == 3
    assert "[unavailable]" in capsys.readouterr().err


def test_without_a_token_the_command_says_what_to_set(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setenv("CLOUDFARM_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("CLOUDFARM_TOKEN", raising=False)
    assert run(monkeypatch, "whoami") == 1
    assert "CLOUDFARM_TOKEN" in capsys.readouterr().err


def test_down_without_a_farm_is_refused(monkeypatch, tmp_path: Path, capsys) -> None:
    assert run(monkeypatch, "down", "--state", str(tmp_path)) == 1
    assert "there is no farm" in capsys.readouterr().err


def test_wrong_usage_is_exit_code_2(monkeypatch) -> None:
    assert run(monkeypatch, "lease", "request") == 2


def test_simulations_need_no_farm(monkeypatch, capsys):
    farm = ["--hosts", "2", "--gpus", "2", "--hours", "0.2", "--seed", "3", "--load", "1.3", "--burst"]
    assert run(monkeypatch, "simulate", "tenants", *farm, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["setup"]["burst"] is True
    assert told["measures"]["tenants"].keys() == {"t0", "t1"}
    assert run(monkeypatch, "simulate", "tenants", "--hosts", "0") == 1
    assert "are positive" in capsys.readouterr().err


def test_the_coverage_of_forecasts_is_simulated_without_a_farm(monkeypatch, capsys):
    farm = ["--hosts", "1", "--gpus", "2", "--hours", "1", "--seed", "3", "--load", "2"]
    assert run(monkeypatch, "simulate", "coverage", *farm, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert 0 <= told["first"]["covered"] <= 1
    assert run(monkeypatch, "simulate", "coverage", "--hosts", "0") == 1
    assert "are positive" in capsys.readouterr().err


def test_a_key_gets_its_limits(monkeypatch, farm) -> None:
    answers, sent = farm
    answers["POST", "/v1/keys"] = httpx.Response(201, json={"id": "c1", "secret": "cfk_x"})
    assert run(monkeypatch, "key", "create", "robot", "--rpm", "60", "--tokens-per-month", "1000000") == 0
    limits = {"requests_per_minute": 60, "tokens_per_month": 1000000}
    assert sent == [("POST", "/v1/keys", {"user": "robot", "services": [], **limits})]


def test_limits_of_a_key_are_changed_and_lifted(monkeypatch, farm) -> None:
    answers, sent = farm
    answers["PATCH", "/v1/keys/c1"] = httpx.Response(200, json={"id": "c1", "tokens_per_minute": 500})
    assert run(monkeypatch, "key", "limit", "c1", "--rpm", "none", "--tpm", "500", "--json") == 0
    assert sent == [("PATCH", "/v1/keys/c1", {"requests_per_minute": None, "tokens_per_minute": 500})]


def test_a_limit_that_is_no_number_is_wrong_usage(monkeypatch, farm, capsys) -> None:
    assert run(monkeypatch, "key", "limit", "c1", "--rpm", "many") == 2
    assert "'many' is neither a whole number nor 'none'" in capsys.readouterr().err
    assert farm[1] == []


@pytest.mark.parametrize(("said", "sent"), [("5000", 5000), ("none", None)])
def test_a_tenants_tokens_of_a_month(monkeypatch, farm, said, sent) -> None:
    farm[0]["PATCH", "/v1/tenants/alpha"] = httpx.Response(200, json={"id": "alpha"})
    assert run(monkeypatch, "tenant", "budget", "alpha", said) == 0
    assert farm[1] == [("PATCH", "/v1/tenants/alpha", {"limit_tokens_per_month": sent})]


def test_the_statement_of_calls_is_a_table_with_a_total(monkeypatch, farm, capsys) -> None:
    used = {
        "requests": 3,
        "prompt_tokens": 40,
        "completion_tokens": 50,
        "busy_ms": 1234,
        "milli_gpu_ms": 617_001,
    }
    line = {"day": "2026-11-21", "tenant": "a", "key": "c1", "service": "a/chat", "model": "chat", **used}
    body = {"lines": [], "total": 0, "running": [], "served": {"total": used, "lines": [line]}}
    farm[0]["GET", "/v1/usage"] = httpx.Response(200, json=body)
    monkeypatch.setattr(session.out, "width", 200)
    assert run(monkeypatch, "usage") == 0
    shown = capsys.readouterr().out
    assert "served: 3 requests in 1.234 s, 40 tokens read and 50 made, 617.001 milli-GPU-seconds" in shown
    assert "a/chat" in shown
