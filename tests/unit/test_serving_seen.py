"""What the steward takes from what Serve says of an application."""

from types import SimpleNamespace
from typing import Any

import pytest

from cloudfarm.domain.workload import ServeApp
from cloudfarm.raylayer.serving import ServeClient

MOVES = [{"state": "PENDING_MIGRATION", "node_id": "n1"}]
"""Serve sends it requests until another one runs."""
RUNS, NONE, STARTS = [{"state": "RUNNING", "node_id": "n1"}], [], [{"state": "STARTING", "node_id": None}]


async def seen(
    app_status: str,
    *deployments: tuple[int, list[dict[str, Any]]],
    status: str = "DEPLOY_FAILED",
    said: str = "",
) -> ServeApp:
    """Return what is seen of an application whose deployments want so many replicas and have these."""
    details = {
        f"d{number}": {
            "status": status,
            "message": said,
            "target_num_replicas": wanted,
            "replicas": replicas,
            "deployment_config": {},
        }
        for number, (wanted, replicas) in enumerate(deployments)
    }
    app = {
        "status": app_status,
        "message": "Failed to update the deployments ['d0'].",
        "deployments": details,
    }
    answer = {"applications": {"a.sea.1": app}}

    async def request(_method: str, _path: str) -> SimpleNamespace:
        return SimpleNamespace(json=lambda: answer)

    client = ServeClient(SimpleNamespace(request=request), "127.0.0.1", 8000, "/state")  # type: ignore[arg-type]
    return (await client.apps())["a.sea.1"]


TRACEBACK = """The deployment failed to start 3 times in a row. See controller logs for details. Error:
\x1b[36mray::1:Model.initialize_and_get_metadata()\x1b[39m (pid=218, ip=127.0.0.1, actor_id=7841)
  File "/site-packages/ray/serve/_private/replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "/farm/bundle.py", line 219, in __enter__
    raise NotFoundError(f"{self.uri} does not exist") from gone
"""
BROKEN = """pydantic_core._pydantic_core.ValidationError: 1 validation error for Spec
hidden
  Field required [type=missing]
    For further information visit https://errors.pydantic.dev/2/v/missing"""


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("", "Failed to update the deployments ['d0']."),
        (f"{TRACEBACK}cloudfarm.errors.NotFoundError: /m/fog does not exist", "/m/fog does not exist"),
        (f"{TRACEBACK}KeyboardInterrupt\n", "KeyboardInterrupt"),
        (f"{TRACEBACK}{BROKEN}", " ".join(line.strip() for line in BROKEN.splitlines())),
        (f"{TRACEBACK}ValueError: {'x' * 9_000}", f"ValueError: {'x' * 488}"),
        ("Deployment 'd0' has an\n unhealthy replica.", "Deployment 'd0' has an unhealthy replica."),
    ],
)
async def test_why_it_failed_is_the_error_and_not_where_it_was_raised(said: str, message: str) -> None:
    app = await seen("DEPLOY_FAILED", (1, NONE), said=said)
    assert app.message == message


async def test_what_a_deployment_that_does_not_fail_says_is_no_reason() -> None:
    app = await seen("RUNNING", (1, RUNS), status="HEALTHY", said="fine")
    assert app.message == "Failed to update the deployments ['d0']."


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
