"""Notices of the beacon: what people may watch, never read by a node."""

from itertools import islice
from typing import Final

from crosslink.state import BeaconState
from crosslink.validity import CheckedSubmission
from shardyard.blocks import Block
from shardyard.effects import Notice
from shardyard.errors import RemoteProtocolError
from shardyard.events import Event, MessageReceived
from shardyard.ids import BEACON
from shardyard.receipts import decode_receipt

MAX_MESSAGE_NOTICES: Final = 256
"""Messages of one crosslink that get a notice each; the crosslink's notice has the count of all."""


def describe_refusal(event: Event, error: RemoteProtocolError) -> Notice:
    """Return the notice that a peer's message was refused."""
    data: dict[str, int | str | bytes] = {"error": type(error).__name__, "reason": str(error)}
    if isinstance(event, MessageReceived):
        data["sender"] = event.sender
        data["message"] = type(event.message).__name__
    return Notice("refused", BEACON, data)


def describe_invalid(block: Block, error: RemoteProtocolError) -> Notice:
    """Return the notice that a beacon block is invalid."""
    data: dict[str, int | str | bytes] = {
        "height": block.header.height,
        "hash": block.hash,
        "proposer": block.header.proposer,
        "reason": str(error),
    }
    return Notice("beacon.invalid", BEACON, data)


def describe_block(block: Block, state: BeaconState) -> Notice:
    """Return the notice of a final beacon block with the supply at its cut (I1)."""
    table = state.get_supply()
    header = block.header
    return Notice(
        "beacon.final",
        BEACON,
        {
            "height": header.height,
            "hash": block.hash,
            "slot": header.slot,
            "timestamp_ms": header.timestamp_ms,
            "crosslinks": header.beacon_content.crosslink_count,
            "supply": str(table.total),
            "in_flight": str(sum(table.in_flight)),
            "burnt": str(sum(table.burnt)),
        },
    )


def describe_crosslink(block: Block, checked: CheckedSubmission) -> Notice:
    """Return the notice that a crosslink is in a final beacon block."""
    crosslink = checked.facts.crosslink
    return Notice(
        "crosslink.final",
        crosslink.shard,
        {
            "crosslink": checked.facts.hash,
            "first_height": crosslink.first_height,
            "last_height": crosslink.last_height,
            "head": crosslink.head_hash,
            "beacon_height": block.header.height,
            "messages": sum(link.count for link in crosslink.links),
            "inbox_position": crosslink.inbox_position,
        },
    )


def describe_messages(block: Block, checked: CheckedSubmission) -> list[Notice]:
    """Return one notice for each message that reached the stage ``beacon-final``, up to ``MAX_MESSAGE_NOTICES``."""
    encoded = (data for bundle in checked.bundles for data in bundle.receipts)
    notices = []
    for data in islice(encoded, MAX_MESSAGE_NOTICES):
        receipt = decode_receipt(data)
        notices.append(
            Notice(
                "message",
                receipt.src,
                {
                    "id": receipt.id,
                    "stage": "beacon-final",
                    "kind": receipt.kind.name,
                    "src": receipt.src,
                    "dst": receipt.dst,
                    "seq": receipt.seq,
                    "beacon_height": block.header.height,
                },
            )
        )
    return notices
