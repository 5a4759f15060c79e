"""The Python client raises the very error that the farm raised."""

import httpx
import pytest

from cloudfarm.client import FarmClient
from cloudfarm.errors import CloudfarmError, ImpossibleShapeError, NotFoundError, UnavailableError


def client(status: int, body: object, *, text: str | None = None) -> FarmClient:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer cf_x"
        return httpx.Response(status, text=text) if text is not None else httpx.Response(status, json=body)

    return FarmClient("http://farm", "cf_x", transport=httpx.MockTransport(answer))


def test_a_good_answer_is_returned() -> None:
    assert client(200, {"a": 1}).get("/v1/x", none=None) == {"a": 1}
    assert client(204, None, text="").delete("/v1/x") is None


@pytest.mark.parametrize("kind", [NotFoundError, ImpossibleShapeError])
def test_an_error_comes_back_as_its_class(kind: type[CloudfarmError]) -> None:
    with pytest.raises(kind, match="no such thing") as caught:
        client(kind.status, {"code": kind.code, "detail": "no such thing"}).get("/v1/x")
    assert type(caught.value) is kind


def test_an_unknown_code_is_still_one_of_ours() -> None:
    with pytest.raises(CloudfarmError, match="odd"):
        client(418, {"code": "teapot", "detail": "odd"}).get("/v1/x")


def test_what_is_not_json_and_what_does_not_answer_is_unavailable() -> None:
    with pytest.raises(UnavailableError):
        client(502, None, text="<html>").get("/v1/x")

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(UnavailableError, match="does not answer"):
        FarmClient("http://farm", "cf_x", transport=httpx.MockTransport(refuse)).get("/v1/x")
