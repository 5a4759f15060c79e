"""Text embeddings: the mean of a model's last hidden states over each text, of length one.

Models that want a prefix (``query: `` and ``passage: `` of the e5 family) get what the caller sends: no prefix is put
before it.
"""

import asyncio
import shutil
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
import transformers

from cloudfarm.domain.bundles import TEXT_EMBEDDING
from cloudfarm.domain.generation import Embeddings, Generation, Piece, Refusal, ToEmbed
from cloudfarm.inference.completions import card, fetch_model, scratch_folder
from cloudfarm.inference.plain_errors import told_plainly
from cloudfarm.training.bundle import BundleError
from cloudfarm.training.hf_folder import EmbeddingSpec

MAX_TEXTS = 2048
_BATCH = 32

Given = TypeVar("Given")
T = TypeVar("T")


class Embedder:
    """An embedding model in memory. It is a plain class: ``services/embeddings.py`` makes a Serve deployment of it.

    Args:
        model_uri: path or URI of a model bundle of kind ``text-embedding``.
        digest: of the manifest that was registered (``manifest_digest``); None: whichever is there.

    Raises:
        NotFoundError: there is no bundle.
        BundleError: the bundle is not valid or is no embedding model.
    """

    def __init__(self, model_uri: str, *, digest: str | None = None) -> None:
        transformers.utils.logging.disable_progress_bar()  # a replica's log is no terminal
        folder = scratch_folder()
        try:
            self._manifest = fetch_model(model_uri, folder / "model", TEXT_EMBEDDING, digest)
            self._spec = EmbeddingSpec.model_validate(self._manifest.spec)
            self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder / "model", local_files_only=True
            )
            self._model = (
                transformers.AutoModel.from_pretrained(
                    folder / "model", dtype=torch.float32, use_safetensors=True, local_files_only=True
                )
                .to(self._device)
                .eval()
            )
        finally:
            shutil.rmtree(folder)  # all of it is in memory now
        size = self._model.config.hidden_size
        if size != self._spec.dimensions:
            raise BundleError(f"{model_uri} has {size} dimensions, and its spec says {self._spec.dimensions}")
        self._one = ThreadPoolExecutor(1, thread_name_prefix="embedder")

    async def embed(self, request: ToEmbed) -> AsyncGenerator[Piece | Embeddings | Refusal]:
        """Yield how many tokens the texts have, and then a vector for each; or a refusal. Closing it ends the work."""
        texts = request.texts
        if request.dimensions not in (None, self._spec.dimensions):
            yield Refusal(
                f"this model's vectors have {self._spec.dimensions} dimensions, no other number", "dimensions"
            )
            return
        if not 0 < len(texts) <= MAX_TEXTS or not all(texts):
            yield Refusal(f"input must be 1 to {MAX_TEXTS} texts, none of them empty", "input")
            return
        with told_plainly():
            tokens = await self._in_turn(self._tokens, texts)
            if isinstance(tokens, Refusal):
                yield tokens
                return
            size = sum(map(len, tokens))
            yield Piece(prompt_tokens=size)
            vectors: list[tuple[float, ...]] = [()] * len(texts)
            # Texts of like length together: the shorter ones of a batch are filled up.
            by_length = sorted(range(len(texts)), key=lambda place: len(tokens[place]))
            for start in range(0, len(by_length), _BATCH):
                places = by_length[start : start + _BATCH]
                made = await self._in_turn(self._vectors, [tokens[place] for place in places])
                for place, vector in zip(places, made, strict=True):
                    vectors[place] = tuple(vector)
            yield Embeddings(tuple(vectors), size)

    async def generate(self, request: Generation) -> AsyncGenerator[Refusal]:  # noqa: ARG002 - as language models
        """Refuse: this model generates nothing."""
        yield Refusal(f"{self._manifest.name} makes embeddings; it generates no text", "model")

    async def describe(self) -> dict[str, Any]:
        """Return the model's card."""
        return card(self._manifest) | {
            "dimensions": self._spec.dimensions,
            "max_tokens": self._spec.max_tokens,
            "licence": self._spec.licence,
            "engine": {
                "name": "transformers",
                "version": transformers.__version__,
                "device": str(self._device),
                "dtype": str(self._model.dtype).removeprefix("torch."),
            },
        }

    async def _in_turn(self, work: Callable[[Given], T], given: Given) -> T:
        """Have a piece of work done in the thread; after each the other requests have their turn."""
        return await asyncio.get_running_loop().run_in_executor(self._one, work, given)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]] | Refusal:
        tokens: list[list[int]] = self._tokenizer(list(texts))["input_ids"]
        for place, each in enumerate(tokens):
            if len(each) > self._spec.max_tokens:
                return Refusal(
                    f"This model's maximum context length is {self._spec.max_tokens} tokens, and input {place} has "
                    f"{len(each)}.",
                    "input",
                    "context_length_exceeded",
                )
        return tokens

    def _vectors(self, tokens: list[list[int]]) -> list[list[float]]:
        filled = self._tokenizer.pad({"input_ids": tokens}, return_tensors="pt")
        batch = {key: value.to(self._device) for key, value in filled.items()}
        with torch.inference_mode():
            hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            vectors: list[list[float]] = torch.nn.functional.normalize(mean).tolist()
        return vectors
