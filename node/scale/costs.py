"""What the operations of a node cost: a table of microseconds, measured on a machine, kept in a file, charged as virtual time."""

from pathlib import Path

import msgspec

from shardyard.errors import ConfigError

TRY = "try: shardyard sim scale --save-costs FILE on this machine, and --costs FILE afterwards"


class CostsError(ConfigError):
    """A table of costs cannot be read or does not make sense."""


class Costs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Microseconds of one processor, for one of what the name says; gas and bytes of the transactions beside it."""

    machine: str
    """Where it was measured."""
    handle: float
    """A message, timer or completion in the machine, cryptography and what stands below not counted."""
    envelope_sign: float
    """Ed25519, one per message sent."""
    envelope_verify: float
    decode_kib: float
    """A KiB of structured message: decoded and encoded again to compare."""
    encode_kib: float
    blob_kib: float
    """A KiB of transactions within a block: copied and hashed."""
    vote_sign: float
    """BLS12-381, one key."""
    votes_verify: float
    """A batch of votes, however small; ``vote_verify`` for each of them on top."""
    vote_verify: float
    vote_aggregate: float
    certificate_verify: float
    """A certificate; ``certificate_signer`` for each of its signers on top."""
    certificate_signer: float
    recover: float
    """Sender of a signed transaction."""
    execute: float
    """A transfer, with its share of the block's commitment."""
    execute_cross: float
    """A transfer that leaves its shard through the gateway."""
    deliver: float
    """A transfer that arrives."""
    crosslink_check: float
    """A crosslink's own parts, signatures not counted; its links and receipts on top."""
    link_check: float
    receipt_check: float
    body_read: float
    """A crosslink in the body of a beacon block, decoded and hashed; its links on top."""
    body_link: float
    place: float
    """A crosslink against the state of the beacon block before it."""
    state_entry: float
    """A shard in the beacon's state: moved on and hashed; ``state_cell`` for each pair of shards and ``state_link`` on top."""
    state_cell: float
    state_link: float
    """A link that puts receipts into an inbox."""
    receipt_verify: float
    """A receipt of a bundle at its destination."""
    sync: float
    """Until a small write is on disk; nobody computes meanwhile."""
    gas: int
    """Of a transfer within its shard."""
    gas_cross: int
    tx_bytes: int
    tx_cross_bytes: int


def write_costs(costs: Costs, path: Path) -> None:
    """Write ``costs`` where ``read_costs`` finds them; raises ``CostsError``."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(costs)) + b"\n")
    except OSError as error:
        raise CostsError(
            f"costs: cannot write {path}: {error.strerror}; try: another --save-costs"
        ) from error


def read_costs(path: Path) -> Costs:
    """Return the costs in ``path``; raises ``CostsError``."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CostsError(f"costs: cannot read {path}: {error.strerror}; {TRY}") from error
    try:
        costs = msgspec.json.decode(data, type=Costs)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CostsError(f"costs: {path} is no table of costs: {error}; {TRY}") from error
    verify_costs(costs, str(path))
    return costs


def verify_costs(costs: Costs, name: str) -> None:
    """Raise ``CostsError`` unless every cost is a time that can be."""
    for field in msgspec.structs.fields(Costs):
        value = getattr(costs, field.name)
        if field.name == "machine":
            continue
        if not 0 <= value < 1e7 or (isinstance(value, int) and value == 0):
            expected = "above 0" if isinstance(value, int) else "0 to 10,000,000 us"
            raise CostsError(f"costs: {name}: {field.name}: got {value}, expected {expected}; {TRY}")
