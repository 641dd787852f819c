"""Keys that the command line signs with, and the transactions it makes of them.

An account is named by the number of a development account (0 to 9), by its address, or by the address of a key that
``accounts new`` or ``accounts import`` put into the network's key folder. Keys are never taken from the command line:
arguments can be read by every user of the machine.
"""

import os
from pathlib import Path
from typing import Any

from node.addresses import to_checksum
from node.cli.root import EXIT_USAGE, CliError
from node.cli.session import RpcClient, Session
from node.dev_accounts import DEV_ACCOUNTS
from shardyard import _native
from shardyard.ids import GATEWAY, Address, compute_chain_id

TRANSFER_GAS = 21_000
MAX_ACCOUNT_DIGITS = 3
GAS_MARGIN_PERCENT = 120
"""An estimate is for the state of one moment; what is not used is not paid."""


GATEWAY_HEX = to_checksum(GATEWAY)


def parse_address(text: str) -> str:
    """Return a checksummed address; raises ``CliError`` for what is none, a wrong checksum included."""
    stripped = text.removeprefix("0x")
    try:
        address = bytes.fromhex(stripped)
    except ValueError:
        address = b""
    if len(address) != 20:
        raise CliError(
            f"address: got {text[:80]!r}, expected 0x and 40 hexadecimal digits; try: shardyard accounts",
            EXIT_USAGE,
        )
    found = to_checksum(address)
    if stripped not in {stripped.lower(), stripped.upper()} and "0x" + stripped != found:
        raise CliError(
            f"address: {text} has a wrong checksum, expected {found}; try: check it for typing errors",
            EXIT_USAGE,
        )
    return found


def get_key_folder(session: Session) -> Path:
    """Return where the network keeps keys of its user."""
    return session.root / "keys" / "accounts"


def list_user_keys(session: Session) -> dict[str, Path]:
    """Return key files by address."""
    folder = get_key_folder(session)
    return {path.stem: path for path in sorted(folder.glob("0x*.key"))} if folder.exists() else {}


def store_user_key(session: Session, private_key: bytes) -> str:
    """Write a key with mode 0600 and return its address; raises ``CliError`` when it is there already."""
    from eth_account import Account

    address: str = Account.from_key(private_key).address
    folder = get_key_folder(session)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(folder / f"{address}.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise CliError(
            f"the key of {address} is stored already; try: shardyard accounts{session.name_flag}"
        ) from error
    with os.fdopen(descriptor, "w") as file:
        file.write(private_key.hex())
    return address


def resolve_account(session: Session, text: str) -> tuple[str, bytes]:
    """Return address and private key of the account ``text`` names."""
    if text.isdecimal() and len(text) <= MAX_ACCOUNT_DIGITS and int(text) < len(DEV_ACCOUNTS):
        account = DEV_ACCOUNTS[int(text)]
        return account.checksum_address, account.private_key
    address = resolve_address(text)
    for account in DEV_ACCOUNTS:
        if account.checksum_address == address:
            return address, account.private_key
    path = list_user_keys(session).get(address)
    if path is None:
        raise CliError(
            f"no key of {address} here; try: --from 0 (a development account), "
            f"or shardyard accounts import{session.name_flag}",
            EXIT_USAGE,
        )
    return address, _read_user_key(session, address, path)


def _read_user_key(session: Session, address: str, path: Path) -> bytes:
    """Return the key of ``address``; raises ``CliError``, without what is in the file, when it has another or none."""
    text = path.read_text(errors="replace").strip()
    got = f"{len(text)} characters that are none"
    try:
        key = bytes.fromhex(text)
        found = to_checksum(Address(_native.compute_address(key)))
    except (ValueError, _native.CoreError):
        pass
    else:
        if found == address:
            return key
        got = f"the one of {found}"
    raise CliError(
        f"{path}: got {got}, expected the private key of {address} as 64 hexadecimal digits; "
        f"try: move the file away, then shardyard accounts import{session.name_flag}"
    )


def resolve_address(text: str) -> str:
    """Return the address that ``text`` names: the number of a development account, or an address."""
    if text.isdecimal() and len(text) <= MAX_ACCOUNT_DIGITS:
        if int(text) >= len(DEV_ACCOUNTS):
            raise CliError(
                f"account: got {text}, expected 0..{len(DEV_ACCOUNTS) - 1}; try: shardyard accounts",
                EXIT_USAGE,
            )
        return DEV_ACCOUNTS[int(text)].checksum_address
    return parse_address(text)


def parse_data(text: str) -> bytes:
    """Return the bytes of a 0x string."""
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise CliError(
            f"data: got {text[:40]!r}, expected 0x and hexadecimal digits; try: --data 0x", EXIT_USAGE
        ) from None


def sign_transaction(
    client: RpcClient,
    *,
    shard: int,
    sender: tuple[str, bytes],
    to: str | None,
    value: int = 0,
    data: bytes = b"",
    gas: int | None = None,
    nonce: int | None = None,
) -> bytes:
    """Return a signed EIP-1559 transaction for ``shard``, with gas, fees and nonce asked of the node unless given."""
    from eth_account import Account  # most of a second to import, so only where something is signed

    address, key = sender
    client.sender = address
    call: dict[str, Any] = {"from": address, "value": hex(value), "data": "0x" + data.hex()}
    if to is not None:
        call["to"] = to
    if gas is None:
        if to is not None and not data and client.request("eth_getCode", to, "latest") == "0x":
            gas = TRANSFER_GAS
        else:
            gas = int(client.request("eth_estimateGas", call), 16) * GAS_MARGIN_PERCENT // 100
    if nonce is None:
        nonce = int(client.request("eth_getTransactionCount", address, "pending"), 16)
    tip = int(client.request("eth_maxPriorityFeePerGas"), 16)
    base_fee = int(client.request("eth_getBlockByNumber", "latest", False)["baseFeePerGas"], 16)
    transaction: dict[str, Any] = {
        "type": 2,
        "chainId": compute_chain_id(shard),
        "nonce": nonce,
        "gas": gas,
        "maxFeePerGas": 2 * base_fee + tip,
        "maxPriorityFeePerGas": tip,
        "value": value,
        "data": data,
    }
    if to is not None:
        transaction["to"] = to
    return bytes(Account.sign_transaction(transaction, key).raw_transaction)


def encode_call(name: str, types: tuple[str, ...], values: tuple[object, ...]) -> bytes:
    """Return call data: selector of ``name(types)`` and the ABI encoding of ``values``; raises ``CliError``.

    The selector is of the types as they are, so ``types`` are canonical: ``uint256``, not ``uint``.
    """
    return _native.keccak256(f"{name}({','.join(types)})".encode())[:4] + encode_values(types, values)


def encode_values(types: tuple[str, ...], values: tuple[object, ...]) -> bytes:
    """Return the ABI encoding of ``values``; raises ``CliError`` for one that its type cannot hold, and for unknown types."""
    from eth_abi.abi import encode
    from eth_abi.exceptions import EncodingError, ParseError

    try:
        return encode(types, values)
    except (EncodingError, ParseError, ValueError, TypeError, OverflowError) as error:
        words = " ".join(str(error).split())
        raise CliError(
            f"arguments: got values that ({','.join(types)}) cannot hold: {words[:300]}; try: values within their types",
            EXIT_USAGE,
        ) from error


def encode_gateway_transfer(dst: int, to: str) -> bytes:
    """Return the call that sends value to ``to`` on shard ``dst``."""
    return encode_call("transfer", ("uint256", "address"), (dst, to))


def encode_interop_address(shard: int, address: str) -> bytes:
    """Return the ERC-7930 form of ``address`` on ``shard``."""
    chain = compute_chain_id(shard).to_bytes(8, "big").lstrip(b"\0")
    return b"\x00\x01\x00\x00" + bytes((len(chain),)) + chain + b"\x14" + bytes.fromhex(address[2:])


def encode_gateway_message(dst: int, to: str, payload: bytes, attributes: tuple[bytes, ...] = ()) -> bytes:
    """Return the call that sends ``payload`` to the contract ``to`` on shard ``dst`` (ERC-7786)."""
    values = (encode_interop_address(dst, to), payload, list(attributes))
    return encode_call("sendMessage", ("bytes", "bytes", "bytes[]"), values)
