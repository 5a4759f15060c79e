"""The port Inference over a real Serve under plain local Ray: pieces arrive, and the replica's work ends with them."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVER = """
import asyncio, json, os, sys
from collections import Counter
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import ray
from ray import serve

from cloudfarm.domain.generation import Embeddings, Generation, Piece, Refusal, Sampling, ToEmbed
from cloudfarm.errors import CloudfarmError
from cloudfarm.inference.completions import Completions
from cloudfarm.raylayer.serve_inference import ServeInference


class Engine:
    post = Completions.post

    def __init__(self):
        self.under_way = 0

    async def generate(self, request):
        (prompt,) = request.prompts
        self.under_way += 1
        try:
            if prompt == "refuse":
                yield Refusal("too long", "prompt", "context_length_exceeded")
                return
            if prompt == "odd":
                yield "odd"
            if prompt == "raise":
                raise KeyError("inside")
            if prompt == "die at once":
                os._exit(1)
            if prompt == "who":
                yield Piece(text=str(os.getpid()))
            if prompt == "brief":
                yield Piece()
                await asyncio.sleep(1)
                return
            if prompt in ("silent", "who"):
                await asyncio.Event().wait()
            for count in range(request.sampling.max_tokens):
                if prompt == "die" and count == 2:
                    os._exit(1)
                await asyncio.sleep(0.01)
                yield Piece(text=str(count), tokens=1)
        finally:
            self.under_way -= 1

    async def embed(self, request):
        texts = list(request.texts)
        if texts == ["refuse"]:
            yield Refusal("too long", "input")
            return
        yield Piece(prompt_tokens=len(texts))
        yield Embeddings(tuple((float(len(text)),) for text in texts), len(texts))

    async def answer(self, payload):
        if "die" in payload:
            os._exit(1)
        yield {"echo": payload}

    async def busy(self):
        return self.under_way


def untold(_piece):
    pass


async def taken(pieces):
    found = []
    try:
        async for piece in pieces:
            found.append(piece.text)
    except CloudfarmError as error:
        found.append([error.code, error.detail, error.data])
    return found


async def main():
    handle = serve.get_app_handle("kaist.talk")
    inference = ServeInference()

    def ask(prompt, most=3, app="kaist.talk"):
        return inference.generate(app, Generation(Sampling(max_tokens=most), prompts=(prompt,)), untold)

    async def idle():
        async with asyncio.timeout(20):
            while await handle.busy.remote():
                await asyncio.sleep(0.05)
        return True

    seen = {name: await taken(ask(name)) for name in ("count", "refuse", "odd", "raise")}
    seen["together"] = await asyncio.gather(*(taken(ask("count", 20)) for _ in range(8)))
    async with aclosing(ask("count", 100_000)) as pieces:
        seen["left"] = [(await anext(pieces)).text for _ in range(3)]
        seen["busy before"] = await handle.busy.remote()
    seen["idle after it was left"] = await idle()
    waiting = asyncio.create_task(taken(ask("silent")))
    while not await handle.busy.remote():
        await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.wait([waiting])
    seen["cancelled"] = waiting.cancelled()
    seen["idle after it was cancelled"] = await idle()
    seen["call"] = await inference.call("kaist.talk", {"a": 1}, timeout_s=10)
    told = []
    seen["embed"] = (await inference.embed("kaist.talk", ToEmbed(("ab", "c")), told.append)).vectors
    seen["embed told"] = [piece.prompt_tokens for piece in told]
    try:
        await inference.embed("kaist.talk", ToEmbed(("refuse",)), untold)
    except CloudfarmError as error:
        seen["embed refused"] = [error.code, error.data]
    async with AsyncExitStack() as held:
        who = []

        async def hold(count):
            for _ in range(count):
                answer = await held.enter_async_context(aclosing(ask("who", app="kaist.pair")))
                who.append((await anext(answer)).text)

        brief = ask("brief", app="kaist.pair")
        await anext(brief)
        await hold(20)
        await taken(brief)  # it began when there was nothing else
        await hold(20)
        seen["spread"] = sorted(Counter(who).values())
    seen["missing"] = await taken(ask("count", app="kaist.none"))
    seen["die"] = await taken(ask("die"))
    seen["die at once"] = await taken(ask("die at once", app="kaist.pair"))
    try:
        await inference.call("kaist.pair", {"die": True}, timeout_s=60)
    except CloudfarmError as error:
        seen["call dies"] = [[error.code, error.detail, error.data]]
    Path(sys.argv[1]).write_text(json.dumps(seen))


ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=os.environ["RAY_TMPDIR"])
serve.start(proxy_location="Disabled")
light = {"num_cpus": 0}
for name, replicas in {"kaist.talk": 1, "kaist.pair": 2}.items():
    engine = serve.deployment(
        Engine, num_replicas=replicas, ray_actor_options=light, max_ongoing_requests=100
    )
    serve.run(engine.bind(), name=name, route_prefix=None)
asyncio.run(main())
serve.shutdown()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def seen():
    with tempfile.TemporaryDirectory(prefix="cf-inference-", ignore_cleanup_errors=True) as folder:
        found = Path(folder) / "seen.json"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CLOUDFARM_"))}
        run = subprocess.run(
            [sys.executable, "-c", DRIVER, str(found)],
            cwd=ROOT,
            env={**kept, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-4000:]
        return json.loads(found.read_text())


def test_pieces_arrive_in_their_order(seen):
    assert seen["count"] == ["0", "1", "2"]
    assert seen["together"] == [[str(count) for count in range(20)]] * 8


def test_what_the_engine_refuses(seen):
    data = {"param": "prompt", "openai_code": "context_length_exceeded"}
    assert seen["refuse"] == [["invalid_input", "too long", data]]
    assert seen["embed refused"] == ["invalid_input", {"param": "input", "openai_code": "invalid_value"}]


def test_leaving_ends_the_replicas_work(seen):
    assert seen["left"] == ["0", "1", "2"]
    assert seen["busy before"] == 1
    assert seen["idle after it was left"]


def test_cancelling_ends_the_replicas_work_also_before_the_first_piece(seen):
    assert seen["cancelled"]
    assert seen["idle after it was cancelled"]


@pytest.mark.parametrize(
    ("name", "pieces", "code"),
    [
        ("odd", [], "unavailable"),
        ("raise", [], "unavailable"),
        ("missing", [], "no_replica"),
        ("die", ["0", "1"], "replica_lost"),
        ("die at once", [], "replica_lost"),
        ("call dies", [], "replica_lost"),
    ],
)
def test_a_replica_that_fails_is_an_error_for_the_caller_and_shows_nothing(seen, name, pieces, code):
    *before, (found, detail, _) = seen[name]
    # Over gRPC a piece that is still under way when the replica dies may be lost.
    assert before == pieces[: len(before)]
    assert found == code
    assert "inside" not in detail


def test_a_call_is_answered(seen):
    assert seen["call"] == {"echo": {"a": 1}}


def test_long_answers_are_spread_over_the_replicas(seen):
    assert seen["spread"] == [20, 20]


def test_texts_are_embedded_and_their_size_told_before(seen):
    assert seen["embed"] == [[2.0], [1.0]]
    assert seen["embed told"] == [2]
