"""Text out of tokens as they come: whole characters only, and nothing of a text at which to stop."""

from collections.abc import Callable, Sequence

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_MOST_HELD = 8
"""Tokens: none of a tokenizer's characters has more parts, so what is broken then stays so."""


class TextStream:
    """The text of one answer.

    A token may end within a character (most of Korean does so in an English vocabulary), or at what may be the
    beginning of a stop text: what is not certain yet is held back.

    Args:
        decode: gives the text of tokens.
        stop: texts at which the answer ends; of several it ends at the one that is complete first.
        prompt: the tokens before the answer.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = (), prompt: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        self._stop = stop
        # Decoding begins a little before the new tokens: how a token reads may depend on the one before.
        self._tokens = list(prompt[-_MOST_HELD:])
        self._context_at = 0
        self._read_to = len(self._tokens)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take a token and return the text that is certain now."""
        self._tokens.append(token)
        text = self._unread()
        if not text or (text.endswith(_BROKEN) and len(self._tokens) - self._read_to < _MOST_HELD):
            return ""
        self._context_at, self._read_to = self._read_to, len(self._tokens)
        return self._release(text)

    def finish(self) -> str:
        """Return what was held back: there is no further token, and half a character is none."""
        if self.stopped:
            return ""
        return self._release(self._unread().rstrip(_BROKEN)) + self._empty()

    def _unread(self) -> str:
        known = self._decode(self._tokens[self._context_at : self._read_to])
        return self._decode(self._tokens[self._context_at :])[len(known) :]

    def _release(self, text: str) -> str:
        self._held += text
        ends = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._held = self._held[: min(ends)[1]]
            return self._empty()
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def _empty(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of ``text`` may be the beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
