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
_NO_OBJECT = "Input should be an object"
_PYDANTIC_TEXTS = {
    "extra_forbidden": "this route has no such parameter",
    "model_type": _NO_OBJECT,
    "model_attributes_type": _NO_OBJECT,
    "dict_type": _NO_OBJECT,
}
"""Where pydantic's own text speaks of Python."""
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


def from_validation(errors: Sequence[Mapping[str, Any]], body: Any) -> InvalidInputError:
    """Return pydantic's findings about a body as one of ours: about the first member that is wrong, what helps most."""
    first = errors[0]
    if first["type"] == "json_invalid":  # its location is one in the text
        return InvalidInputError(f"the body: {first['msg']}", param=None, openai_code="invalid_value")
    member = first["loc"][1:2]
    found = [_Finding(each, body) for each in errors if each["loc"][1:2] == member]
    best = max(found, key=_Finding.rank)
    alike = [each for each in found if each.rank() == best.rank()]
    text = "; ".join(dict.fromkeys(each.text for each in alike))[:_MAX_TEXT]
    place = best.param or ".".join(map(str, best.place))
    shown = ascii(place[:_MAX_TEXT])[1:-1] or "the body"
    param = ascii((best.param or "".join(member))[:_MAX_TEXT])[1:-1] or None
    return InvalidInputError(f"{shown}: {text}", param=param, openai_code=best.code)


class _Finding:
    """One of pydantic's findings. Of a union there is one about each branch, and most of them are beside the point."""

    def __init__(self, error: Mapping[str, Any], body: Any) -> None:
        kind = error["type"]
        raised = error.get("ctx", {}).get("error")
        self.place = _place(error["loc"][1:], body, missing=kind == "missing")
        self.text = _PYDANTIC_TEXTS.get(kind, error["msg"]) if raised is None else str(raised)
        self.code = _PYDANTIC_CODES.get(kind, "invalid_value")
        self.param = None
        if isinstance(raised, ParameterError):
            self.code, self.param = raised.code, raised.param
        self._is_of_fit = not kind.endswith("_type")
        """Whether the value is of the type that the branch takes."""

    def rank(self) -> tuple[bool, int, tuple[str | int, ...]]:
        """Return what is greater the more it tells: of the branch that fits, or else goes furthest, is the mistake."""
        return self._is_of_fit, len(self.place), self.place


def _place(loc: Sequence[str | int], value: Any, *, missing: bool) -> tuple[str | int, ...]:
    """Return the members and indices of a location, without what pydantic calls the branches of unions in it."""
    found = []
    for part in loc[:-1] if missing else loc:
        is_member = isinstance(value, dict) and part in value
        if is_member or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]
            found.append(part)
    return (*found, *(loc[-1:] if missing else ()))
