"""Requests made up from the OpenAPI document, right ones and wrong ones: none makes the farm make a mistake."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from cloudfarm.domain.bundles import TEXT_EMBEDDING
from cloudfarm.testing.front_door import BASE_URL, FrontDoor, open_front_door

EACH = 8
"""Right and wrong requests to each route, as far as there are so many."""
CALLERS = ("alpha.member", "operator")
MODELS = {
    "/v1/chat/completions": "talk",
    "/v1/completions": "talk",
    "/v1/embeddings": "meaning",
    "/v1/services": "wind",
}
"""What is put into bodies for ``model``: made-up names lead nowhere."""


async def known_things(door: FrontDoor) -> dict[str, str]:
    """Make one of everything, and return the names by the paths' parameters."""
    lease = await door.lease()
    await door.submit(submission_id="train-1")
    for name, kind in {
        "wind": "windpower-forecaster",
        "talk": "causal-lm",
        "meaning": TEXT_EMBEDDING,
    }.items():
        await door.serve(name, kind)
    return {
        "lease_id": lease["id"],
        "submission_id": "train-1",
        "ref": "wind",
        "model": "talk",
        "name": "wind",
        "host": "h0",
        "tenant": "beta",
    }


def cases(operation: Any, mode: GenerationMode) -> list[Any]:
    """Return made-up requests to one route, the same ones every time."""
    found: list[Any] = []

    @settings(
        max_examples=EACH,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def collect(case: Any) -> None:
        found.append(case)

    try:
        collect()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "some routes take anything, but every route takes something"
    return found


def requests(case: Any, things: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the request as it was made up, and with names in it that lead somewhere."""
    yield case.as_transport_kwargs(base_url=BASE_URL)
    known = case.path_parameters and {
        key: things.get(key, value) for key, value in case.path_parameters.items()
    }
    if known:
        case.path_parameters = known
    if isinstance(case.body, dict) and case.path in MODELS:
        case.body = {**case.body, "model": MODELS[case.path]}
    yield case.as_transport_kwargs(base_url=BASE_URL)


async def send(client: httpx.AsyncClient, asked: dict[str, Any]) -> httpx.Response:
    headers = {"Content-Type": asked["headers"].get("Content-Type", "application/json")}
    body = {"json": asked["json"]} if "json" in asked else {"content": asked.get("data")}
    return await client.request(
        asked["method"], asked["url"], params=asked["params"], headers=headers, **body
    )


@pytest.mark.timeout(180)
async def test_made_up_requests_find_no_mistake(tmp_path: Path):
    seen: set[tuple[str, int]] = set()
    async with open_front_door(tmp_path) as door:
        things = await known_things(door)
        schema = schemathesis.openapi.from_dict(door.app.openapi())
        operations = [found.ok() for found in schema.get_all_operations()]
        for operation in sorted(
            operations, key=lambda each: each.method == "delete"
        ):  # those end things: last
            modes = [GenerationMode.POSITIVE]
            if operation.body or operation.query:
                modes.append(GenerationMode.NEGATIVE)
            for case in (case for mode in modes for case in cases(operation, mode)):
                for asked in requests(case, things):
                    for who in CALLERS:
                        async with door.client(who) as client:
                            answer = await send(client, asked)
                        assert answer.status_code < 500, (who, asked, answer.text)
                        assert answer.is_success == ("x-cloudfarm-error" not in answer.headers), asked
                        seen.add((operation.label, answer.status_code))
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        assert {(f"POST {path}", 200), (f"POST {path}", 400)} <= seen
