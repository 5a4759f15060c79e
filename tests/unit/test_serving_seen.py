"""What the steward takes from what Serve says of an application."""

from types import SimpleNamespace
from typing import Any

import pytest

from cloudfarm.domain.workload import ServeApp
from cloudfarm.raylayer.serving import ServeClient

MOVES = [{"state": "PENDING_MIGRATION", "node_id": "n1"}]
"""Serve sends it requests until another one runs."""
RUNS, NONE, STARTS = [{"state": "RUNNING", "node_id": "n1"}], [], [{"state": "STARTING", "node_id": None}]


async def seen(status: str, *deployments: tuple[int, list[dict[str, Any]]]) -> ServeApp:
    """Return what is seen of an application whose deployments want so many replicas and have these."""
    details = {
        f"d{number}": {"target_num_replicas": wanted, "replicas": replicas, "deployment_config": {}}
        for number, (wanted, replicas) in enumerate(deployments)
    }
    answer = {"applications": {"a.sea.1": {"status": status, "deployments": details}}}

    async def request(_method: str, _path: str) -> SimpleNamespace:
        return SimpleNamespace(json=lambda: answer)

    client = ServeClient(SimpleNamespace(request=request), "127.0.0.1", 8000, "/state")  # type: ignore[arg-type]
    return (await client.apps())["a.sea.1"]


@pytest.mark.parametrize(
    ("status", "found"),
    [("RUNNING", (False, False)), ("UNHEALTHY", (True, False)), ("DEPLOY_FAILED", (True, True))],
)
async def test_serve_gives_up_only_what_it_could_not_deploy(status: str, found: tuple[bool, bool]) -> None:
    app = await seen(status, (1, NONE))
    assert (app.failed, app.given_up) == found


@pytest.mark.parametrize(
    ("status", "deployments", "running"),
    [
        ("RUNNING", [(1, RUNS)], True),
        ("RUNNING", [(1, MOVES)], True),
        ("DEPLOYING", [(2, [*RUNS, *STARTS])], True),  # it grows, and goes on
        ("DEPLOYING", [(1, RUNS), (1, STARTS)], False),
        ("RUNNING", [(1, RUNS), (0, NONE)], True),  # autoscaled to none: Serve starts it when it is asked
        ("RUNNING", [(0, NONE)], True),
        ("DEPLOYING", [], False),  # it is being imported
        ("DELETING", [(0, NONE)], False),
        ("DELETING", [(0, RUNS)], False),
        ("UNHEALTHY", [(1, NONE)], False),
    ],
)
async def test_an_application_answers_if_each_deployment_has_a_replica_or_starts_one_when_asked(
    status: str, deployments: list[tuple[int, list[dict[str, Any]]]], running: bool
) -> None:
    assert (await seen(status, *deployments)).running is running
