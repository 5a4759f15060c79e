"""OpenAI's API: what its unmodified clients need to speak with the models of a farm."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from cloudfarm.api import openai_answers as answers
from cloudfarm.api.auth import Secret
from cloudfarm.api.context import Context, ServiceCalls
from cloudfarm.api.openai_schemas import ChatBody, CompletionBody, EmbeddingBody
from cloudfarm.api.streaming import EventStream, while_connected
from cloudfarm.usecases.access import missing

router = APIRouter(prefix="/v1", tags=["OpenAI's API"])
_JSON = "application/json"


@router.get("/models")
async def list_models(secret: Secret, calls: ServiceCalls) -> dict[str, Any]:
    """Return the models that the caller may name."""
    return answers.model_list(await calls.gate.models(secret))


@router.get("/models/{model}")
async def show_model(model: str, secret: Secret, calls: ServiceCalls) -> dict[str, Any]:
    """Return one of them."""
    for each in await calls.gate.models(secret):
        if each.id == model:
            return answers.model_object(each)
    raise missing("model", model)


@router.post("/chat/completions", response_model=None)
async def chat(
    body: ChatBody, secret: Secret, calls: ServiceCalls, context: Context, request: Request
) -> Response:
    """Go on with a conversation."""
    return await _generate(body, secret, calls, context, request)


@router.post("/completions", response_model=None)
async def complete(
    body: CompletionBody, secret: Secret, calls: ServiceCalls, context: Context, request: Request
) -> Response:
    """Go on with a text."""
    return await _generate(body, secret, calls, context, request)


@router.post("/embeddings", response_model=None)
async def embed(body: EmbeddingBody, secret: Secret, calls: ServiceCalls, request: Request) -> Response:
    """Return a vector for each text."""
    found = await while_connected(request.receive, calls.embed(secret, body.model, body.request()))
    answer = await answers.embeddings(body.model, found, as_base64=body.encoding_format == "base64")
    return Response(answer, media_type=_JSON)


async def _generate(
    body: ChatBody | CompletionBody, secret: Secret, calls: ServiceCalls, context: Context, request: Request
) -> Response:
    pieces = calls.generate(secret, body.model, body.generation())
    head = answers.Head(
        model=body.model,
        created_s=context.clock.now_ms() // 1000,
        is_chat=isinstance(body, ChatBody),
        choices=body.choices,
    )
    if body.stream:
        return EventStream(answers.events(head, pieces, with_usage=body.with_usage), answers.error_event)
    return Response(await while_connected(request.receive, answers.whole(head, pieces)), media_type=_JSON)
