"""What text can be stored in every database."""

import re

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(text: str) -> str:
    """Return the text with what PostgreSQL cannot hold (NUL, lone surrogates) replaced by U+FFFD.

    Words from outside, such as the last line of a job's log, may hold anything; refusing them would keep the
    steward from ever closing that job.
    """
    return _UNSTORABLE.sub("\ufffd", text)
