"""Who may do what on a broker: one credential per node and one for observers, everything not granted denied.

A node publishes below its own name and into the mirror of its own chain, and reads what nodes say. The observer reads the
mirrors and publishes nothing. Passwords are random 256-bit tokens, so one SHA-256 of each is all a broker needs to keep.
This module knows strings alone: a broker's process does not load the protocol.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

OBSERVER: Final = "observer"
MAX_ACCESS_FILE_BYTES: Final = 16 * 1024 * 1024
_CHAIN_OF_NODE: Final = re.compile(r"(shard-[0-9]+|beacon)-[0-9]+")


class Credential(msgspec.Struct, frozen=True):
    """One user of the broker. ``publish`` and ``read`` are topic filters."""

    username: str
    password_sha256: str
    publish: tuple[str, ...]
    read: tuple[str, ...]


class AccessList(msgspec.Struct, frozen=True):
    """All users of a broker."""

    credentials: tuple[Credential, ...]


class AccessRules:
    """Answers a broker's questions about an ``AccessList``."""

    def __init__(self, access: AccessList) -> None:
        self._credentials = {credential.username: credential for credential in access.credentials}

    def is_authentic(self, username: str | None, password: str | None) -> bool:
        """Tell whether ``password`` is ``username``'s."""
        credential = self._credentials.get(username or "")
        digest = hashlib.sha256((password or "").encode()).hexdigest()
        # Compare even for an unknown user, so that time does not tell which names exist.
        expected = credential.password_sha256 if credential is not None else digest[::-1]
        return hmac.compare_digest(digest, expected) and credential is not None

    def may_publish(self, username: str | None, topic: str) -> bool:
        """Tell whether ``username`` may publish to ``topic``."""
        credential = self._credentials.get(username or "")
        return credential is not None and any(is_covered(topic, grant) for grant in credential.publish)

    def may_read(self, username: str | None, topic_filter: str) -> bool:
        """Tell whether everything that ``topic_filter`` selects is granted to ``username``."""
        credential = self._credentials.get(username or "")
        return credential is not None and any(is_covered(topic_filter, grant) for grant in credential.read)


def is_covered(topic_filter: str, grant: str) -> bool:
    """Tell whether ``grant`` selects every topic that ``topic_filter`` selects."""
    wanted = topic_filter.split("/")
    granted = grant.split("/")
    for index, level in enumerate(granted):
        if level == "#":
            return len(wanted) > index
        if index >= len(wanted) or wanted[index] == "#" or level not in {"+", wanted[index]}:
            return False
    return len(wanted) == len(granted)


def create_passwords(nodes: Iterable[str]) -> dict[str, str]:
    """Return a fresh password for each of ``nodes`` and for the observer."""
    return {name: secrets.token_urlsafe(32) for name in (*nodes, OBSERVER)}


def build_access_list(network_name: str, passwords: Mapping[str, str]) -> AccessList:
    """Return the access list of a network whose nodes, and observer, have these ``passwords``."""
    return AccessList(
        tuple(
            Credential(
                username=name,
                password_sha256=hashlib.sha256(password.encode()).hexdigest(),
                publish=_compute_publish_grants(network_name, name),
                # An observer may ask for the mirrors of whatever network this broker serves.
                read=("sy/+/watch/#",) if name == OBSERVER else (f"sy/{network_name}/node/#",),
            )
            for name, password in sorted(passwords.items())
        )
    )


def _compute_publish_grants(network_name: str, name: str) -> tuple[str, ...]:
    if name == OBSERVER:
        return ()
    own = f"sy/{network_name}/node/{name}/#"
    match = _CHAIN_OF_NODE.fullmatch(name)
    return (own,) if match is None else (own, f"sy/{network_name}/watch/{match[1]}/#")


def write_access_file(path: Path, access: AccessList) -> None:
    """Write ``access`` to ``path``, readable by its owner alone, replacing what was there at once."""
    write_private_file(path, msgspec.json.format(msgspec.json.encode(access), indent=1) + b"\n")


def read_access_file(path: Path) -> AccessList:
    """Return what ``write_access_file`` wrote; raises ``msgspec.ValidationError`` or ``OSError``."""
    with path.open("rb") as file:
        return msgspec.json.decode(file.read(MAX_ACCESS_FILE_BYTES), type=AccessList)


def write_private_file(path: Path, content: bytes) -> None:
    """Write ``content`` with mode 0600 from its first byte on, and put it in place by one rename."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    staged.replace(path)
