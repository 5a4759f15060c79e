"""Answers in OpenAI's shapes, made of the pieces that a model gives: whole, or as server-sent events.

An event of a stream is put together from texts prepared once: only what is new in it is encoded.
"""

import asyncio
import base64
import json
import secrets
import struct
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from json.encoder import (
    encode_basestring_ascii as quoted,
)  # written in C; json.dumps would look at its options first
from typing import Any

from cloudfarm.api.openai_errors import error_body
from cloudfarm.domain.generation import Embeddings, Piece
from cloudfarm.errors import CloudfarmError, UnavailableError
from cloudfarm.usecases.routes import ServedModel

# (``quoted`` is what json.dumps comes to in the end, written in C.)
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What is the same in every part of an answer."""

    model: str
    created_s: int
    is_chat: bool
    choices: int
    id: str = field(default_factory=lambda: secrets.token_hex(12))

    def members(self, *, of_stream: bool) -> dict[str, Any]:
        """Return the members with which each object begins."""
        chat = "chat.completion.chunk" if of_stream else "chat.completion"
        return {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.id}",
            "object": chat if self.is_chat else "text_completion",
            "created": self.created_s,
            "model": self.model,
            "system_fingerprint": None,
        }


@dataclass(slots=True)
class _Tally:
    """Counts an answer's tokens and which of its choices have come to their end."""

    choices: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ends: dict[int, str] = field(default_factory=dict)

    def add(self, piece: Piece) -> None:
        self.prompt_tokens += piece.prompt_tokens
        self.completion_tokens += piece.tokens
        if piece.finish_reason is not None:
            self.ends[piece.index] = piece.finish_reason

    def check_ended(self) -> None:
        if len(self.ends) != self.choices:
            raise UnavailableError("the model broke off before the end of its answer")

    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


async def whole(head: Head, pieces: AsyncGenerator[Piece]) -> bytes:
    """Return the whole answer; the pieces' generator is closed.

    Raises:
        UnavailableError: if the pieces end before the answer does.
    """
    tally = _Tally(head.choices)
    texts: list[list[str]] = [[] for _ in range(head.choices)]
    async with aclosing(pieces):
        async for piece in pieces:
            tally.add(piece)
            texts[piece.index].append(piece.text)
    tally.check_ended()
    choices = []
    for index, parts in enumerate(texts):
        text = "".join(parts)
        said: dict[str, Any] = {"text": text}
        if head.is_chat:
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choices.append({"index": index, **said, "logprobs": None, "finish_reason": tally.ends[index]})
    answer = {**head.members(of_stream=False), "choices": choices, "usage": tally.usage()}
    return json.dumps(answer).encode()


async def events(head: Head, pieces: AsyncGenerator[Piece], *, with_usage: bool) -> AsyncGenerator[bytes]:
    """Yield the answer's server-sent events; the pieces' generator is closed.

    Raises:
        UnavailableError: if the pieces end before the answer does.
    """
    tally = _Tally(head.choices)
    begin = "data: " + json.dumps(head.members(of_stream=True))[:-1]
    opened = begin + ', "choices": [{"index": '
    closed = '}], "usage": null}\n\n' if with_usage else "}]}\n\n"
    going_on = ', "logprobs": null, "finish_reason": null' + closed
    before, after = (', "delta": {"content": ', "}") if head.is_chat else (', "text": ', "")
    role = ', "delta": {"role": "assistant", "content": "", "refusal": null}' + going_on
    nothing = ', "delta": {}' if head.is_chat else ', "text": ""'
    begun: set[int] = set()
    async with aclosing(pieces):
        async for piece in pieces:
            tally.add(piece)
            event = ""
            this = f"{opened}{piece.index}"
            if head.is_chat and piece.index not in begun:
                begun.add(piece.index)
                event = this + role
            if piece.text:
                event += f"{this}{before}{quoted(piece.text)}{after}{going_on}"
            if piece.finish_reason is not None:
                reason = quoted(piece.finish_reason)
                event += f'{this}{nothing}, "logprobs": null, "finish_reason": {reason}{closed}'
            if event:
                yield event.encode()
    tally.check_ended()
    if with_usage:
        yield f'{begin}, "choices": [], "usage": {json.dumps(tally.usage())}}}\n\n'.encode()
    yield DONE


def error_event(error: CloudfarmError) -> bytes:
    """Return the event that tells of an error in a stream that has begun."""
    return f"data: {json.dumps(error_body(error))}\n\n".encode()


async def embeddings(model: str, found: Embeddings, *, as_base64: bool) -> bytes:
    """Return the vectors as numbers, or as base64 of little-endian 32-bit ones."""
    data = []
    for index, vector in enumerate(found.vectors):
        if as_base64:
            value = '"' + base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() + '"'
        else:
            value = json.dumps(vector, allow_nan=False)
        data.append(f'{{"object": "embedding", "index": {index}, "embedding": {value}}}')
        await asyncio.sleep(0)  # thousands of numbers take a while to write: others' streams go on meanwhile
    used = {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens}
    rest = json.dumps({"model": model, "usage": used})[1:]
    return f'{{"object": "list", "data": [{", ".join(data)}], {rest}'.encode()


def model_object(model: ServedModel) -> dict[str, Any]:
    """Return a model as the list shows it."""
    return {"id": model.id, "object": "model", "created": model.created_ms // 1000, "owned_by": model.owner}


def model_list(models: Sequence[ServedModel]) -> dict[str, Any]:
    """Return the list of models."""
    return {"object": "list", "data": [model_object(model) for model in models]}
