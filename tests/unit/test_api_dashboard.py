"""The Ray dashboard behind the front door: operators only, and no secret passes in either direction."""

from dataclasses import replace

import httpx
import pytest

from cloudfarm.api import create_app
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_problem


class Upstream:
    """A Ray dashboard that notes what it is asked."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.status, self.headers, self.text = 200, {}, "ok"
        self.error: Exception | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.error is not None:
            raise self.error

        async def body():
            yield self.text.encode()

        return httpx.Response(self.status, headers=self.headers, content=body())


@pytest.fixture
async def upstream():
    return Upstream()


@pytest.fixture
async def door(tmp_path, upstream: Upstream):
    async with open_front_door(tmp_path) as opened:
        context = replace(opened.context, dashboard_url="http://127.0.0.1:8265", ray_token="cluster-secret")  # noqa: S106
        opened.app = create_app(context)
        async with httpx.AsyncClient(transport=httpx.MockTransport(upstream)) as client:
            opened.app.state.dashboard = client
            yield opened


async def test_operators_only(door: FrontDoor, upstream: Upstream):
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"):
        assert (await door.call(None, method, "/dashboard/api/x")).status_code == 401
        for who in ("alpha.admin", "alpha.key"):
            assert (await door.call(who, method, "/dashboard/api/x")).status_code == 403
    assert_problem(await door.call("alpha.admin", "GET", "/dashboard/"), 403, "forbidden")
    assert upstream.requests == []


async def test_the_slash_that_relative_links_need(door: FrontDoor):
    answer = await door.call("operator", "GET", "/dashboard")
    assert (answer.status_code, answer.headers["location"]) == (307, "/dashboard/")


@pytest.mark.parametrize(
    ("asked", "passed"),
    [
        ("/dashboard/", "/"),
        ("/dashboard/static/js/main.js", "/static/js/main.js"),
        ("/dashboard/api/jobs/?a=1&b=%2F", "/api/jobs/?a=1&b=%2F"),
        ("/dashboard/log%2Fviewer/a%20b", "/log%2Fviewer/a%20b"),
        ("/dashboard//evil.example/x", "//evil.example/x"),
        ("/dashboard/dashboard/x", "/dashboard/x"),
    ],
)
async def test_paths_are_passed_as_they_are_and_never_to_another_host(
    door: FrontDoor, upstream: Upstream, asked, passed
):
    assert (await door.call("operator", "GET", asked)).status_code == 200
    (request,) = upstream.requests
    assert request.url.raw_path == passed.encode()
    assert (request.url.host, request.url.port) == ("127.0.0.1", 8265)


async def test_headers_up(door: FrontDoor, upstream: Upstream):
    browser = {
        "Cookie": "cloudfarm-session=secret; other=1",
        "Origin": "http://farm.test",
        "Referer": "http://farm.test/dashboard/",
        "User-Agent": "Mozilla/5.0",
        "Sec-Fetch-Mode": "cors",
        "X-Ray-Authorization": "Bearer mine",
        "Content-Type": "application/json",
    }
    async with door.client("operator", **browser) as client:
        await client.post("/dashboard/api/serve/x", content=b'{"a": 1}')
        await client.get("/dashboard/api/jobs/")
    post, get = upstream.requests
    assert post.headers["authorization"] == get.headers["authorization"] == "Bearer cluster-secret"
    assert (post.content, post.headers["content-type"]) == (b'{"a": 1}', "application/json")
    for name in ("cookie", "origin", "referer", "sec-fetch-mode", "x-ray-authorization"):
        assert name not in post.headers
    assert not post.headers["user-agent"].startswith("Mozilla")  # Ray refuses a browser's POST
    assert get.headers["sec-fetch-mode"] == "cors"  # and hides tenants' variables from a browser's GET
    for request in upstream.requests:
        assert door.tokens["operator"] not in str(request.headers)


async def test_a_head_is_passed_as_one(door: FrontDoor, upstream: Upstream):
    """The UI asks so for the size of logs that would not fit into an answer."""
    assert (await door.call("operator", "HEAD", "/dashboard/api/v0/logs/file")).content == b""
    assert [request.method for request in upstream.requests] == ["HEAD"]


async def test_headers_down(door: FrontDoor, upstream: Upstream):
    upstream.status, upstream.text = 302, "moved"
    upstream.headers = {
        "Set-Cookie": "ray-authentication-token=cluster-secret",
        "Location": "/index.html",
        "Content-Type": "text/html",
        "ETag": '"x"',
        "Content-Security-Policy": "default-src *",
    }
    answer = await door.call("operator", "GET", "/dashboard/x")
    assert (answer.status_code, answer.text) == (302, "moved")
    assert answer.headers["location"] == "/dashboard/index.html"
    assert answer.headers["etag"] == '"x"'
    assert "set-cookie" not in answer.headers
    assert "cluster-secret" not in str(answer.headers)
    assert "script" not in answer.headers["content-security-policy"]
    assert "'self'" in answer.headers["content-security-policy"]


async def test_a_dashboard_that_does_not_answer(door: FrontDoor, upstream: Upstream):
    upstream.error = httpx.ConnectError("refused at 127.0.0.1:8265")
    body = assert_problem(await door.call("operator", "GET", "/dashboard/"), 503, "unavailable")
    assert "8265" not in body["detail"]


async def test_a_farm_without_a_dashboard(tmp_path):
    async with open_front_door(tmp_path) as door:
        assert_problem(await door.call("operator", "GET", "/dashboard/"), 404, "not_found")
