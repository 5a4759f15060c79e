"""The engine for where vLLM is not installed: transformers, a token of each request in turn, no batches.

One thread works: it takes the requests in turn and gives each of their answers its next token, so a long answer does
not keep the others waiting. More of them at once are not faster than one after another. A request begins when the keys
and values that it may come to need have room beside those of the others.
"""

import asyncio
import copy
import threading
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel

from cloudfarm.domain.generation import Piece, Sampling
from cloudfarm.errors import UnavailableError
from cloudfarm.inference.engine import LocalAdapter
from cloudfarm.inference.memory import own_gpu_cache_bytes
from cloudfarm.inference.text_stream import TextStream
from cloudfarm.inference.turns import Turns
from cloudfarm.training.bundle import BundleError

MAX_ADAPTERS = 8
"""Adapters in memory."""
_UNKNOWN = 0
"""Of which adapter is in effect."""


@dataclass(slots=True)
class _Choice:
    """One answer on its way."""

    index: int
    text: TextStream
    generator: torch.Generator | None
    cache: Any
    logits: torch.Tensor
    """Of the next token."""
    counts: Counter[int] = field(default_factory=Counter)
    """How often each token was chosen."""


@dataclass(slots=True)
class _Request:
    prompt: Sequence[int]
    sampling: Sampling
    max_tokens: int
    adapter: LocalAdapter | None
    loop: asyncio.AbstractEventLoop
    out: asyncio.Queue[Piece | Exception | None] = field(default_factory=asyncio.Queue)
    """Pieces; then None, or why there are no more."""
    cancelled: bool = False
    choices: list[_Choice] | None = None
    """Those still being answered; None before the prompt was read."""

    @property
    def tokens(self) -> int:
        """For how many tokens it may come to need keys and values; each choice has its own of the prompt, too."""
        return (len(self.prompt) + self.max_tokens) * self.sampling.choices

    def put(self, item: Piece | Exception | None) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.out.put_nowait, item)


class TransformersEngine:
    """A model of a Hugging Face folder (:class:`~cloudfarm.inference.engine.Engine`).

    Args:
        folder: the model.
        context_tokens: the most that the model takes.
        cache_bytes: for keys and values on a CPU; None where there is a GPU.
    """

    follows_schemas = False

    def __init__(self, folder: Path, context_tokens: int, cache_bytes: int | None) -> None:
        transformers.utils.logging.disable_progress_bar()  # a replica's log is no terminal
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = (
            transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype="auto" if self._device.type == "cuda" else torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
            .to(self._device)
            .eval()
        )
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.vocabulary = int(self._model.get_input_embeddings().num_embeddings)
        ends = self._model.generation_config.eos_token_id
        self._ends = {self._tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self._peft: PeftModel | None = None
        self._loaded: OrderedDict[int, None] = OrderedDict()
        """Numbers of the adapters in memory, the longest unused first."""
        self._active: int | None = None
        """The number of the adapter that is in effect."""
        if cache_bytes is None:
            cache_bytes = own_gpu_cache_bytes()
        self.cache_tokens = max(2, cache_bytes // self._bytes_per_token())
        self.context_tokens = min(context_tokens, self.cache_tokens)
        self._turns: Turns[_Request] = Turns(self.cache_tokens)
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="transformers-engine", daemon=True)
        self._worker.start()

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, max_tokens: int, adapter: LocalAdapter | None
    ) -> AsyncGenerator[Piece]:
        """Answer, as the port says."""
        request = _Request(prompt, sampling, max_tokens, adapter, asyncio.get_running_loop())
        with self._changed:
            self._turns.waiting.append(request)
            self._changed.notify()
        try:
            while (item := await request.out.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            request.cancelled = True

    def running(self) -> int:
        """Return how many requests are being answered or wait for their turn."""
        with self._changed:
            return len(self._turns)

    def check(self) -> None:
        """Raise if the thread has ended."""
        if not self._worker.is_alive():
            raise UnavailableError("the thread of the transformers engine has ended")

    def describe(self) -> Mapping[str, Any]:
        """Return what the engine is."""
        return {
            "name": "transformers",
            "version": transformers.__version__,
            "device": str(self._device),
            "dtype": str(self._model.dtype).removeprefix("torch."),
        }

    def close(self) -> None:
        """End the thread; requests end with an error."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        while (request := self._next()) is not None:
            try:
                done = request.cancelled or self._advance(request)
            except Exception as failure:  # noqa: BLE001 - it is the request's, and raised where its answer is awaited
                request.put(failure)
                done = True
            with self._changed:
                # It stays the first one until now, so that running() counts it.
                self._turns.running.popleft()
                if not done:
                    self._turns.running.append(request)

    def _next(self) -> _Request | None:
        """Return the request whose turn it is, when there is one; None when the engine is closed."""
        with self._changed:
            while not self._closed:
                self._turns.begin()
                if self._turns.running:
                    return self._turns.running[0]
                self._changed.wait()
            for request in (*self._turns.running, *self._turns.waiting):
                request.put(UnavailableError("the engine was closed"))
            return None

    def _advance(self, request: _Request) -> bool:
        """Read the request's prompt, or give each of its answers a token; say whether all are finished."""
        self._use(request.adapter)
        if request.choices is None:
            request.choices = self._begin(request)
            return False
        for choice in list(request.choices):
            piece = self._step(request, choice)
            request.put(piece)
            if piece.finish_reason:
                request.choices.remove(choice)
        if not request.choices:
            request.put(None)
        return not request.choices

    def _begin(self, request: _Request) -> list[_Choice]:
        # First: whoever leaves while the prompt is read is charged for it.
        request.put(Piece(prompt_tokens=len(request.prompt)))
        cache: Any = transformers.DynamicCache(config=self._model.config)
        logits = self._forward(list(request.prompt), cache)
        choices = []
        for index in range(request.sampling.choices):
            generator = None
            if request.sampling.seed is not None:
                generator = torch.Generator(self._device).manual_seed((request.sampling.seed + index) % 2**63)
            own = cache if index == 0 else copy.deepcopy(cache)
            choices.append(
                _Choice(
                    index,
                    TextStream(self._decode, request.sampling.stop, request.prompt),
                    generator,
                    own,
                    logits,
                )
            )
        return choices

    def _step(self, request: _Request, choice: _Choice) -> Piece:
        token = choose(choice.logits, request.sampling, choice.counts, choice.generator)
        choice.counts[token] += 1
        made = choice.counts.total()
        if token in self._ends and not request.sampling.ignore_eos:
            return Piece(choice.index, choice.text.finish(), 1, finish_reason="stop")
        text = choice.text.push(token)
        if not choice.text.stopped and made >= request.max_tokens:
            text += choice.text.finish()
            reason = "stop" if choice.text.stopped else "length"
            return Piece(choice.index, text, 1, finish_reason=reason)
        if choice.text.stopped:
            return Piece(choice.index, text, 1, finish_reason="stop")
        choice.logits = self._forward([token], choice.cache)
        return Piece(choice.index, text, 1)

    def _forward(self, tokens: list[int], cache: Any) -> torch.Tensor:
        ids = torch.tensor([tokens], device=self._device)
        with torch.inference_mode():
            out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits: torch.Tensor = out.logits[0, -1].float()
        return logits

    def _bytes_per_token(self) -> int:
        """Return what keys and values take; by doing it, as the models' configurations name it in many ways."""
        cache: Any = transformers.DynamicCache(config=self._model.config)
        self._forward([0], cache)
        kept = (each for layer in cache.layers for each in vars(layer).values())
        return sum(each.nbytes for each in kept if isinstance(each, torch.Tensor))

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _use(self, adapter: LocalAdapter | None) -> None:
        """Put an adapter into effect, or none."""
        number = adapter.number if adapter else None
        if number == self._active:
            return
        self._active = _UNKNOWN  # should this fail
        if adapter is not None:
            if adapter.number not in self._loaded:
                self._load(adapter)
            self._loaded.move_to_end(adapter.number)
            self._adapters().base_model.enable_adapter_layers()
            self._adapters().set_adapter(str(adapter.number))
        elif self._peft is not None:
            self._peft.base_model.disable_adapter_layers()
        self._active = number

    def _load(self, adapter: LocalAdapter) -> None:
        while len(self._loaded) >= MAX_ADAPTERS:
            oldest, _ = self._loaded.popitem(last=False)
            self._adapters().delete_adapter(str(oldest))
        name = str(adapter.number)
        try:
            config = LoraConfig.from_pretrained(str(adapter.folder))
            # Nothing by itself, until its weights are there: one that fails on the way leaves the model as it is.
            config.init_lora_weights = True
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(
                    self._model, adapter.folder, adapter_name=name, config=config
                ).eval()
            else:
                self._peft.load_adapter(str(adapter.folder), adapter_name=name, peft_config=config)
        except (ValueError, RuntimeError, KeyError, TypeError) as bad:
            raise BundleError(f"the engine cannot load the adapter: {bad}") from bad
        self._loaded[adapter.number] = None

    def _adapters(self) -> PeftModel:
        if self._peft is None:
            raise UnavailableError("no adapter was ever loaded")
        return self._peft


def choose(
    logits: torch.Tensor, sampling: Sampling, counts: Mapping[int, int], generator: torch.Generator | None
) -> int:
    """Return the next token.

    Args:
        logits: of every token, in float32.
        sampling: how to choose.
        counts: how often each token was chosen before.
        generator: makes chance repeatable.
    """
    if counts and (sampling.frequency_penalty or sampling.presence_penalty):
        logits = logits.clone()
        for token, count in counts.items():
            logits[token] -= sampling.frequency_penalty * count + sampling.presence_penalty
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, tokens = probabilities.sort(descending=True)
        # A token stays if those before it do not make top_p yet: the first one always stays.
        ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0
        return int(tokens[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))
