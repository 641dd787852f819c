"""The ASGI application over HTTP: what is refused before a method sees it, and what a browser is told."""

import asyncio
from typing import Any

import msgspec
import pytest

from node.rpc.access import RpcAccess
from node.rpc.protocol import RpcLimits
from tests.unit.node.rpc_chain import RpcChain, open_chain

BLOCK_NUMBER = b'{"jsonrpc":"2.0","id":1,"method":"eth_blockNumber"}'
JSON = {"content-type": "application/json"}


async def request(
    chain: RpcChain,
    body: bytes | list[bytes] = BLOCK_NUMBER,
    *,
    method: str = "POST",
    path: str = "/",
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of one request, whose body arrives in the given parts."""
    parts = [body] if isinstance(body, bytes) else list(body)
    given = {"host": "127.0.0.1:8546", **(JSON if headers is None else headers)}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in given.items()],
    }
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not parts:
            await asyncio.Event().wait()
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts) or part == b"<more>"}

    async def send(message: Any) -> None:
        sent.append(message)

    await chain.app(scope, receive, send)
    found = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], found, sent[1]["body"]


async def test_a_post_is_answered(chain):
    status, headers, body = await request(chain)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert msgspec.json.decode(body) == {"jsonrpc": "2.0", "id": 1, "result": "0x0"}


async def test_errors_of_the_protocol_are_http_200_and_notifications_204(chain):
    assert (await request(chain, b"{"))[0] == 200
    assert await request(chain, b'{"jsonrpc":"2.0","method":"eth_blockNumber"}') == (
        204,
        {"x-content-type-options": "nosniff", "vary": "origin"},
        b"",
    )


async def test_a_body_may_come_in_parts(chain):
    assert (await request(chain, [BLOCK_NUMBER[:9], BLOCK_NUMBER[9:]]))[0] == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", None]
)
async def test_only_application_json_is_taken(chain, kind):
    assert (await request(chain, headers={"content-type": kind} if kind else {}))[0] == 415


async def test_a_charset_is_no_objection_and_compression_is(chain):
    assert (await request(chain, headers={"content-type": "application/json; charset=utf-8"}))[0] == 200
    assert (await request(chain, headers=JSON | {"content-encoding": "gzip"}))[0] == 415


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
async def test_other_verbs_are_refused(chain, method):
    status, headers, _ = await request(chain, method=method)
    assert (status, headers["allow"]) == (405, "POST, OPTIONS")


async def test_other_paths_are_not_found(chain):
    assert (await request(chain, path="/debug"))[0] == 404


async def test_a_body_above_the_limit_is_refused_by_its_header_and_by_its_bytes(tmp_path):
    async with open_chain(tmp_path, limits=RpcLimits(max_body_bytes=100)) as chain:
        status, headers, _ = await request(chain, b"", headers=JSON | {"content-length": "101"})
        assert (status, headers["connection"]) == (413, "close")
        assert (await request(chain, [b" " * 60, b" " * 60]))[0] == 413
        assert (await request(chain))[0] == 200


async def test_a_body_that_never_ends_is_given_up(tmp_path):
    async with open_chain(tmp_path, limits=RpcLimits(body_timeout_s=0.05)) as chain:
        assert (await request(chain, [b"<more>"]))[0] == 408


async def test_a_foreign_host_or_page_gets_403_and_no_permission_to_read(chain):
    assert (await request(chain, headers=JSON | {"host": "evil.example"}))[0] == 403
    status, headers, _ = await request(chain, headers=JSON | {"origin": "https://evil.example"})
    assert status == 403
    assert "access-control-allow-origin" not in headers


async def test_a_wallet_may_preflight_and_read(chain):
    origin = "chrome-extension://nkbihfbeogaeaoehlefnkodbefgpgknn"
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
    }
    status, headers, _ = await request(chain, b"", method="OPTIONS", headers=asked)
    assert status == 204
    assert headers["access-control-allow-origin"] == origin
    assert headers["access-control-allow-private-network"] == "true"
    assert "content-type" in headers["access-control-allow-headers"]
    status, headers, _ = await request(chain, headers=JSON | {"origin": origin})
    assert (status, headers["access-control-allow-origin"]) == (200, origin)


async def test_a_token_is_asked_for_but_not_in_a_preflight(tmp_path):
    async with open_chain(tmp_path, access=RpcAccess(token="0123456789abcdef")) as chain:
        assert (await request(chain))[0] == 401
        assert (await request(chain, headers=JSON | {"authorization": "Bearer 0123456789abcdef"}))[0] == 200
        assert (await request(chain, b"", method="OPTIONS", headers={"origin": "http://localhost:3000"}))[
            0
        ] == 204


async def test_refusals_are_counted(chain):
    await request(chain, path="/x")
    await request(chain, b"{")
    assert chain.app.dispatcher.counters["http_404"] == 1
    assert chain.app.dispatcher.counters["errors"] == 1
