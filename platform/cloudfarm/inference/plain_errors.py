"""What a replica's libraries raise, in the farm's words."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from cloudfarm.errors import CloudfarmError, UnavailableError

log = logging.getLogger(__name__)


@contextmanager
def told_plainly() -> Iterator[None]:
    """Raise an error that the front door knows instead of a library's: unpickling one imports the library there.

    Raises:
        UnavailableError: for any other error than the farm's own.
    """
    try:
        yield
    except CloudfarmError:
        raise
    except Exception as failure:
        log.exception("a request failed")
        raise UnavailableError(f"{type(failure).__name__}: {failure}") from None
