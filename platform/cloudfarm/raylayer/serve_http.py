"""HTTP and WebSockets to a tenant's own Serve application: from the front door by handle, as Serve's proxy does it.

The replica gets a pickled ASGI scope, and gives batches of pickled ASGI messages back. It is called by gRPC and in the
caller's own event loop: so an answer that nobody reads waits in the replica and not in the front door's memory, and
nothing that a tenant's process sends is unpickled here but plain values.
"""

import asyncio
import io
import pickle
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from cloudfarm.errors import AppFailedError
from cloudfarm.raylayer.serve_handles import Handles, service_of
from cloudfarm.raylayer.serve_websockets import Inboxes

if TYPE_CHECKING:
    import grpc

ASSIGN_TIMEOUT_S = 60.0
"""How long a request may wait for a replica; how long that one then thinks is its own and its client's affair."""
_OPTIONS = {
    "stream": True,
    # What the application raises cannot be sent so, and need not be: nobody unpickles it here.
    "response_serialization": "noop",
}
_BODY = "http.response.body"
_ANSWER = frozenset({"http.response.start", _BODY})
_CONVERSATION = frozenset(
    {
        "websocket.accept",
        "websocket.send",
        "websocket.close",
        "websocket.http.response.start",
        "websocket.http.response.body",
    }
)


class ServeApps:
    """Implements :class:`cloudfarm.ports.Apps`; lives in a process of the farm that is connected to Serve."""

    def __init__(self) -> None:
        self._handles = Handles(from_proxy=True)
        self._inboxes = Inboxes()

    async def answer(
        self, app_name: str, scope: Mapping[str, Any], body: bytes
    ) -> AsyncGenerator[Mapping[str, Any]]:
        """Yield the ASGI messages of the application's answer.

        Raises:
            AppFailedError: if the application fails before its answer is complete.
            NoReplicaError: if there is no replica that could take the request.
            ReplicaLostError: if one is lost that may have taken it.
            UnavailableError: if no replica answers.
        """
        import grpc  # noqa: PLC0415 - only inside a replica

        complete = False
        try:
            async with aclosing(self._messages(app_name, _request(scope, Body(body)), _ANSWER)) as messages:
                async for message in messages:
                    yield message
                    complete = message["type"] == _BODY and not message.get("more_body")
        except grpc.RpcError as error:
            # What the application raised, which Serve passes on even after an answer that is whole.
            if not complete:
                raise _failed(app_name, error) from error
        if not complete:
            raise AppFailedError(f"service {service_of(app_name)} gave no whole answer")

    async def converse(
        self, app_name: str, scope: Mapping[str, Any], receive: Callable[[], Awaitable[Mapping[str, Any]]]
    ) -> AsyncGenerator[Mapping[str, Any]]:
        """Yield the ASGI messages that the application sends to a WebSocket's client.

        Raises:
            AppFailedError: if the application fails.
            NoReplicaError: if there is no replica that could take it; nothing of the client was received then.
            ReplicaLostError: if one is lost that may have taken it.
            UnavailableError: if no replica answers.
        """
        import grpc  # noqa: PLC0415 - only inside a replica

        async with self._inboxes.one() as inbox:
            filling = asyncio.create_task(inbox.fill(receive))
            request = _request(scope, inbox.outlet)
            try:
                async with aclosing(self._messages(app_name, request, _CONVERSATION)) as messages:
                    async for message in messages:
                        yield message
            except grpc.RpcError as error:
                raise _failed(app_name, error) from error
            finally:
                filling.cancel()
                await asyncio.wait((filling,))
            if not filling.cancelled():
                filling.result()

    async def _messages(
        self, app_name: str, request: bytes, kinds: frozenset[str]
    ) -> AsyncGenerator[Mapping[str, Any]]:
        with self._handles.told(app_name):
            handle = await self._handles.get(app_name, "http", _OPTIONS)
            _say_that_it_is_http(app_name)
            response = handle.remote(request)
            try:
                async with asyncio.timeout(ASSIGN_TIMEOUT_S):
                    await response._fetch_future_result_async()  # noqa: SLF001 - nothing else tells of it
                async for batch in response:
                    for message in plain(batch):
                        if message["type"] in kinds:
                            yield message
            finally:
                response.cancel()


class Body:
    """Gives a replica the body that the front door has read; Serve calls it in the replica until it says no more."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __call__(self, _metadata: Any) -> bytes:
        """Return the body, and then nothing any more: of a client that goes away Serve tells by cancelling."""
        if self._body is None:
            await asyncio.Event().wait()
        message = {"type": "http.request", "body": self._body, "more_body": False}
        self._body = None
        return pickle.dumps([message])


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Refuse whatever is not made of plain values."""
        raise pickle.UnpicklingError(f"{module}.{name} is not a plain value")


def plain(batch: bytes) -> list[dict[str, Any]]:
    """Return a replica's ASGI messages.

    Raises:
        AppFailedError: if they are none, or hold more than plain values.
    """
    try:
        messages = _PlainUnpickler(io.BytesIO(batch)).load()
        if all(isinstance(message["type"], str) for message in messages):
            return list(messages)
    except Exception as error:
        raise AppFailedError("the application's answer cannot be read") from error
    raise AppFailedError("the application's answer cannot be read")


def _failed(app_name: str, error: "grpc.RpcError") -> AppFailedError:
    import grpc  # noqa: PLC0415 - only inside a replica

    from cloudfarm.raylayer.paths import MAX_SERVE_MESSAGE_BYTES  # noqa: PLC0415 - replicas import this module

    if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Serve hands over at once whatever has gathered while the client read.
        most = f"{MAX_SERVE_MESSAGE_BYTES // 1024**2} MiB"
        return AppFailedError(f"service {service_of(app_name)} is more than {most} ahead of its client")
    return AppFailedError(f"service {service_of(app_name)} failed; its log says why")


def _request(scope: Mapping[str, Any], receive: Callable[[Any], Awaitable[bytes]]) -> bytes:
    from ray.serve._private.common import StreamingHTTPRequest  # noqa: PLC0415 - only inside a replica

    return pickle.dumps(StreamingHTTPRequest(dict(scope), receive_asgi_messages=receive))


def _say_that_it_is_http(app_name: str) -> None:
    from ray.serve import context  # noqa: PLC0415 - only inside a replica

    request_id = uuid.uuid4().hex
    context._serve_request_context.set(  # noqa: SLF001 - read by the handle, as in Serve's proxy
        context._RequestContext(  # noqa: SLF001
            app_name=app_name, request_id=request_id, _internal_request_id=request_id, is_http_request=True
        )
    )
