"""Bodies of OpenAI's API, as far as the farm knows them.

What it does not do is refused, not ignored, unless it is asked for in a way that changes nothing (``tools: null``).
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    model_validator,
)

from cloudfarm.api.openai_errors import ParameterError
from cloudfarm.domain.generation import Generation, Message, Sampling, ToEmbed

MAX_MEMBERS = 64
MAX_MESSAGES = 2048
MAX_PARTS = 256
MAX_PROMPTS = 64
MAX_PROMPT_TOKENS = 1 << 17
MAX_INPUTS = 2048
MAX_TOKENS = 1 << 20
MAX_SCHEMA = 1 << 16
"""Characters."""
ANY_OBJECT = '{"type": "object"}'
COMPLETION_TOKENS = 16
"""What a completion is long that does not say, as OpenAI has it; a chat goes on until the model ends it."""
_INT64 = 1 << 63


class Only:
    """A member that may be there if it is null or has one of these values, which ask for nothing."""

    def __init__(self, *values: Any) -> None:
        self._values = (None, *values)

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Return how pydantic checks it, and what the OpenAPI document says of it."""
        shown = {"enum": [*self._values], "description": "Not done here."}
        return handler.generate_schema(Annotated[Any, AfterValidator(self._check), WithJsonSchema(shown)])

    def _check(self, value: Any) -> None:
        if not any(value == each and type(value) is type(each) for each in self._values):
            raise ParameterError("this farm does not do that", code="unsupported_parameter")


Ignored = Annotated[Any, Field(description="Accepted; it changes nothing here.")]


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ParameterError("this has half a character in it (a lone surrogate)") from None
    return text


def _no_token_ids(given: Any) -> Any:
    """Refuse tokens to embed: clients send those of OpenAI's models, of which others make vectors without a meaning."""
    if isinstance(given, list) and given and isinstance(given[0], int | list):
        raise ParameterError(
            "send texts: the ids of one model's tokens mean something else to another (LangChain's OpenAIEmbeddings "
            "sends texts with check_embedding_ctx_length=False)"
        )
    return given


def _as_schema(given: Any) -> str:
    """Return an object in JSON."""
    if not isinstance(given, dict):
        raise ParameterError("must be an object")
    try:
        text = json.dumps(given, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as bad:
        raise ParameterError(f"this is no JSON: {bad}") from None
    if len(text) > MAX_SCHEMA:
        raise ParameterError(f"the schema has {len(text)} characters; at most {MAX_SCHEMA} are read")
    # Engines read over references to others, and answer anything there.
    if any(not ref.startswith("#") for ref in _refs(given)):
        raise ParameterError("a schema may refer to its own parts only ($ref: #/...)")
    return _encodable(text)


def _refs(schema: Any) -> Iterator[str]:
    """Yield what the parts of a schema refer to."""
    parts = [schema]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            parts += part.values()
            if isinstance(ref := part.get("$ref"), str):
                yield ref
        elif isinstance(part, list):
            parts += part


Number = StrictInt | StrictFloat
Text = Annotated[StrictStr, AfterValidator(_encodable)]
# Lengths come before the other check: pydantic then speaks of characters, and not of items.
SomeText = Annotated[StrictStr, Field(min_length=1), AfterValidator(_encodable)]
Name = Annotated[StrictStr, Field(min_length=1, max_length=300), AfterValidator(_encodable)]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=1000), AfterValidator(_encodable)]
TokenId = Annotated[StrictInt, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPT_TOKENS)]


class Part(BaseModel):
    """A part of a request. Not many findings are made about one, since each takes its time."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > MAX_MEMBERS:
            raise ParameterError(f"more than {MAX_MEMBERS} members")
        return given


class OpenAiBody(Part):
    """A request to an OpenAI-compatible route."""

    model: Name
    user: Ignored = None


class StreamOptions(Part):
    """What a stream tells besides the text."""

    include_usage: StrictBool | None = None
    include_obfuscation: Ignored = None


class SampledBody(OpenAiBody):
    """What chats and completions have in common."""

    max_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=8)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: Annotated[StrictInt, Field(ge=-_INT64, lt=_INT64)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: StrictBool | None = None
    logit_bias: Annotated[Any, Only({})] = None

    @model_validator(mode="after")
    def _streams_only(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ParameterError("this is for streams only: set stream to true", param="stream_options")
        return self

    @property
    def choices(self) -> int:
        """How many answers are wanted, to all prompts together."""
        return self.n or 1

    @property
    def with_usage(self) -> bool:
        """Whether a stream is to end with what it used."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def _sampling(self, max_tokens: int | None, json_schema: str | None = None) -> Sampling:
        def given(value: float | None, default: float) -> float:
            return default if value is None else float(value)

        # The likeliest token belongs to any part of the tokens: of none at all it is what is left.
        greedy = self.top_p == 0
        return Sampling(
            max_tokens=max_tokens,
            temperature=0.0 if greedy else given(self.temperature, 1.0),
            top_p=1.0 if greedy else given(self.top_p, 1.0),
            presence_penalty=given(self.presence_penalty, 0.0),
            frequency_penalty=given(self.frequency_penalty, 0.0),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            seed=self.seed,
            choices=self.n or 1,
            ignore_eos=bool(self.ignore_eos),
            json_schema=json_schema,
        )


class TextPart(Part):
    """A part of a message; images, sound and files are none that the farm's models read."""

    type: Literal["text"]
    text: Text


class ChatMessage(Part):
    """A turn of a conversation; also as the client's library writes down an answer of ours."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Text | Annotated[list[TextPart], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS)] | None
    ) = None
    name: Text | None = Field(None, description="Accepted; the models' templates have no place for it.")
    refusal: Annotated[Any, Only()] = None
    annotations: Annotated[Any, Only([])] = None
    audio: Annotated[Any, Only()] = None
    tool_calls: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only()] = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise ParameterError("content is missing: only an assistant's may be null")
        return self

    def message(self) -> Message:
        """Return it in the farm's words; ``developer`` is what newer clients call ``system``."""
        role = "system" if self.role == "developer" else self.role
        said = self.content or ""
        return Message(role, said if isinstance(said, str) else "".join(part.text for part in said))


class JsonSchema(Part):
    """A schema that the answer has to follow. It is followed in any case, also where ``strict`` is false."""

    name: Annotated[StrictStr, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    description: Ignored = None
    text: Annotated[
        str, BeforeValidator(_as_schema), WithJsonSchema({"type": "object"}), Field(alias="schema")
    ]
    strict: StrictBool | None = None


class ResponseFormat(Part):
    """What an answer has to be: any text, any object in JSON, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ParameterError("json_schema belongs to the type json_schema, and it to that")
        return self

    @property
    def schema_text(self) -> str | None:
        """The schema to follow, in JSON; None if there is none."""
        if self.json_schema is not None:
            return self.json_schema.text
        return ANY_OBJECT if self.type == "json_object" else None


class ChatBody(SampledBody):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_TOKENS)] | None = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    parallel_tool_calls: Ignored = None
    logprobs: Annotated[Any, Only(False)] = None
    top_logprobs: Annotated[Any, Only(0)] = None
    tools: Annotated[Any, Only([])] = None
    tool_choice: Annotated[Any, Only("none", "auto")] = None
    functions: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only("none", "auto")] = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[Any, Only(["text"])] = None
    audio: Annotated[Any, Only()] = None
    moderation: Annotated[Any, Only()] = None
    prediction: Annotated[Any, Only()] = None
    reasoning_effort: Annotated[Any, Only()] = None
    verbosity: Annotated[Any, Only()] = None
    web_search_options: Annotated[Any, Only()] = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise ParameterError(
                "max_completion_tokens says something else: give one of them", param="max_tokens"
            )
        return self

    def generation(self) -> Generation:
        """Return the request in the farm's words."""
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        schema = None if self.response_format is None else self.response_format.schema_text
        return Generation(
            self._sampling(most, schema), messages=tuple(each.message() for each in self.messages)
        )


class CompletionBody(SampledBody):
    """``POST /v1/completions``: one prompt or several, as text or as token ids."""

    prompt: (
        SomeText
        | TokenIds
        | Annotated[list[SomeText], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
    )
    best_of: Annotated[Any, Only(1)] = None
    echo: Annotated[Any, Only(False)] = None
    logprobs: Annotated[Any, Only()] = None
    suffix: Annotated[Any, Only("")] = None

    @property
    def choices(self) -> int:
        """How many answers are wanted, to all prompts together."""
        return (self.n or 1) * len(_texts(self.prompt))

    def generation(self) -> Generation:
        """Return the request in the farm's words."""
        most = COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        return Generation(self._sampling(most), prompts=_texts(self.prompt))


class EmbeddingBody(OpenAiBody):
    """``POST /v1/embeddings``."""

    input: Annotated[
        SomeText | Annotated[list[SomeText], Field(fail_fast=True, min_length=1, max_length=MAX_INPUTS)],
        BeforeValidator(_no_token_ids),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = None

    def request(self) -> ToEmbed:
        """Return the request in the farm's words."""
        return ToEmbed((self.input,) if isinstance(self.input, str) else tuple(self.input), self.dimensions)


def _texts(given: str | list[int] | list[str] | list[list[int]]) -> tuple[str | tuple[int, ...], ...]:
    """Return one text or many, whichever was given."""
    if isinstance(given, str):
        return (given,)
    if isinstance(given[0], int):
        return (tuple(given),)
    return tuple(
        each if isinstance(each, str) else tuple(each) for each in cast("list[str | list[int]]", given)
    )
