"""Calls to services through Serve's handles, which know the replicas and spread the load over them."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cloudfarm.domain.generation import Embeddings, Generation, Piece, Refusal
from cloudfarm.errors import InvalidInputError, NoReplicaError, UnavailableError

log = logging.getLogger(__name__)

BY_REFERENCE = False
"""How answers come from a replica: as objects of Ray's, or else as messages over gRPC.

Measured on two slow cores with 16 streams of 20 pieces a second each: 0.5 ms of CPU a piece on either side over gRPC,
0.9 as objects; a plain call takes 1.1 to 1.5 ms over gRPC and 2.7 by reference.
"""
PIECE_TIMEOUT_S = 300.0
"""How long a replica may take for a piece; the first one waits for the engine to have room."""
EMBED_TIMEOUT_S = 120.0
MOST_APPS = 1000
"""Applications whose handles are kept: each revision of a service is one."""


class ServeInference:
    """Implements :class:`cloudfarm.ports.Inference` with Serve's handles; lives in a Serve replica."""

    def __init__(self) -> None:
        self._handles: dict[str, dict[str, Any]] = {}
        """By application and method; the application's own one, from which the others have their router, under ""."""

    async def call(self, app_name: str, payload: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        """Return the service's answer.

        Raises:
            InvalidInputError: for a payload that the service refuses.
            NoReplicaError: if there is none that could take it.
            UnavailableError: if no replica answers in time.
        """
        with self._told(app_name):
            response = self._handle(app_name, "handle").remote(dict(payload))
            answer = await _answered(response, timeout_s)
        if "error" in answer:
            raise InvalidInputError(str(answer["error"].get("detail", "the service refused the input")))
        return dict(answer)

    async def generate(self, app_name: str, request: Generation) -> AsyncGenerator[Piece]:
        """Yield the pieces of an answer; closing the generator cancels the replica's, and so the engine's work.

        Raises:
            InvalidInputError: for what the engine refuses.
            NoReplicaError: if there is none that could take it.
            UnavailableError: if no replica answers, or one dies on the way.
        """
        with self._told(app_name):
            response = self._handle(app_name, "generate", stream=True).remote(request)
        ended = False
        try:
            while not ended:
                with self._told(app_name):
                    async with asyncio.timeout(PIECE_TIMEOUT_S):
                        item = await anext(response, None)
                ended = item is None
                if isinstance(item, Piece):
                    yield item
                elif not ended:
                    raise _refused(app_name, item)
        finally:
            if not ended:
                response.cancel()

    async def embed(self, app_name: str, texts: Sequence[str]) -> Embeddings:
        """Return the texts' vectors; raises as :meth:`generate`."""
        with self._told(app_name):
            response = self._handle(app_name, "embed").remote(list(texts))
            found = await _answered(response, EMBED_TIMEOUT_S)
        if isinstance(found, Embeddings):
            return found
        raise _refused(app_name, found)

    def _handle(self, app_name: str, method: str, *, stream: bool = False) -> Any:
        from ray import serve  # noqa: PLC0415 - only inside a replica
        from ray.serve.exceptions import RayServeException  # noqa: PLC0415

        handles = self._handles.get(app_name)
        if handles is None:
            if len(self._handles) >= MOST_APPS:
                self._handles.clear()  # Serve forgets a router that has no handle
            try:
                handle = serve.get_app_handle(app_name)
            except RayServeException as error:  # Serve has no such application
                raise NoReplicaError(_silence(app_name)) from error
            handles = self._handles[app_name] = {"": handle}
        if method not in handles:
            handles[method] = handles[""].options(
                method_name=method, stream=stream, _by_reference=BY_REFERENCE
            )
        return handles[method]

    @contextmanager
    def _told(self, app_name: str) -> Iterator[None]:
        """Turn what Ray or the replica raises into an error for the caller."""
        try:
            yield
        except NoReplicaError:
            raise
        except Exception as error:  # over gRPC whatever the replica has raised is raised here as it is
            raise self._silent(app_name, error) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled us: Serve says so of a request whose replica was stopped.
            raise self._silent(app_name, error) from error

    def _silent(self, app_name: str, error: BaseException) -> UnavailableError:
        from ray.serve.exceptions import (  # noqa: PLC0415 - only inside a replica
            DeploymentUnavailableError,
            RayServeException,
        )

        log.warning("%s: %s: %s", app_name, type(error).__name__, error)
        if isinstance(error, RayServeException | TimeoutError):  # perhaps it is another application by now
            self._handles.pop(app_name, None)
        # Serve says so before it has chosen a replica, of an application that has ended.
        kind = NoReplicaError if isinstance(error, DeploymentUnavailableError) else UnavailableError
        return kind(_silence(app_name))


async def _answered(response: Any, timeout_s: float) -> Any:
    """Return an answer that is one; whoever stops waiting for it stops the replica's work."""
    async with asyncio.timeout(timeout_s):
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise


def _refused(app_name: str, item: object) -> InvalidInputError | UnavailableError:
    if isinstance(item, Refusal):
        return InvalidInputError(item.detail, param=item.param, openai_code=item.code)
    return UnavailableError(f"service {_name(app_name)} answered with something that is no answer")


def _silence(app_name: str) -> str:
    return f"service {_name(app_name)} does not answer just now"


def _name(app_name: str) -> str:
    return app_name.split(".")[1]
