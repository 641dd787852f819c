"""Configures a mosquitto found on PATH as a network's broker: same credentials, same rights, same limits as the embedded.

Written are three private files, ``mosquitto.conf``, ``passwords`` and ``acl``; mosquitto is then started with the
command that ``write_mosquitto_config`` returns: ``python -m node.bus.mosquitto CONF`` asks Linux to end this process
when its launcher dies, for mosquitto does not watch a pipe, and then becomes mosquitto. Passwords stand in
mosquitto's own form, PBKDF2 with SHA-512; they are random tokens, so few rounds suffice and a start stays fast.
"""

import base64
import ctypes
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from node.bus.access import AccessList, build_access_list, write_private_file
from shardyard.errors import ConfigError

ROUNDS: Final = 101
MAX_PACKET_BYTES: Final = 512 * 1024
MAX_QUEUED_MESSAGES: Final = 8192
MAX_QUEUED_BYTES: Final = 32 * 1024 * 1024
_PR_SET_PDEATHSIG: Final = 1
_EXTRA_PLACES: Final = ("/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto")
"""Where distributions put it although a user's PATH has no ``sbin``."""


def find_mosquitto() -> str | None:
    """Return the path of a mosquitto, or None."""
    found = shutil.which("mosquitto")
    if found is not None:
        return found
    return next((place for place in _EXTRA_PLACES if os.access(place, os.X_OK)), None)


def write_mosquitto_config(
    root: Path, network_name: str, passwords: Mapping[str, str], port: int, *, host: str = "127.0.0.1"
) -> list[str]:
    """Write the configuration below ``root`` and return the command that starts mosquitto with it.

    Raises ``ConfigError`` when there is no mosquitto.
    """
    if find_mosquitto() is None:
        raise ConfigError("broker: mosquitto is not on PATH; try: --broker embedded")
    directory = root / "mosquitto"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    access = build_access_list(network_name, passwords)
    write_private_file(directory / "passwords", encode_passwords(passwords))
    write_private_file(directory / "acl", encode_acl(access))
    write_private_file(directory / "mosquitto.conf", encode_config(directory, host, port))
    return [sys.executable, "-P", "-m", "node.bus.mosquitto", str(directory / "mosquitto.conf")]


def encode_passwords(passwords: Mapping[str, str]) -> bytes:
    """Return mosquitto's password file."""
    lines = []
    for username, password in sorted(passwords.items()):
        salt = secrets.token_bytes(12)
        digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ROUNDS)
        fields = ("7", str(ROUNDS), base64.b64encode(salt).decode(), base64.b64encode(digest).decode())
        lines.append(f"{username}:${'$'.join(fields)}\n")
    return "".join(lines).encode()


def encode_acl(access: AccessList) -> bytes:
    """Return mosquitto's access list: what is not named is denied."""
    lines = []
    for credential in access.credentials:
        lines.append(f"user {credential.username}\n")
        lines.extend(f"topic write {grant}\n" for grant in credential.publish)
        lines.extend(f"topic read {grant}\n" for grant in credential.read)
        lines.append("\n")
    return "".join(lines).encode()


def _find_own_name() -> str | None:
    """Return the name of the user of this process; containers run under numbers that have none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return None


def encode_config(directory: Path, host: str, port: int) -> bytes:
    """Return ``mosquitto.conf``: one listener, no anonymous users, nothing kept on disk, everything bounded."""
    user = _find_own_name()
    lines = (
        f"listener {port} {host}",
        # Started by root it would change to a user of its own, who may not read these files; nobody else can change.
        *([f"user {user}"] if user else []),
        "allow_anonymous false",
        f"password_file {directory / 'passwords'}",
        f"acl_file {directory / 'acl'}",
        "persistence false",
        f"max_packet_size {MAX_PACKET_BYTES}",
        f"max_queued_messages {MAX_QUEUED_MESSAGES}",
        f"max_queued_bytes {MAX_QUEUED_BYTES}",
        "max_qos 1",
        "set_tcp_nodelay true",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
    )
    return "".join(f"{line}\n" for line in lines).encode()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Become mosquitto with the configuration file that is the one argument."""
    (config,) = sys.argv[1:] if arguments is None else arguments
    program = find_mosquitto()
    if program is None:
        sys.exit("broker: mosquitto is not on PATH; try: --broker embedded")
    launcher = os.getppid()
    if sys.platform == "linux":
        # Survives exec. Elsewhere mosquitto outlives a launcher that is killed, until the next start meets its port.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != launcher:
            sys.exit("broker: the launcher is gone")
    os.execv(program, [program, "-c", config])  # noqa: S606 - no shell, and the program is the one found above


if __name__ == "__main__":
    main()
