"""Calls to services: counted for their callers, and given up when the callers go away."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from cloudfarm.domain.bundles import ANSWERED_AS_OPENAI, CAUSAL_LM, SERVE_APP, TEXT_EMBEDDING
from cloudfarm.domain.generation import Embeddings, Generation, Piece
from cloudfarm.errors import InvalidInputError
from cloudfarm.ports import Apps, Inference
from cloudfarm.usecases.json_values import check_json
from cloudfarm.usecases.metering import Meter, Use
from cloudfarm.usecases.open_requests import OpenRequests
from cloudfarm.usecases.routing import Gate, Route

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Calls:
    """Every way to call a service.

    All of them raise what :meth:`Gate.route` and :meth:`OpenRequests.one` raise, TooManyError at a limit of the key,
    InvalidInputError for what the service refuses, and UnavailableError if it does not answer.
    """

    gate: Gate
    meter: Meter
    open: OpenRequests
    inference: Inference
    apps: Apps

    async def predict(self, secret: str | None, name: str, payload: Any) -> Mapping[str, Any]:
        """Return a service's answer to a payload of its own kind."""
        route = await self.gate.route(secret, name, what="service")
        if route.kind in ANSWERED_AS_OPENAI:
            raise InvalidInputError(
                f"service {route.service.name} is asked at /v1/chat/completions, /v1/completions or /v1/embeddings"
            )
        if route.kind == SERVE_APP:
            raise InvalidInputError(
                f"service {route.service.name} is asked below /v1/services/{route.service.name}/app/"
            )
        if not isinstance(payload, dict):
            raise InvalidInputError("a request to a service is a JSON object")
        check_json(payload, what="the request")
        with self._use(route):
            return await self.inference.call(route.app_name, payload, timeout_s=TIMEOUT_S)

    async def generate(self, secret: str | None, model: str, request: Generation) -> AsyncGenerator[Piece]:
        """Yield a language model's answer. Each piece is charged before it is yielded; closing it stops the engine."""
        route = await self.gate.route(secret, model)
        _need(CAUSAL_LM, route, "does not generate text")
        with self._use(route) as use:
            request = replace(request, adapter=route.adapter)
            async with aclosing(self.inference.generate(route.app_name, request)) as pieces:
                async for piece in pieces:
                    use.count(prompt_tokens=piece.prompt_tokens, completion_tokens=piece.tokens)
                    yield piece

    async def embed(self, secret: str | None, model: str, texts: Sequence[str]) -> Embeddings:
        """Return the texts' vectors."""
        route = await self.gate.route(secret, model)
        _need(TEXT_EMBEDDING, route, "does not embed text")
        with self._use(route) as use:
            found = await self.inference.embed(route.app_name, texts)
            use.count(prompt_tokens=found.prompt_tokens)
            return found

    async def exchange(
        self, secret: str | None, name: str, scope: Mapping[str, Any], body: bytes
    ) -> AsyncGenerator[Mapping[str, Any]]:
        """Yield the ASGI messages of a tenant's own application; closing it cancels the application's work."""
        route = await self._app(secret, name)
        with self._use(route):
            async with aclosing(self.apps.answer(route.app_name, scope, body)) as messages:
                async for message in messages:
                    yield message

    async def converse(
        self,
        secret: str | None,
        name: str,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[Mapping[str, Any]]],
    ) -> AsyncGenerator[Mapping[str, Any]]:
        """Yield what a tenant's own application sends to a WebSocket's client: one request, as long as it is open."""
        route = await self._app(secret, name)
        with self._use(route):
            async with aclosing(self.apps.converse(route.app_name, scope, receive)) as messages:
                async for message in messages:
                    yield message

    async def _app(self, secret: str | None, name: str) -> Route:
        route = await self.gate.route(secret, name, what="service")
        if route.kind != SERVE_APP:
            raise InvalidInputError(
                f"service {name} is not a tenant's own application: ask it at /v1/services/{name}/predict"
            )
        return route

    @contextmanager
    def _use(self, route: Route) -> Iterator[Use]:
        with self.open.one(route.key_id), self.gate.room.loads.request(route.service.id):
            use = self.meter.begin(route)
            try:
                yield use
            finally:
                use.end()


def _need(kind: str, route: Route, lack: str) -> None:
    if route.kind != kind:
        raise InvalidInputError(
            f"model {route.model} {lack}", param="model", openai_code="model_not_supported"
        )
