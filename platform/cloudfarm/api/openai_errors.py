"""Errors in OpenAI's shape, on the routes that are OpenAI's: what their clients know how to read."""

from collections.abc import Mapping, Sequence
from typing import Any

from cloudfarm.errors import CloudfarmError, InvalidInputError, NotFoundError

PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models"})
PREFIX = "/v1/models/"
_CODES = {
    400: "invalid_value",
    401: "invalid_api_key",
    429: "rate_limit_exceeded",
}
_TYPES = {
    403: "permission_error",
    429: "rate_limit_error",
}
_PYDANTIC_CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
}
_SERVER_ERROR = 500
_MAX_TEXT = 200


class ParameterError(ValueError):
    """What a check of a body raises: pydantic turns it into one of its findings.

    Args:
        text: what is wrong.
        code: as OpenAI names it.
        param: of the body's members the one that is wrong, where the check is one of the whole body.
    """

    def __init__(self, text: str, *, code: str = "invalid_value", param: str | None = None) -> None:
        super().__init__(text)
        self.code, self.param = code, param


def is_openai(path: str) -> bool:
    """Whether a path is one of OpenAI's API."""
    return path in PATHS or path.startswith(PREFIX)


def status_of(error: CloudfarmError) -> int:
    """Return the HTTP status: OpenAI's says 400 for every value that can never be right."""
    return 400 if isinstance(error, InvalidInputError) else error.status


def error_body(error: CloudfarmError) -> dict[str, Any]:
    """Return the error's body; its data never hides a standard member."""
    status = status_of(error)
    data = dict(error.data)
    param, code = data.pop("param", None), data.pop("openai_code", None)
    if isinstance(error, NotFoundError):  # of these routes nothing but a model can be missing
        param, code = "model", "model_not_found"
    kind = "server_error" if status >= _SERVER_ERROR else _TYPES.get(status, "invalid_request_error")
    code = code or _CODES.get(status, error.code)
    return {"error": {**data, "message": error.detail, "type": kind, "param": param, "code": code}}


def from_validation(errors: Sequence[Mapping[str, Any]]) -> InvalidInputError:
    """Return pydantic's findings as one of ours: the first member that is wrong, and what all say about it."""
    first = errors[0]
    raised = first.get("ctx", {}).get("error")
    member = "" if first["type"] == "json_invalid" else "".join(str(place) for place in first["loc"][1:2])
    code = _PYDANTIC_CODES.get(first["type"], "invalid_value")
    if isinstance(raised, ParameterError):
        code, member = raised.code, raised.param or member
    param = ascii(member[:_MAX_TEXT])[1:-1]
    if code == "unknown_parameter":
        text = "this route has no such parameter"
    else:
        about = [each for each in errors if each["loc"][1:2] == first["loc"][1:2]]
        text = "; ".join(dict.fromkeys(_said(each) for each in about))[:_MAX_TEXT]
    return InvalidInputError(f"{param or 'the body'}: {text}", param=param or None, openai_code=code)


def _said(error: Mapping[str, Any]) -> str:
    where = ascii(".".join(str(place) for place in error["loc"][2:]))[1:-1]
    said = error.get("ctx", {}).get("error", error["msg"])
    return f"{where}: {said}" if where else str(said)
