"""How many requests may be open at once: of one key, so that it leaves room for others, and of all."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cloudfarm.errors import TooManyError, UnavailableError

RETRY_AFTER_S = 1


@dataclass(slots=True)
class OpenRequests:
    """Counts the requests that are being answered."""

    most: int
    most_of_key: int
    open: int = 0
    _of_key: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def one(self, key_id: str) -> Iterator[None]:
        """Hold a place for a request of that key.

        Raises:
            TooManyError: if the key has too many open.
            UnavailableError: if all keys together have.
        """
        if self._of_key[key_id] >= self.most_of_key:
            raise TooManyError(
                f"this key has {self.most_of_key} requests open, as many as it may",
                limit="open_requests",
                limit_value=self.most_of_key,
                retry_after_s=RETRY_AFTER_S,
            )
        if self.open >= self.most:
            raise UnavailableError(
                "the farm answers as many requests as it can just now", retry_after_s=RETRY_AFTER_S
            )
        self.open += 1
        self._of_key[key_id] += 1
        try:
            yield
        finally:
            self.open -= 1
            self._of_key[key_id] -= 1
            if not self._of_key[key_id]:
                del self._of_key[key_id]
