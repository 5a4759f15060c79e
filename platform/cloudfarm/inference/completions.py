"""Language models behind a handle: requests in the farm's words in, pieces of answers out.

What the caller did wrong is answered with a :class:`~cloudfarm.domain.generation.Refusal`, not raised: an exception
that crosses a Serve handle arrives as a ``RayTaskError`` with a traceback.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import transformers

from cloudfarm.domain.bundles import CAUSAL_LM
from cloudfarm.domain.generation import Generation, Piece, Refusal, Sampling, ToEmbed
from cloudfarm.errors import InvalidInputError, NotFoundError
from cloudfarm.inference.adapters import Adapters
from cloudfarm.inference.asked import Prompts, check_sampling
from cloudfarm.inference.engine import EngineName, LocalAdapter, open_engine
from cloudfarm.inference.plain_errors import told_plainly
from cloudfarm.inference.together import together
from cloudfarm.training.bundle import BundleError, Manifest
from cloudfarm.training.hf_folder import CausalLmSpec, fetch_bundle

SHORT = 4000
"""Characters that are put into tokens before another thread would have begun to."""
AT_ONCE = 16
"""Prompts of one request that an engine has at once: the others' requests are to have their turn, too."""


class Courier(Protocol):
    """Brings the pieces of one answer to whoever has asked."""

    async def bring(self, piece: Piece) -> None:
        """Bring a piece."""
        ...

    async def end(self) -> None:
        """Say that this was all."""
        ...

    async def stop(self) -> None:
        """Say that there will be no more, although it was not all."""
        ...


class Completions:
    """A language model in memory. It is a plain class: ``services/completions.py`` makes a Serve deployment of it.

    The bundle is copied to this machine, and only what was checked while it was copied is loaded.

    Args:
        model_uri: path or URI of a model bundle of kind ``causal-lm``.
        engine: another choice than vLLM where that is installed.
        digest: of the manifest that was registered (``manifest_digest``); None: whichever is there.

    Raises:
        NotFoundError: there is no bundle.
        BundleError: the bundle is not valid or is no language model.
    """

    def __init__(
        self, model_uri: str, engine: EngineName | None = None, *, digest: str | None = None
    ) -> None:
        self._folder = scratch_folder()
        try:
            self._manifest = fetch_model(model_uri, self._folder / "model", CAUSAL_LM, digest)
            self._spec = CausalLmSpec.model_validate(self._manifest.spec)
            self._adapters = Adapters(self._folder / "adapters", self._manifest, self._folder / "model")
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                self._folder / "model", local_files_only=True
            )
            # Last: whatever fails before leaves no processes of an engine.
            self._engine = open_engine(self._folder / "model", self._spec.context_tokens, engine)
        except BaseException:
            shutil.rmtree(self._folder)
            raise
        held = self._engine
        self._prompts = Prompts(tokenizer, held.context_tokens, held.vocabulary, held.cache_tokens)

    async def generate(self, request: Generation) -> AsyncGenerator[Piece | Refusal]:
        """Answer one request: pieces, or one refusal and nothing else. Closing the generator ends the work."""
        refusal = check_sampling(request.sampling)
        if refusal is None and request.sampling.json_schema is not None and not self._engine.follows_schemas:
            name = self._engine.describe()["name"]
            refusal = Refusal(
                f"the service's engine, {name}, cannot be held to a format",
                "response_format",
                "unsupported_parameter",
            )
        if refusal is not None:
            yield refusal
            return
        if request.size <= SHORT:
            prompts = self._prompts.encode(request)
        else:
            prompts = await asyncio.to_thread(self._prompts.encode, request)  # seconds, for megabytes of text
        if isinstance(prompts, Refusal):
            yield prompts
            return
        try:
            async with self._adapters.held(request.adapter) as adapter:
                answers = [
                    self._answer(place, prompt, request.sampling, adapter)
                    for place, prompt in enumerate(prompts)
                ]
                async with aclosing(
                    answers[0] if len(answers) == 1 else together(answers, AT_ONCE)
                ) as pieces:
                    async for piece in pieces:
                        yield piece
        except (BundleError, NotFoundError) as bad:
            yield Refusal(f"the adapter cannot be served: {bad.detail}", "model")
        except InvalidInputError as bad:
            yield Refusal(bad.detail, "response_format")

    async def _answer(
        self, place: int, prompt: list[int], sampling: Sampling, adapter: LocalAdapter | None
    ) -> AsyncGenerator[Piece]:
        room = self._prompts.room(prompt, sampling)
        async with aclosing(self._engine.generate(prompt, sampling, room, adapter)) as pieces:
            async for piece in pieces:
                yield replace(piece, index=place * sampling.choices + piece.index) if place else piece

    async def post(self, request: Generation, courier: Courier) -> AsyncGenerator[Refusal]:
        """Answer one request piece by piece through a courier; yield a refusal or nothing. Closing it ends the work."""
        with told_plainly():
            try:
                async with aclosing(self.generate(request)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, Refusal):
                            yield piece
                            return
                        await courier.bring(piece)
                await courier.end()
            except BaseException:
                await courier.stop()  # also of an answer that nobody reads any more what was made is paid
                raise

    async def embed(self, request: ToEmbed) -> AsyncGenerator[Refusal]:  # noqa: ARG002 - as services for embeddings
        """Refuse: this model generates."""
        yield Refusal(f"{self._manifest.name} generates text; it makes no embeddings", "model")

    async def describe(self) -> dict[str, Any]:
        """Return the model's card: what it is, trained on what, and which engine serves it how."""
        return card(self._manifest) | {
            "context_tokens": self._engine.context_tokens,
            "licence": self._spec.licence,
            "engine": dict(self._engine.describe()),
        }

    async def running(self) -> int:
        """Return how many requests the engine is answering."""
        return self._engine.running()

    def check_health(self) -> None:
        """Let Serve replace a replica whose engine has ended."""
        self._engine.check()

    def close(self) -> None:
        """End the engine, and remove what was copied."""
        self._engine.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class CompletionsReplica(Completions):
    """Completions as Serve starts and ends them."""

    def __del__(self) -> None:
        """Close; Serve calls this when the replica ends, and only once it answers nothing any more."""
        if hasattr(self, "_prompts"):  # it was opened, and not closed yet
            del self._prompts
            self.close()


def scratch_folder() -> Path:
    """Return a new folder on this machine: the lease node's own if there is one, which goes with it."""
    home = os.environ.get("CLOUDFARM_NODE_HOME")
    return Path(tempfile.mkdtemp(prefix="model-", dir=home))


def fetch_model(model_uri: str, into: Path, kind: str, digest: str | None = None) -> Manifest:
    """Copy a bundle of one kind into a new folder, as :func:`~cloudfarm.training.hf_folder.fetch_bundle` says."""
    manifest = fetch_bundle(model_uri, into, digest)
    if manifest.kind != kind:
        raise BundleError(f"{model_uri} is a {manifest.kind}, not a {kind}")
    return manifest


def card(manifest: Manifest) -> dict[str, Any]:
    """Return what a card says of every model."""
    return {
        "model": manifest.name,
        "version": manifest.version,
        "kind": manifest.kind,
        "created_at": manifest.model_dump(mode="json")["created_at"],
        "framework": manifest.framework,
        "metrics": manifest.metrics,
        "data": manifest.data.model_dump(mode="json"),
    }
