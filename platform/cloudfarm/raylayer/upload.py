"""Uploads folders as ``ray job submit`` does: packed and named by content, and only if they are not there yet."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cloudfarm.errors import InvalidInputError, UnavailableError

_REDIRECTS = "RAY_API_SERVER_ADDRESS"
"""What Ray's client takes before the address that it is given."""


def upload_folders(url: str, authorization: str, runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runtime_env with its local ``working_dir`` and ``py_modules`` uploaded to the farm at ``url``.

    Raises:
        InvalidInputError: if a folder is missing or cannot be packed.
        UnavailableError: if the farm does not take it.
    """
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415 - seconds

    env = dict(runtime_env)
    with _without(_REDIRECTS):
        try:
            client = JobSubmissionClient(url, headers={"Authorization": authorization})
            client._upload_working_dir_if_needed(env)  # noqa: SLF001 - what its submit_job does
            client._upload_py_modules_if_needed(env)  # noqa: SLF001
        except (ConnectionError, RuntimeError) as error:
            raise UnavailableError(f"the folder could not be uploaded: {error}") from error
        except (ValueError, OSError) as error:
            raise InvalidInputError(f"the folder cannot be uploaded: {error}") from error
    return env


@contextmanager
def _without(variable: str) -> Iterator[None]:
    before = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[variable] = before
