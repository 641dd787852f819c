"""A small honest world for tests: shards that make blocks, a beacon ledger that orders them, signatures by keyed tags.

``ShardModel`` follows the rules by itself (seqs, X5, supply), so that a test plants exactly one lie and sees it refused.
"""

import hashlib
from dataclasses import dataclass, field

import msgspec

from crosslink.availability import BodyStore
from crosslink.ledger import Ledger
from crosslink.validity import check_submission
from shardyard.blocks import (
    EMPTY_JUSTIFICATION,
    BeaconRef,
    Block,
    BlockKind,
    CertifiedHeader,
    FinalityProof,
    Header,
    Justification,
    compute_body_hash,
)
from shardyard.codec import encode
from shardyard.consensus.votes import Vote, VoteKind, build_certificate, compute_vote_message
from shardyard.crosslinks import Crosslink, CrosslinkSubmission
from shardyard.errors import ShardyardError
from shardyard.genesis import Genesis, ShardGenesis
from shardyard.ids import BEACON, ZERO_HASH
from shardyard.preset import get_preset
from shardyard.quorum import decode_bitmap
from shardyard.receipts import (
    Origin,
    Receipt,
    ReceiptKind,
    compute_delivery_gas,
    compute_escrow,
    compute_link_summaries,
    compute_outbox_root,
    count_deliveries,
)
from shardyard.validators import Validator

ETHER = 10**18
SHARD_SUPPLY = 1000 * ETHER


class TagCrypto:
    """Signatures are hashes of key and message: quick, deterministic, and wrong for any other message."""

    def sign(self, public_key, message):
        return hashlib.shake_256(public_key + message).digest(96)

    def aggregate(self, signatures):
        return hashlib.shake_256(b"".join(sorted(signatures))).digest(96)

    def verify_aggregate(self, committee, bitmap, message, signature):
        signers = decode_bitmap(bitmap, len(committee))
        tags = [self.sign(committee.validators[index].public_key, message) for index in signers]
        return self.aggregate(tags) == signature

    def verify_votes(self, committee, items):
        return [self.sign(committee.validators[index].public_key, msg) == sig for index, msg, sig in items]


def build_genesis(shard_count=3, **changes):
    preset = msgspec.structs.replace(get_preset("test"), **changes)
    size = preset.validators_per_shard
    validators = tuple(
        Validator(
            public_key=hashlib.shake_256(b"key%d" % index).digest(48),
            possession_proof=bytes(96),
            stake=100,
            reward=index.to_bytes(20, "big"),
        )
        for index in range(shard_count * size)
    )
    shards = tuple(
        ShardGenesis(state_root=bytes([shard + 1]) * 32, supply=SHARD_SUPPLY.to_bytes(32, "big"))
        for shard in range(shard_count)
    )
    return Genesis(
        version=1, name="test", timestamp_ms=1000, preset=preset, validators=validators, shards=shards
    )


def certify(genesis, crypto, chain, kind, slot, block_hash, signers=None):
    committee = genesis.committees[chain]
    message = compute_vote_message(genesis.get_domain(chain), kind, slot, block_hash)
    indices = range(len(committee)) if signers is None else signers
    votes = [
        Vote(kind, slot, block_hash, index, crypto.sign(committee.validators[index].public_key, message))
        for index in indices
    ]
    return build_certificate(crypto, committee, votes)


def prove(genesis, crypto, block_header, justification, signers=None):
    chain, slot, key = block_header.shard, block_header.slot, block_header.hash
    return FinalityProof(
        path=(CertifiedHeader(block_header, justification),),
        notarization=certify(genesis, crypto, chain, VoteKind.NOTAR, slot, key),
        finalization=certify(genesis, crypto, chain, VoteKind.FINAL, slot, key, signers),
    )


def justify(genesis, crypto, parent):
    if parent.slot == 0:
        return EMPTY_JUSTIFICATION
    notarization = certify(genesis, crypto, parent.shard, VoteKind.NOTAR, parent.slot, parent.hash)
    return Justification(notarization=notarization, skips=())


@dataclass
class MadeBlock:
    header: Header
    justification: Justification
    outbox: tuple[bytes, ...]


@dataclass
class Send:
    """What a test wants emitted; the model fills in the rest."""

    dst: int
    value: int = 0
    kind: ReceiptKind = ReceiptKind.TRANSFER
    gas_limit: int = 0
    gas_price: int = 0
    reply_gas: int = 0
    changes: dict = field(default_factory=dict)


class ShardModel:
    def __init__(self, genesis, crypto, shard):
        self.genesis, self.crypto, self.shard = genesis, crypto, shard
        self.head = genesis.build_shard_block(shard).header
        self.last_crosslink = ZERO_HASH
        self.last_seqs = dict.fromkeys(range(genesis.shard_count), 0)
        self.balance = SHARD_SUPPLY
        self.inbox = []  # (beacon height, receipt) in order
        self.pending = []  # blocks no crosslink covers yet
        self.count = 0
        self.burnt_before = 0  # up to the last crosslink

    def build_receipt(self, send):
        self.last_seqs[send.dst] += 1
        self.count += 1
        is_reply = send.kind in (ReceiptKind.RESULT, ReceiptKind.BOUNCE)
        receipt = Receipt(
            version=1,
            kind=send.kind,
            src=self.shard,
            dst=send.dst,
            seq=self.last_seqs[send.dst],
            id=hashlib.sha256(b"%d/%d" % (self.shard, self.count)).digest(),
            origin=Origin(tx_hash=bytes(32), initiator=bytes(20), depth=0),
            parent_id=b"\x01" * 32 if is_reply else ZERO_HASH,
            sender=bytes(20),
            target=b"\x02" * 20,
            value=send.value.to_bytes(32, "big"),
            gas_limit=send.gas_limit,
            gas_price=send.gas_price,
            reply_gas=send.reply_gas,
            refund_to=bytes(20),
            deadline=0,
            payload=b"",
        )
        return msgspec.structs.replace(receipt, **send.changes)

    def make_block(self, sends=(), beacon_ref=None, burnt=0, **changes):
        """Make the next block: consume by X5, emit ``sends``; ``changes`` overwrite fields of its content."""
        before = self.head.shard_content
        ref = beacon_ref or before.beacon_ref
        readable = [receipt for height, receipt in self.inbox if height <= ref.height]
        readable = readable[before.inbox_position :]
        gas = [compute_delivery_gas(receipt) for receipt in readable]
        taken = count_deliveries(gas, self.genesis.preset.inbox_gas)
        self.balance += sum(compute_escrow(receipt) for receipt in readable[:taken])
        outbox = []
        for send in sends:
            receipt = self.build_receipt(send)
            self.balance -= 0 if send.changes else compute_escrow(receipt)
            outbox.append(encode(receipt))
        self.balance -= burnt
        try:
            outbox_root = compute_outbox_root(compute_link_summaries(outbox))
        except ShardyardError:  # a planted receipt that even the kernel refuses to sum up
            outbox_root = b"\x0b" * 32
        content = msgspec.structs.replace(
            before,
            beacon_ref=ref,
            state_root=hashlib.sha256(self.head.hash).digest(),
            outbox_root=outbox_root,
            delivery_count=taken,
            inbox_position=before.inbox_position + taken,
            burnt=(int.from_bytes(before.burnt, "big") + burnt).to_bytes(32, "big"),
        )
        header_changes = changes.pop("header", {})
        content = msgspec.structs.replace(content, **changes)
        justification = justify(self.genesis, self.crypto, self.head)
        slot = self.head.slot + 1
        header = Header(
            version=1,
            network=self.genesis.network,
            shard=self.shard,
            epoch=0,
            kind=BlockKind.NORMAL,
            slot=slot,
            height=self.head.height + 1,
            parent=self.head.hash,
            parent_slot=self.head.slot,
            justification_hash=justification.hash,
            timestamp_ms=self.head.timestamp_ms + 100,
            proposer=self.genesis.committees[self.shard].get_leader(slot),
            body_hash=compute_body_hash(b""),
            content=content,
        )
        header = msgspec.structs.replace(header, **header_changes)
        made = MadeBlock(header=header, justification=justification, outbox=tuple(outbox))
        self.head = header
        self.pending.append(made)
        return made

    def build_submission(self, blocks=None, **changes):
        """Return the submission over ``blocks`` (all pending ones); ``changes`` overwrite fields of its crosslink."""
        blocks = list(self.pending if blocks is None else blocks)
        head = blocks[-1].header
        content = head.content
        try:
            links = compute_link_summaries([data for made in blocks for data in made.outbox])
        except ShardyardError:
            links = ()
        crosslink = Crosslink(
            shard=self.shard,
            epoch=0,
            parent=self.last_crosslink,
            first_height=blocks[0].header.height,
            last_height=head.height,
            head_hash=head.hash,
            state_root=content.state_root,
            links=links,
            inbox_position=content.inbox_position,
            burnt=max(0, int.from_bytes(content.burnt, "big") - self.burnt_before).to_bytes(32, "big"),
            congestion=0,
            base_fee=content.base_fee,
        )
        return CrosslinkSubmission(
            crosslink=msgspec.structs.replace(crosslink, **changes),
            headers=tuple(made.header for made in blocks),
            outboxes=tuple(made.outbox for made in blocks),
            proof=prove(self.genesis, self.crypto, head, blocks[-1].justification),
        )

    def on_accepted(self, crosslink):
        """A final beacon block has ``crosslink``."""
        self.last_crosslink = crosslink.hash
        self.pending = [made for made in self.pending if made.header.height > crosslink.last_height]
        self.burnt_before += int.from_bytes(crosslink.burnt, "big")


class World:
    """Shards and a beacon ledger without consensus: every block it builds is final at once."""

    def __init__(self, shard_count=3, **preset):
        self.genesis = build_genesis(shard_count, **preset)
        self.crypto = TagCrypto()
        self.shards = [ShardModel(self.genesis, self.crypto, shard) for shard in range(shard_count)]
        self.blocks = {0: self.genesis.beacon_block}
        self.bodies = BodyStore()
        by_hash = self._get_block
        self.ledger = Ledger(self.genesis, self.crypto, self.bodies, by_hash, self.blocks.get)

    def _get_block(self, key):
        return next((block for block in self.blocks.values() if block.hash == key), None)

    @property
    def state(self):
        return self.ledger.final_state

    @property
    def tip_ref(self):
        block = self.ledger.final_block
        return BeaconRef(height=block.header.height, hash=block.hash, epoch=0)

    @property
    def find_ref(self):
        return self.ledger.build_find_ref(self.ledger.final_block)

    def submit(self, shard, **changes):
        submission = self.shards[shard].build_submission(**changes)
        self.bodies.add(check_submission(self.genesis, self.crypto, submission))
        return submission

    def make_beacon_block(self):
        """Include what was submitted, make it final, let destinations read it."""
        parent = self.ledger.final_block
        content, body, accepted = self.ledger.build(parent, self.state)
        block = build_beacon_block(self.genesis, self.crypto, parent, content, body)
        self.blocks[block.header.height] = block
        self.ledger.apply_final(block)
        for facts in accepted:
            crosslink = facts.crosslink
            self.shards[crosslink.shard].on_accepted(crosslink)
            checked = self.bodies.get(facts.hash)
            for bundle in checked.bundles:
                for data in bundle.receipts:
                    receipt = msgspec.msgpack.decode(data, type=Receipt)
                    self.shards[bundle.dst].inbox.append((block.header.height, receipt))
        return block


def build_beacon_block(genesis, crypto, parent, content, body, slot=None):
    justification = justify(genesis, crypto, parent.header)
    slot = parent.header.slot + 1 if slot is None else slot
    header = Header(
        version=1,
        network=genesis.network,
        shard=BEACON,
        epoch=0,
        kind=BlockKind.NORMAL,
        slot=slot,
        height=parent.header.height + 1,
        parent=parent.hash,
        parent_slot=parent.header.slot,
        justification_hash=justification.hash,
        timestamp_ms=parent.header.timestamp_ms + 100,
        proposer=genesis.committees[BEACON].get_leader(slot),
        body_hash=compute_body_hash(body),
        content=content,
    )
    return Block(header=header, justification=justification, body=body, signature=b"", beacon_proof=b"")
