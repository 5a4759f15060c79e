"""What is asked of a language model and what it answers: in the farm's words, which are no engine's and no API's."""

from dataclasses import dataclass

Text = str | tuple[int, ...]
"""A text, or the ids of its tokens: the model's own, put before it as they are."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, and when to stop."""

    max_tokens: int | None = None
    """At most so many for each choice; None: as many as the context has room for."""
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    """Texts at which to stop; none of them is part of the answer."""
    seed: int | None = None
    choices: int = 1
    """How many answers to one prompt."""
    ignore_eos: bool = False
    """Go on to ``max_tokens`` whatever the model says: for measurements."""
    json_schema: str | None = None
    """What each answer has to be, as JSON schema in JSON; one that has come to its end is a value of it."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A tenant's LoRA adapter on a served model."""

    id: str
    """Of the model version."""
    name: str
    uri: str
    """Of its bundle."""
    digest: str | None = None
    """Of the manifest that was registered (``bundles.manifest_digest``); None: whichever is there."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str


@dataclass(frozen=True, slots=True)
class Generation:
    """A request: the conversation to go on with, or else texts."""

    sampling: Sampling
    messages: tuple[Message, ...] = ()
    prompts: tuple[Text, ...] = ()
    """Each is gone on with by itself."""
    adapter: Adapter | None = None

    @property
    def size(self) -> int:
        """How long what is to go on with is, in characters or tokens."""
        return sum(map(len, self.prompts)) + sum(len(each.role) + len(each.content) for each in self.messages)

    def most_tokens(self, context_tokens: int) -> int:
        """Return how many tokens it may use at most, read and made.

        Of a text a character counts as a token: it is not known yet how many tokens it has, and hardly ever more.

        Args:
            context_tokens: what prompt and answer may have together; 0 if that is not known.
        """
        choices, most = self.sampling.choices * max(1, len(self.prompts)), self.sampling.max_tokens
        if most is None:
            return choices * context_tokens
        asked = self.size + choices * most
        return min(asked, choices * context_tokens) if context_tokens else asked


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer to a :class:`Generation`."""

    index: int = 0
    """Which choice; those of the first prompt come first, and then those of the next."""
    text: str = ""
    tokens: int = 0
    """Tokens generated for this piece; the sum over all pieces is what is charged, whatever text they gave."""
    prompt_tokens: int = 0
    """Of a whole prompt; in its first piece only, which comes before or with the first token."""
    finish_reason: str | None = None
    """``stop`` or ``length``, in the last piece of the choice."""


@dataclass(frozen=True, slots=True)
class ToEmbed:
    """A request for vectors."""

    texts: tuple[str, ...]
    dimensions: int | None = None
    """What the caller takes the model to have, if it says so."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A vector for each text, in their order."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an engine sends instead of an answer to a request that it cannot serve: the caller's mistake."""

    detail: str
    param: str | None = None
    """The member of the request that is wrong."""
    code: str = "invalid_value"
    """As OpenAI's API names it, such as ``context_length_exceeded``."""
