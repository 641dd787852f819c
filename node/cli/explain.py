"""``explain``: the story of a transaction in plain words, hop by hop, with the time each step took."""

import time
from typing import Any

import rich_click as click

from node.addresses import to_checksum
from node.cli.journey import Hop, Journey, trace_journey
from node.cli.output import format_ether, network_option, print_json, say
from node.cli.root import EXIT_REJECTED
from node.cli.session import Session
from node.cli.tx import find_shard
from node.cli.wallet import GATEWAY_HEX
from node.dev_accounts import DEV_ACCOUNTS

_KIND_WORDS = {
    "CALL": "a call of",
    "TRANSFER": "a transfer to",
    "RESULT": "the answer to",
    "BOUNCE": "the message comes back to",
}


@click.command()
@click.argument("tx_hash")
@network_option
def explain(*, tx_hash: str, name: str, as_json: bool) -> int:
    """Tell the story of the transaction TX_HASH in plain words."""
    session = Session(name)
    shard = find_shard(session, tx_hash)
    client = session.get_client(shard)
    journey = trace_journey(session, shard, tx_hash)
    receipt = client.request("eth_getTransactionReceipt", tx_hash)
    transaction = client.request("eth_getTransactionByHash", tx_hash)
    if as_json:
        print_json(
            {
                "transaction": transaction,
                "receipt": receipt,
                "finality": journey.transaction,
                "hops": journey.to_json(),
            }
        )
        return 0
    for line in tell(shard, transaction, receipt, journey):
        click.echo(line)
    if receipt is None:
        say(f"try again in a moment, or: shardyard tx wait {tx_hash}{session.name_flag}")
        return 0
    return 0 if receipt["status"] == "0x1" else EXIT_REJECTED


def tell(
    shard: int, transaction: dict[str, Any], receipt: dict[str, Any] | None, journey: Journey
) -> list[str]:
    """Return the story, a line per step."""
    value = format_ether(int(transaction["value"], 16))
    to = _name(transaction["to"]) if transaction["to"] else "a new contract"
    lines = [
        f"{_name(transaction['from'])} sent {value} ether to {to} on shard {shard} (nonce {int(transaction['nonce'], 16)})."
    ]
    if receipt is None:
        return [*lines, "It waits in the mempool: no block has it yet."]
    lines.append(_tell_outcome(shard, receipt, journey))
    start_ms = (journey.transaction or {}).get("timestampMs", 0)
    for hop in journey.hops:
        lines.extend(_tell_hop(hop, start_ms))
    if journey.hops:
        if journey.is_done:
            end_ms = max(hop.delivered["timestampMs"] for hop in journey.hops if hop.delivered)
            lines.append(
                f"Everything is done and beacon-final; the last effect came {_seconds(end_ms - start_ms)} after the start."
            )
        else:
            lines.append(
                "It is not over yet: messages are still on their way. Nothing on the way can be lost."
            )
    return lines


def _tell_outcome(shard: int, receipt: dict[str, Any], journey: Journey) -> str:
    word = (
        "It succeeded"
        if receipt["status"] == "0x1"
        else "It was reverted: nothing changed but the fee was paid"
    )
    fee = int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
    finality = journey.transaction or {}
    stamp = finality.get("timestampMs")
    when = time.strftime(" at %H:%M:%S UTC", time.gmtime(stamp / 1000)) if stamp else ""
    known = (
        "; the beacon has it, so it stays for ever"
        if finality.get("stage") == "beacon-final"
        else "; the beacon has it soon"
    )
    line = (
        f"{word}, in block {int(receipt['blockNumber'], 16)} of shard {shard}{when}, "
        f"{int(receipt['gasUsed'], 16):,} gas for {format_ether(fee)} ether{known}."
    )
    if receipt.get("contractAddress"):
        line += f" It created the contract {_name(receipt['contractAddress'])}."
    return line


def _tell_hop(hop: Hop, start_ms: int) -> list[str]:
    indent = "  " * (hop.depth + 1)
    ether = f" carrying {format_ether(hop.value)} ether" if hop.value else ""
    words = _KIND_WORDS.get(hop.kind, hop.kind)
    lines = [
        f"{indent}{hop.id[:14]}…: {words} {_name(hop.target)} on shard {hop.dst}, from shard {hop.src}{ether}."
    ]
    if hop.reason:
        lines.append(f"{indent}  because: {hop.reason}")
    if hop.emitted is not None:
        after = _seconds(hop.emitted["timestampMs"] - start_ms)
        block = f"block {hop.emitted['blockNumber']} of shard {hop.src}"
        lines.append(f"{indent}  +{after}: emitted in {block}")
    if hop.delivered is not None:
        after = _seconds(hop.delivered["timestampMs"] - start_ms)
        word = "executed" if hop.delivered["status"] else "failed there and was rolled back"
        gas = int(hop.delivered["gasUsed"], 16)
        final = ", beacon-final" if hop.delivered["beaconFinal"] else ""
        block = f"block {hop.delivered['blockNumber']} of shard {hop.dst}"
        lines.append(f"{indent}  +{after}: {word} in {block}, {gas:,} gas{final}")
    elif hop.emitted is not None and hop.emitted["beaconFinal"]:
        lines.append(f"{indent}  the beacon has ordered it; shard {hop.dst} takes it next")
    else:
        lines.append(f"{indent}  it waits for the beacon")
    return lines


def _name(address: str) -> str:
    """Return an address as a person knows it."""
    found = to_checksum(bytes.fromhex(address[2:]))
    if found == GATEWAY_HEX:
        return "the gateway"
    number = next((i for i, account in enumerate(DEV_ACCOUNTS) if account.checksum_address == found), None)
    return found if number is None else f"{found} (account {number})"


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:.1f} s"
