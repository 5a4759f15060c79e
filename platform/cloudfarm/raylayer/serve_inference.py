"""Calls to services through Serve's handles, which know the replicas and spread the load over them."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from cloudfarm.domain.generation import Embeddings, Generation, Piece, Refusal, ToEmbed
from cloudfarm.errors import InvalidInputError, UnavailableError
from cloudfarm.raylayer.serve_handles import Handles, service_of
from cloudfarm.raylayer.serve_pieces import Mailboxes

PIECE_TIMEOUT_S = 300.0
"""How long a replica may take for a piece; the first one waits for the engine to have room."""
EMBED_TIMEOUT_S = 120.0


class ServeInference:
    """Implements :class:`cloudfarm.ports.Inference` with Serve's handles; lives in a Serve replica."""

    def __init__(self) -> None:
        self._handles = Handles()
        self._mailboxes = Mailboxes()
        self._calls: set[asyncio.Task[Any]] = set()
        """Those of answers: one ends a little after its last piece."""

    def close(self) -> None:
        """Take no more answers; for the end of the process."""
        self._mailboxes.close()

    async def call(self, app_name: str, payload: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        """Return the service's answer.

        Raises:
            InvalidInputError: for a payload that the service refuses.
            NoReplicaError: if there is none that could take it.
            ReplicaLostError: if one is lost that may have taken it.
            UnavailableError: if no replica answers in time.
        """
        with self._told(app_name):
            handle = await self._stream(app_name, "answer")
            answer = await _last(handle.remote(dict(payload)), timeout_s)
        if answer is None:
            raise UnavailableError(f"service {service_of(app_name)} did not answer")
        if "error" in answer:
            raise InvalidInputError(str(answer["error"].get("detail", "the service refused the input")))
        return dict(answer)

    async def generate(
        self, app_name: str, request: Generation, made: Callable[[Piece], None]
    ) -> AsyncGenerator[Piece]:
        """Yield the pieces of an answer; closing the generator cancels the replica's, and so the engine's work.

        Raises:
            InvalidInputError: for what the engine refuses.
            NoReplicaError: if there is none that could take it.
            ReplicaLostError: if one is lost that may have taken it.
            UnavailableError: if no replica answers.
        """
        async with self._mailboxes.one(made) as mailbox:
            with self._told(app_name):
                handle = await self._stream(app_name, "post")
                call = asyncio.create_task(_last(handle.remote(request, mailbox.courier)))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            call.add_done_callback(mailbox.answered)
            try:
                while True:
                    with self._told(app_name):
                        item = await mailbox.take(PIECE_TIMEOUT_S)
                    if item is None:
                        return
                    if not isinstance(item, Piece):
                        raise _refused(app_name, item)
                    yield item
            finally:
                if not mailbox.is_complete:
                    call.cancel()

    async def embed(self, app_name: str, request: ToEmbed, made: Callable[[Piece], None]) -> Embeddings:
        """Return the texts' vectors; raises as :meth:`generate`."""
        with self._told(app_name):
            handle = await self._stream(app_name, "embed")
            found = await _last(handle.remote(request), EMBED_TIMEOUT_S, made)
        if isinstance(found, Embeddings):
            return found
        raise _refused(app_name, found)

    async def _stream(self, app_name: str, method: str) -> Any:
        """Return the handle of a method.

        All of them are streams, also where hardly anything is streamed: of a plain call Serve learns only at its end
        that a replica has taken it, and sends all that come meanwhile to the replica that seemed free when it began.
        """
        return await self._handles.get(app_name, method, {"method_name": method, "stream": True})

    def _told(self, app_name: str) -> AbstractContextManager[None]:
        # Over gRPC whatever the replica has raised is raised here as it is.
        return self._handles.told(app_name, Exception)


async def _last(
    response: Any, timeout_s: float | None = None, made: Callable[[Piece], None] | None = None
) -> Any:
    """Return what a replica sends last, and tell of the pieces before; whoever stops waiting stops its work."""
    last = None
    async with asyncio.timeout(timeout_s):
        try:
            async for last in response:
                if isinstance(last, Piece) and made is not None:
                    made(last)
        except asyncio.CancelledError:
            response.cancel()
            raise
    return last


def _refused(app_name: str, item: object) -> InvalidInputError | UnavailableError:
    if isinstance(item, Refusal):
        return InvalidInputError(item.detail, param=item.param, openai_code=item.code)
    return UnavailableError(f"service {service_of(app_name)} answered with something that is no answer")
