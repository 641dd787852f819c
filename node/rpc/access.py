"""Who may speak to the RPC port: what it binds to, which Host and Origin headers it takes, and the token.

A loopback port is reachable by every web page in the operator's browser. Two checks keep them out: the Host header must
name this machine (a rebound DNS name does not), and the Origin, which browsers always send across origins, must be a
wallet extension, a page served from this machine, or one that was allowed. Beyond loopback a port needs TLS and a token.
"""

import hmac
import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from shardyard.errors import ConfigError

Headers = Iterable[tuple[bytes, bytes]]

_LOCAL_NAMES: Final = frozenset({"localhost"})
_EXTENSION_SCHEMES: Final = frozenset({"chrome-extension", "moz-extension", "safari-web-extension"})
MIN_TOKEN_CHARACTERS: Final = 16


class RpcAccess(msgspec.Struct, frozen=True):
    """Where a server listens and whom it believes. ``port`` 0 picks a free one."""

    host: str = "127.0.0.1"
    port: int = 0
    allowed_hosts: tuple[str, ...] = ()
    """Host names beside localhost and addresses."""
    allowed_origins: tuple[str, ...] = ()
    """Origins beside wallets and pages of this machine, such as ``https://remix.ethereum.org``."""
    token: str | None = None
    """Every request must carry it as ``Authorization: Bearer``."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None


def check_bind(access: RpcAccess) -> None:
    """Raise ``ConfigError`` unless it is safe to listen as ``access`` says."""
    if access.token is not None and len(access.token) < MIN_TOKEN_CHARACTERS:
        raise ConfigError(
            f"RPC token: got {len(access.token)} characters, expected at least {MIN_TOKEN_CHARACTERS}"
        )
    if (access.tls_certificate is None) != (access.tls_key is None):
        raise ConfigError("RPC TLS: got one of certificate and key, expected both")
    if is_loopback(access.host):
        return
    if access.tls_certificate is None or access.token is None:
        raise ConfigError(
            f"RPC host: got {access.host}, which others can reach; beyond loopback a TLS certificate and a token are "
            "needed; try: 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach ``host``."""
    if host in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def get_header(headers: Headers, name: bytes) -> bytes | None:
    """Return the value of a header, None when it is missing; names are lower case in ASGI."""
    return next((value for key, value in headers if key == name), None)


class Gatekeeper:
    """Applies ``RpcAccess`` to the headers of a request."""

    def __init__(self, access: RpcAccess) -> None:
        self._hosts = {name.lower() for name in access.allowed_hosts} | _LOCAL_NAMES
        self._origins = {origin.lower().rstrip("/") for origin in access.allowed_origins}
        self._token = access.token.encode() if access.token is not None else None

    def find_refusal(self, headers: Headers) -> tuple[int, str] | None:
        """Return HTTP status and reason to refuse a request, None when it may pass."""
        found = list(headers)
        hosts = [value for name, value in found if name == b"host"]
        if len(hosts) != 1 or not self._is_host_allowed(hosts[0]):
            return 403, "invalid host specified"
        origin = get_header(found, b"origin")
        if origin is not None and not self.is_origin_allowed(origin):
            return 403, "origin not allowed"
        if self._token is not None and not self._has_token(found):
            return 401, "missing or wrong token"
        return None

    def _is_host_allowed(self, value: bytes) -> bool:
        try:
            name = urlsplit("//" + value.decode("ascii")).hostname
        except (UnicodeDecodeError, ValueError):
            return False
        if name is None:
            return False
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)  # an address cannot be rebound
        except ValueError:
            return False
        return True

    def is_origin_allowed(self, value: bytes) -> bool:
        """Tell whether a page of this origin may speak to the node."""
        try:
            origin = value.decode("ascii").lower()
            parts = urlsplit(origin)
            host = parts.hostname
        except (UnicodeDecodeError, ValueError):
            return False
        if origin in self._origins or (parts.scheme in _EXTENSION_SCHEMES and host):
            return True
        return parts.scheme in {"http", "https"} and host is not None and is_loopback(host)

    def _has_token(self, headers: Headers) -> bool:
        given = get_header(headers, b"authorization") or b""
        scheme, _, token = given.partition(b" ")
        assert self._token is not None, "the caller looked"
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)
