"""HTTP and WebSockets to a tenant's own Serve application: from the front door by handle, as Serve's proxy does it.

The replica gets a pickled ASGI scope, and gives batches of pickled ASGI messages back. It is called by gRPC and in the
caller's own event loop: so an answer that nobody reads waits in the replica and not in the front door's memory, and
nothing that a tenant's process sends is unpickled here but plain values.
"""

import asyncio
import io
import logging
import pickle
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

from cloudfarm.errors import AppFailedError, NoReplicaError, UnavailableError
from cloudfarm.raylayer.serve_websockets import Inboxes

if TYPE_CHECKING:
    import grpc
    from ray.serve.handle import DeploymentHandle

ASSIGN_TIMEOUT_S = 60.0
"""How long a request may wait for a replica; how long that one then thinks is its own and its client's affair."""
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

log = logging.getLogger(__name__)


class ServeApps:
    """Implements :class:`cloudfarm.ports.Apps`; lives in a process of the farm that is connected to Serve."""

    def __init__(self) -> None:
        self._handles: dict[str, DeploymentHandle[Any]] = {}
        self._inboxes = Inboxes()

    async def answer(
        self, app_name: str, scope: Mapping[str, Any], body: bytes
    ) -> AsyncGenerator[Mapping[str, Any]]:
        """Yield the ASGI messages of the application's answer.

        Raises:
            AppFailedError: if the application fails before its answer is complete.
            NoReplicaError: if there is no replica that could take the request.
            UnavailableError: if no replica answers, or one dies on the way.
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
            raise AppFailedError(f"service {_name(app_name)} gave no whole answer")

    async def converse(
        self, app_name: str, scope: Mapping[str, Any], receive: Callable[[], Awaitable[Mapping[str, Any]]]
    ) -> AsyncGenerator[Mapping[str, Any]]:
        """Yield the ASGI messages that the application sends to a WebSocket's client.

        Raises:
            AppFailedError: if the application fails.
            NoReplicaError: if there is no replica that could take it; nothing of the client was received then.
            UnavailableError: if no replica answers, or one dies on the way.
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
        with self._told(app_name):
            handle = await self._handle(app_name)
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

    async def _handle(self, app_name: str) -> "DeploymentHandle[Any]":
        from ray.serve._private.common import DeploymentHandleSource  # noqa: PLC0415 - only inside a replica
        from ray.serve.context import _get_global_client  # noqa: PLC0415
        from ray.serve.handle import DeploymentHandle  # noqa: PLC0415

        known = self._handles.get(app_name)
        if known is not None:
            return known
        client = _get_global_client()
        ingress = await client._controller.get_ingress_deployment_name.remote(app_name)  # noqa: SLF001
        if ingress is None:
            raise NoReplicaError(f"service {_name(app_name)} does not run just now")
        handle: DeploymentHandle[Any] = DeploymentHandle(ingress, app_name)
        # As a proxy: Serve sends HTTP to an ingress from nowhere else.
        handle._init(_source=DeploymentHandleSource.PROXY, _run_router_in_separate_loop=False)  # noqa: SLF001
        # "noop": what the application raises cannot be sent so, and need not be: nobody unpickles it here.
        found = handle.options(stream=True, _by_reference=False, response_serialization="noop")
        return self._handles.setdefault(app_name, found)

    @contextmanager
    def _told(self, app_name: str) -> Iterator[None]:
        """Turn what Ray raises into an error for the caller, and ask for the application anew the next time."""
        from ray.exceptions import RayError  # noqa: PLC0415 - only inside a replica
        from ray.serve.exceptions import RayServeException  # noqa: PLC0415

        try:
            yield
        except (RayServeException, RayError, TimeoutError) as error:
            raise self._silent(app_name, error) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled us: Serve says so of a request whose replica was stopped.
            raise self._silent(app_name, error) from error

    def _silent(self, app_name: str, error: BaseException) -> UnavailableError:
        """Return what to tell the caller, and ask for the application anew the next time."""
        from ray.serve.exceptions import DeploymentUnavailableError  # noqa: PLC0415 - only inside a replica

        log.warning("%s: %s: %s", app_name, type(error).__name__, error)
        self._handles.pop(app_name, None)
        # Serve says so before it has chosen a replica, of an application that has ended.
        kind = NoReplicaError if isinstance(error, DeploymentUnavailableError) else UnavailableError
        return kind(f"service {_name(app_name)} does not answer just now")


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


def _name(app_name: str) -> str:
    return app_name.partition(".")[2]


def _failed(app_name: str, error: "grpc.RpcError") -> AppFailedError:
    import grpc  # noqa: PLC0415 - only inside a replica

    from cloudfarm.raylayer.paths import MAX_SERVE_MESSAGE_BYTES  # noqa: PLC0415 - replicas import this module

    if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Serve hands over at once whatever has gathered while the client read.
        most = f"{MAX_SERVE_MESSAGE_BYTES // 1024**2} MiB"
        return AppFailedError(f"service {_name(app_name)} is more than {most} ahead of its client")
    return AppFailedError(f"service {_name(app_name)} failed; its log says why")


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
