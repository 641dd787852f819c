"""``contract``: deploy, call and send, by signature or by ABI.

A contract is given as one of the examples (``counter``, ``erc20``, …), as the JSON of any compiler (Foundry, Hardhat, solc, our
own artifacts), as a ``.vy`` source when Vyper is installed, or as a file of hexadecimal init code.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import rich_click as click

from node.artifacts import list_artifact_names, load_artifact
from node.cli.block import parse_block_tag
from node.cli.output import network_option, print_json, say
from node.cli.root import EXIT_REJECTED, EXIT_USAGE, CliError, NamingGroup
from node.cli.session import Session
from node.cli.tx import Patience, naming_sent, send_raw, wait_for_receipt
from node.cli.wallet import (
    encode_call,
    encode_values,
    parse_address,
    resolve_account,
    resolve_address,
    sign_transaction,
)
from node.network import parse_wei

VYPER_TIMEOUT_S = 120


def load_contract(text: str) -> tuple[bytes, list[dict[str, Any]]]:
    """Return init code and ABI (empty when unknown) of the contract that ``text`` names; raises ``CliError``."""
    if text in list_artifact_names():
        artifact = load_artifact(text)
        return artifact.init_code, list(artifact.abi)
    path = Path(text)
    if not path.is_file():
        known = ", ".join(list_artifact_names())
        raise CliError(f"contract: got {text!r}, expected a file or one of {known}; try: counter", EXIT_USAGE)
    if path.suffix == ".vy":
        return _compile_vyper(path)
    content = path.read_text(errors="replace")
    if path.suffix == ".json":
        return _read_artifact(path, content)
    return _decode_code(content.strip(), str(path)), []


def _compile_vyper(path: Path) -> tuple[bytes, list[dict[str, Any]]]:
    command = [sys.executable, "-m", "vyper", "-f", "bytecode,abi", str(path)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=VYPER_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CliError(f"{path}: the compiler was not done after {VYPER_TIMEOUT_S} s") from error
    if result.returncode != 0:
        if "No module named vyper" in result.stderr:
            raise CliError(
                "Vyper is not installed here; try: pip install vyper==0.4.3, or give a compiled JSON artifact"
            )
        raise CliError(f"{path} does not compile:\n{result.stderr.strip()[-2000:]}")
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    return _decode_code(lines[0], str(path)), json.loads(lines[1])


def _read_artifact(path: Path, content: str) -> tuple[bytes, list[dict[str, Any]]]:
    try:
        found = json.loads(content)
        code = found["bytecode"] if "bytecode" in found else found["evm"]["bytecode"]["object"]
        if isinstance(code, dict):  # Foundry
            code = code["object"]
        abi = found.get("abi", [])
        if not isinstance(code, str) or not isinstance(abi, list):
            raise TypeError("an interface has no code")
    except (ValueError, KeyError, TypeError) as error:
        raise CliError(
            f"{path}: expected a compiler's JSON with abi and bytecode; try: forge build, or vyper -f bytecode",
            EXIT_USAGE,
        ) from error
    return _decode_code(code, str(path)), abi


def _decode_code(text: str, where: str) -> bytes:
    try:
        code = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        code = b""
    if not code:
        raise CliError(
            f"{where}: expected init code as hexadecimal digits; try: a linked artifact", EXIT_USAGE
        )
    return code


def parse_value(kind: str, text: str) -> object:
    """Return ``text`` as a value of the ABI type ``kind``; raises ``CliError``."""
    try:
        if kind.endswith("]"):
            inner, items = kind[: kind.rindex("[")], json.loads(text)
            if not isinstance(items, list):
                raise ValueError("no list")
            return [parse_value(inner, str(item)) for item in items]
        if kind.startswith(("uint", "int")):
            return (
                int(text, 0)
                if text.lstrip("-").startswith("0x") or text.lstrip("-").isdecimal()
                else parse_wei(text)
            )
        if kind == "address":
            return parse_address(text)
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind.startswith("bytes"):
            return bytes.fromhex(text.removeprefix("0x"))
        if kind == "string":
            return text
    except (ValueError, KeyError, RecursionError) as error:
        raise CliError(f"argument: got {text[:80]!r}, expected a value of type {kind}", EXIT_USAGE) from error
    raise CliError(
        f"type {kind} is not known here; try: shardyard tx send with --data that cast encoded", EXIT_USAGE
    )


def split_types(text: str) -> tuple[str, ...]:
    """Return the types in ``a,b,c`` by their canonical names, of which selectors are made: ``uint`` is ``uint256``."""
    parts = (part.strip() for part in text.split(","))
    return tuple(re.sub(r"\A(u?int)(?=\[|\Z)", r"\g<1>256", part) for part in parts if part)


def parse_signature(text: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return name, argument types and result types of ``name(types)(results)``; raises ``CliError``."""
    name, _, rest = text.partition("(")
    arguments, closing, results = rest.partition(")")
    if not name or not closing:
        raise CliError(
            f'signature: got {text!r}, expected for example "balanceOf(address)(uint256)"', EXIT_USAGE
        )
    return name, split_types(arguments), split_types(results.strip("()"))


def encode_arguments(types: tuple[str, ...], arguments: tuple[str, ...], what: str) -> tuple[object, ...]:
    """Return the parsed arguments; raises ``CliError`` when their number is wrong."""
    if len(types) != len(arguments):
        raise CliError(
            f"{what}: got {len(arguments)} arguments, expected {len(types)} ({', '.join(types) or 'none'})",
            EXIT_USAGE,
        )
    return tuple(parse_value(kind, text) for kind, text in zip(types, arguments, strict=True))


def verify_results(types: tuple[str, ...]) -> None:
    """Raise ``CliError`` unless every one of ``types`` can be decoded."""
    from eth_abi.abi import is_encodable_type

    for kind in types:
        if not is_encodable_type(kind):
            raise CliError(
                f"result: got type {kind!r}, expected one of the ABI; try: uint256, address, bool, string, bytes32, uint256[]",
                EXIT_USAGE,
            )


def decode_results(types: tuple[str, ...], output: bytes) -> list[Any]:
    """Return the values in ``output``; raises ``CliError`` when it is not what ``types`` say."""
    from eth_abi.abi import decode
    from eth_abi.exceptions import DecodingError

    try:
        return list(decode(types, output))
    except (DecodingError, ValueError, OverflowError) as error:
        raise CliError(
            f"the answer (0x{output.hex()[:80]}) is not ({', '.join(types)}): {error}; try: another result type"
        ) from error


def format_value(value: object) -> str:
    """Return a decoded value as it could be given as an argument; bytes are hex, also within lists."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_value, value))}]"
    return str(value)


def verify_contract(session: Session, shard: int, address: str, block: str = "latest") -> None:
    """Raise ``CliError`` unless there is code at ``address``, as there is none on a shard that the contract is not on."""
    if session.get_client(shard).request("eth_getCode", address, block) != "0x":
        return
    when = "" if block == "latest" else f" in block {block}"
    raise CliError(
        f"there is no contract at {address} on shard {shard}{when}; try: --shard with the shard that it was deployed on"
    )


@click.group(cls=NamingGroup)
def contract() -> None:
    """Deploy, call and send to contracts."""


@contract.command()
@click.argument("source")
@click.argument("arguments", nargs=-1)
@click.option("--shard", default="0", show_default=True, help="Shard, or all.")
@click.option(
    "--from", "sender", default="0", show_default=True, help="Development account number or address."
)
@click.option("--value", default="0", help="Ether sent along.")
@network_option
def deploy(
    *, source: str, arguments: tuple[str, ...], shard: str, sender: str, value: str, name: str, as_json: bool
) -> int:
    """Deploy SOURCE with its constructor's ARGUMENTS and wait until it is there."""
    session = Session(name)
    code, abi = load_contract(source)
    constructor: dict[str, Any] = next(
        (entry for entry in abi if entry.get("type") == "constructor"), {"inputs": []}
    )
    types = tuple(item["type"] for item in constructor["inputs"])
    data = code + encode_values(types, encode_arguments(types, arguments, f"constructor of {source}"))
    account = resolve_account(session, sender)
    sent: list[tuple[int, str]] = []
    for number in session.parse_shards(shard):
        with naming_sent(sent):
            client = session.get_client(number)
            raw = sign_transaction(
                client, shard=number, sender=account, to=None, value=parse_wei(value), data=data
            )
            sent.append((number, send_raw(client, raw)))
    deployed = []
    patience = Patience()
    for number, tx_hash in sent:
        receipt = wait_for_receipt(session, number, tx_hash, patience)
        if receipt["status"] != "0x1":
            raise CliError(
                f"deployment {tx_hash} on shard {number} was reverted; "
                f"try: shardyard explain {tx_hash}{session.name_flag}",
                EXIT_REJECTED,
            )
        address, height = parse_address(receipt["contractAddress"]), int(receipt["blockNumber"], 16)
        deployed.append({"shard": number, "address": address, "transaction": tx_hash})
        if not as_json:
            click.echo(address)
            say(f"deployed on shard {number} in block {height}, {int(receipt['gasUsed'], 16):,} gas")
    if as_json:
        print_json({"deployed": deployed})
    return 0


@contract.command()
@click.argument("address")
@click.argument("signature")
@click.argument("arguments", nargs=-1)
@click.option("--shard", default=0, show_default=True, help="Shard of the contract.")
@click.option("--from", "sender", default=None, help="Who asks: development account number or address.")
@click.option(
    "--at",
    "block",
    default="latest",
    show_default=True,
    help="latest, finalized, pending, a height or a block hash.",
)
@network_option
def call(
    *,
    address: str,
    signature: str,
    arguments: tuple[str, ...],
    shard: int,
    sender: str | None,
    block: str,
    name: str,
    as_json: bool,
) -> int:
    """Call SIGNATURE, for example "balanceOf(address)(uint256)", without sending anything."""
    session = Session(name)
    client = session.get_client(shard)
    method, types, results = parse_signature(signature)
    data = encode_call(method, types, encode_arguments(types, arguments, method))
    at = parse_block_tag(block)
    request = {"to": parse_address(address), "data": "0x" + data.hex()}
    if sender is not None:
        request["from"] = resolve_address(sender)
    verify_results(results)
    output = bytes.fromhex(client.request("eth_call", request, at)[2:])
    if results and not output:  # only then: precompiles answer, and have no code
        verify_contract(session, shard, request["to"], at)
    if not results:
        values: list[Any] = ["0x" + output.hex()]
    else:
        values = decode_results(results, output)
    if as_json:
        print_json({"result": values, "raw": "0x" + output.hex()})
    else:
        for found in values:
            click.echo(format_value(found))
    return 0


@contract.command()
@click.argument("address")
@click.argument("signature")
@click.argument("arguments", nargs=-1)
@click.option("--shard", default=0, show_default=True, help="Shard of the contract.")
@click.option(
    "--from", "sender", default="0", show_default=True, help="Development account number or address."
)
@click.option("--value", default="0", help="Ether sent along.")
@network_option
def send(
    *,
    address: str,
    signature: str,
    arguments: tuple[str, ...],
    shard: int,
    sender: str,
    value: str,
    name: str,
    as_json: bool,
) -> int:
    """Send a transaction that calls SIGNATURE, and wait for it."""
    session = Session(name)
    client = session.get_client(shard)
    method, types, _ = parse_signature(signature)
    data = encode_call(method, types, encode_arguments(types, arguments, method))
    to = parse_address(address)
    verify_contract(session, shard, to)
    raw = sign_transaction(
        client,
        shard=shard,
        sender=resolve_account(session, sender),
        to=to,
        value=parse_wei(value),
        data=data,
    )
    tx_hash = send_raw(client, raw)
    receipt = wait_for_receipt(session, shard, tx_hash, Patience())
    if as_json:
        print_json({"transaction": tx_hash, "receipt": receipt})
    else:
        click.echo(tx_hash)
        state = "succeeded" if receipt["status"] == "0x1" else "reverted"
        say(
            f"{state} in block {int(receipt['blockNumber'], 16)} of shard {shard}, {int(receipt['gasUsed'], 16):,} gas"
        )
    return 0 if receipt["status"] == "0x1" else EXIT_REJECTED
