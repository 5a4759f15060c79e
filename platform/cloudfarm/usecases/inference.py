"""Calls to services: counted for their callers, and given up when the callers go away."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from cloudfarm.domain.bundles import ANSWERED_AS_OPENAI, CAUSAL_LM, SERVE_APP, TEXT_EMBEDDING
from cloudfarm.domain.generation import Embeddings, Generation, Piece, ToEmbed
from cloudfarm.domain.json_values import check_json
from cloudfarm.errors import InvalidInputError, NoReplicaError, ReplicaLostError
from cloudfarm.ports import Apps, Inference
from cloudfarm.usecases.gate import Gate
from cloudfarm.usecases.limits import Admission
from cloudfarm.usecases.metering import Meter
from cloudfarm.usecases.open_requests import OpenRequests
from cloudfarm.usecases.routes import Called, Route
from cloudfarm.usecases.use import Use

TIMEOUT_S = 60.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Calls:
    """Every way to call a service.

    All of them raise what :class:`Gate` and :meth:`OpenRequests.one` raise, TooManyError at a limit of the key,
    InvalidInputError for what the service refuses, UnavailableError if it does not answer, and UnauthenticatedError
    when the key is revoked or expires meanwhile.
    """

    gate: Gate
    meter: Meter
    open: OpenRequests
    inference: Inference
    apps: Apps

    async def predict(self, secret: str | None, name: str, payload: Any) -> Mapping[str, Any]:
        """Return a service's answer to a payload of its own kind."""

        def check(route: Called) -> None:
            if route.kind in ANSWERED_AS_OPENAI:
                raise InvalidInputError(
                    f"service {route.service.name} is asked at /v1/chat/completions, /v1/completions "
                    "or /v1/embeddings"
                )
            if route.kind == SERVE_APP:
                raise InvalidInputError(
                    f"service {route.service.name} is asked below /v1/services/{route.service.name}/app/"
                )
            if not isinstance(payload, dict):
                raise InvalidInputError("a request to a service is a JSON object")
            check_json(payload, what="the request")

        async def ask(route: Route, _use: Use) -> AsyncGenerator[Mapping[str, Any]]:
            yield await self.inference.call(route.app_name, payload, timeout_s=TIMEOUT_S)

        async with aclosing(self._answers(secret, name, "service", check, ask)) as answers:
            return await anext(answers)

    async def generate(self, secret: str | None, model: str, request: Generation) -> AsyncGenerator[Piece]:
        """Yield a language model's answer. Each piece is charged as it comes; closing it stops the engine."""

        def ask(route: Route, use: Use) -> AsyncGenerator[Piece]:
            adapted = replace(request, adapter=route.adapter)
            return self.inference.generate(route.app_name, adapted, _charge(use))

        def most_tokens(called: Called) -> int:
            return request.most_tokens(called.context_tokens)

        check = _needs(CAUSAL_LM, "does not generate text")
        async with aclosing(
            self._answers(secret, model, "model", check, ask, most_tokens=most_tokens)
        ) as answers:
            async for piece in answers:
                yield piece

    async def embed(self, secret: str | None, model: str, request: ToEmbed) -> Embeddings:
        """Return the texts' vectors. They are charged before they are computed."""

        async def ask(route: Route, use: Use) -> AsyncGenerator[Embeddings]:
            yield await self.inference.embed(route.app_name, request, _charge(use))

        def most_tokens(_called: Called) -> int:
            return sum(map(len, request.texts))

        check = _needs(TEXT_EMBEDDING, "does not embed text")
        async with aclosing(
            self._answers(secret, model, "model", check, ask, most_tokens=most_tokens)
        ) as answers:
            return await anext(answers)

    def exchange(
        self, secret: str | None, name: str, scope: Mapping[str, Any], body: bytes
    ) -> AsyncGenerator[Mapping[str, Any]]:
        """Yield the ASGI messages of a tenant's own application; closing it cancels the application's work."""
        return self._of_app(secret, name, lambda route: self.apps.answer(route.app_name, scope, body))

    def converse(
        self,
        secret: str | None,
        name: str,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[Mapping[str, Any]]],
    ) -> AsyncGenerator[Mapping[str, Any]]:
        """Yield what a tenant's own application sends to a WebSocket's client: one request, as long as it is open."""
        return self._of_app(secret, name, lambda route: self.apps.converse(route.app_name, scope, receive))

    def _of_app(
        self, secret: str | None, name: str, ask: Callable[[Route], AsyncGenerator[Mapping[str, Any]]]
    ) -> AsyncGenerator[Mapping[str, Any]]:
        def check(route: Called) -> None:
            if route.kind != SERVE_APP:
                raise InvalidInputError(
                    f"service {name} is not a tenant's own application: ask it at /v1/services/{name}/predict"
                )

        return self._answers(secret, name, "service", check, lambda route, _use: ask(route), pure=False)

    async def _answers(
        self,
        secret: str | None,
        model: str,
        what: str,
        check: Callable[[Called], None],
        ask: Callable[[Route, Use], AsyncGenerator[T]],
        *,
        most_tokens: Callable[[Called], int] = lambda _called: 0,
        pure: bool = True,
    ) -> AsyncGenerator[T]:
        """Yield what a service answers.

        A request that comes as its replicas go, to sleep or for another revision's sake, may find none. Then nobody
        has got it, and it is sent once more: to what takes over, or after a wait for the service to wake. A model
        (``pure``) does nothing but answer, so a request may also be sent once more if a replica is lost with it, and
        nothing of the answer has come. What a tenant's own application has got is never sent again.
        """
        called = await self.gate.route(secret, model, what=what)
        check(called)
        lost = False
        # Before anything is counted as load, woken or waited for: who is refused costs nobody else a place or a GPU.
        with self.open.one(called.key_id), self._admitted(called, most_tokens(called)) as admission:
            while True:
                if lost or not isinstance(called, Route):
                    called = await self.gate.wake(secret, model, what=what, lost=lost)
                    check(called)
                try:
                    with self._use(called, admission) as use:
                        async with aclosing(ask(called, use)) as answers:
                            while (each := await use.next_of(answers)) is not None:
                                yield each
                except (NoReplicaError, ReplicaLostError) as error:
                    is_safe = isinstance(error, NoReplicaError) or (pure and use.is_untouched)
                    if lost or not is_safe:
                        raise
                    lost = True
                else:
                    return

    @contextmanager
    def _admitted(self, called: Called, most_tokens: int) -> Iterator[Admission]:
        admission = self.meter.admit(called, most_tokens)
        try:
            yield admission
        finally:
            self.meter.leave(admission)

    @contextmanager
    def _use(self, route: Route, admission: Admission) -> Iterator[Use]:
        with self.gate.room.loads.sent(route.service.id, route.app_name):
            use = self.meter.begin(route, admission)
            try:
                yield use
            finally:
                use.end()


def _charge(use: Use) -> Callable[[Piece], None]:
    """Return what charges a caller for what was made, whether anybody takes it or not."""
    return lambda piece: use.count(prompt_tokens=piece.prompt_tokens, completion_tokens=piece.tokens)


def _needs(kind: str, lack: str) -> Callable[[Called], None]:
    def check(route: Called) -> None:
        if route.kind != kind:
            raise InvalidInputError(
                f"model {route.model} {lack}", param="model", openai_code="model_not_supported"
            )

    return check
