"""Who may speak to the port: this machine's programs, its pages and its wallets, not what a browser brings along."""

from pathlib import Path

import pytest

from node.rpc.access import Gatekeeper, RpcAccess, check_bind
from shardyard.errors import ConfigError


def refuse(headers: dict[str, str], access: RpcAccess | None = None) -> int | None:
    found = Gatekeeper(access or RpcAccess()).find_refusal(
        [(k.encode(), v.encode()) for k, v in headers.items()]
    )
    return None if found is None else found[0]


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8545", "localhost:8545", "LOCALHOST", "[::1]:8545", "192.168.1.5"]
)
def test_names_of_this_machine_pass(host):
    assert refuse({"host": host}) is None


@pytest.mark.parametrize(
    "host", ["evil.example:8545", "localhost.evil.example", "127.0.0.1.nip.io", "", "[", "a b"]
)
def test_a_rebound_name_does_not_pass(host):
    assert refuse({"host": host}) == 403


def test_a_request_without_host_or_with_two_does_not_pass():
    gatekeeper = Gatekeeper(RpcAccess())
    assert gatekeeper.find_refusal([])[0] == 403
    assert gatekeeper.find_refusal([(b"host", b"localhost"), (b"host", b"evil.example")])[0] == 403


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "https://127.0.0.1",
        "http://[::1]:5173",
        "chrome-extension://nkbihfbeogaeaoehlefnkodbefgpgknn",
    ],
)
def test_pages_of_this_machine_and_wallets_pass(origin):
    assert refuse({"host": "localhost", "origin": origin}) is None


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://localhost.evil.example",
        "file://",
        "chrome-extension://",
        "localhost",
        "\xff",
    ],
)
def test_other_pages_do_not_pass(origin):
    assert refuse({"host": "localhost", "origin": origin}) == 403


def test_an_allowed_origin_and_host_pass():
    access = RpcAccess(allowed_origins=("https://remix.ethereum.org/",), allowed_hosts=("node.lan",))
    assert refuse({"host": "node.lan:8545", "origin": "https://remix.ethereum.org"}, access) is None


def test_a_token_is_asked_of_everybody_when_there_is_one():
    access = RpcAccess(token="0123456789abcdef")
    assert refuse({"host": "localhost"}, access) == 401
    assert refuse({"host": "localhost", "authorization": "Bearer 0123456789abcdee"}, access) == 401
    assert refuse({"host": "localhost", "authorization": "Basic 0123456789abcdef"}, access) == 401
    assert refuse({"host": "localhost", "authorization": "Bearer 0123456789abcdef"}, access) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "node.lan"])
def test_a_port_that_others_can_reach_needs_tls_and_a_token(host):
    key = Path("key.pem")
    with pytest.raises(ConfigError, match=r"try: 127\.0\.0\.1"):
        check_bind(RpcAccess(host=host))
    with pytest.raises(ConfigError):
        check_bind(RpcAccess(host=host, token="0123456789abcdef"))
    with pytest.raises(ConfigError):
        check_bind(RpcAccess(host=host, tls_certificate=key, tls_key=key))
    check_bind(RpcAccess(host=host, token="0123456789abcdef", tls_certificate=key, tls_key=key))


def test_a_short_token_or_half_a_key_pair_is_refused():
    with pytest.raises(ConfigError, match="16"):
        check_bind(RpcAccess(token="short"))
    with pytest.raises(ConfigError, match="both"):
        check_bind(RpcAccess(tls_key=Path("key.pem")))
