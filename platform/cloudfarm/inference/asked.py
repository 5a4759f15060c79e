"""What is asked of a language model: checked, and put into tokens."""

import math
from typing import Any

import jinja2

from cloudfarm.domain.generation import Generation, Refusal, Sampling, Text

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000


def check_sampling(sampling: Sampling) -> Refusal | None:
    """Return why no engine may be asked for this, if so. Engines rely on it: some end at what they do not expect."""
    for param, least, most in (
        ("temperature", 0.0, 2.0),
        ("top_p", 0.0, 1.0),
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
        ("n", 1, MAX_CHOICES),
        ("max_tokens", 1, math.inf),
        ("seed", -(2**63), 2**63 - 1),
    ):
        value = getattr(sampling, "choices" if param == "n" else param)
        if value is not None and not least <= value <= most:
            return Refusal(f"{param} is {value}; it must be at least {least} and at most {most}", param)
    if sampling.top_p == 0:
        return Refusal("top_p is 0; it must be more", "top_p")
    if len(sampling.stop) > MAX_STOPS or not all(
        0 < len(stop) <= MAX_STOP_CHARACTERS for stop in sampling.stop
    ):
        return Refusal(
            f"stop must be at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters", "stop"
        )
    return None


class Prompts:
    """Puts requests into tokens.

    Args:
        tokenizer: the model's, as transformers loads it.
        context_tokens: the most that prompt and answer may have together.
        vocabulary: how many tokens the model knows.
        cache_tokens: the most that all choices may have together; None: any number.
    """

    def __init__(
        self, tokenizer: Any, context_tokens: int, vocabulary: int, cache_tokens: int | None
    ) -> None:
        self._tokenizer = tokenizer
        self._context = context_tokens
        self._vocabulary = vocabulary
        self._cache = cache_tokens

    def encode(self, request: Generation) -> list[list[int]] | Refusal:
        """Return the tokens of each prompt, or why they cannot be answered."""
        if request.messages:
            given = [("messages", self._conversation(request))]
        elif len(request.prompts) == 1:
            given = [("prompt", self._text(request.prompts[0]))]
        else:
            given = [(f"prompt {place}", self._text(each)) for place, each in enumerate(request.prompts)]
        found: list[list[int]] = []
        for name, tokens in given:
            if isinstance(tokens, Refusal):
                return tokens
            if refusal := self._lacks_room(name, tokens, request.sampling):
                return refusal
            found.append(tokens)
        return found or Refusal("there is no prompt", "prompt")

    def _lacks_room(self, name: str, tokens: list[int], sampling: Sampling) -> Refusal | None:
        param = name.split(maxsplit=1)[0]
        if not tokens:
            return Refusal(f"the {name} is empty", param)
        most = self._most(sampling)
        shown = f"{most} tokens" if most == self._context else f"{most} tokens with n={sampling.choices}"
        if len(tokens) >= most:
            return Refusal(
                f"This model's maximum context length is {shown}: with the {len(tokens)} of the {name} "
                "there is no room for an answer.",
                param,
                "context_length_exceeded",
            )
        wanted = sampling.max_tokens
        if wanted is not None and len(tokens) + wanted > most:
            return Refusal(
                f"This model's maximum context length is {shown}, but {len(tokens) + wanted} were "
                f"asked for ({len(tokens)} in the {name}, {wanted} for the answer).",
                "max_tokens",
                "context_length_exceeded",
            )
        return None

    def room(self, prompt: list[int], sampling: Sampling) -> int:
        """Return how many tokens each choice may have."""
        return sampling.max_tokens or self._most(sampling) - len(prompt)

    def _most(self, sampling: Sampling) -> int:
        """Return how many tokens a prompt and one of its choices may have."""
        return self._context if self._cache is None else min(self._context, self._cache // sampling.choices)

    def _conversation(self, request: Generation) -> list[int] | Refusal:
        if not getattr(self._tokenizer, "chat_template", None):
            return Refusal(
                "this model does not converse (it has no chat template); ask it for a completion", "messages"
            )
        turns = [{"role": each.role, "content": each.content} for each in request.messages]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except (jinja2.TemplateError, ValueError, TypeError, LookupError) as refused:
            return Refusal(f"the model's chat template does not take these messages: {refused}", "messages")
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _text(self, prompt: Text) -> list[int] | Refusal:
        if isinstance(prompt, str):
            return list(self._tokenizer.encode(prompt))
        wrong = next((each for each in prompt if not 0 <= each < self._vocabulary), None)
        if wrong is None:
            return list(prompt)
        return Refusal(
            f"{wrong} is no token of this model, which has {self._vocabulary}: tokens must come from its own tokenizer",
            "prompt",
        )
