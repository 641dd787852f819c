"""A small world for tests of shards: a genesis, keyed-tag signatures, an honest beacon chain, receipts, a toy executor.

The toy executor keeps the seam of the native core and none of its rules: a transaction is an encoded receipt that is
emitted as it is, with the next seq of its link, and every block changes the state root.
"""

import hashlib

import msgspec

from shards.inbox import BeaconFollowed
from shards.policy import BlockContext, compute_content, compute_env, compute_initial_base_fees
from shardyard import effects as fx
from shardyard._native import keccak256
from shardyard.blocks import (
    EMPTY_JUSTIFICATION,
    BeaconContent,
    BeaconRef,
    Block,
    BlockKind,
    CertifiedHeader,
    FinalityProof,
    Header,
    Justification,
    ShardBody,
    compute_body_hash,
)
from shardyard.codec import decode, encode
from shardyard.consensus.votes import Vote, VoteKind, build_certificate, compute_vote_message
from shardyard.crosslinks import BeaconBody, Bundle, Crosslink, compute_crosslinks_root
from shardyard.events import Built, Executed, ExecutionSummary
from shardyard.genesis import Genesis, ShardGenesis
from shardyard.hashing import hash_tagged
from shardyard.ids import ZERO_ADDRESS, ZERO_HASH, Slot
from shardyard.merkle import compute_root
from shardyard.preset import get_preset
from shardyard.quorum import decode_bitmap
from shardyard.receipts import (
    TRANSFER_GAS,
    Origin,
    Receipt,
    ReceiptKind,
    compute_delivery_gas,
    compute_link_summaries,
    compute_outbox_root,
    decode_receipt,
)
from shardyard.validators import Validator

ETHER = 10**18
SUPPLY = 1000 * ETHER
GENESIS_MS = 1_700_000_000_000


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
        return [self.sign(committee.validators[i].public_key, message) == tag for i, message, tag in items]


CRYPTO = TagCrypto()


def build_genesis(shard_count=2, state_root=None, **changes):
    preset = msgspec.structs.replace(get_preset("test"), **changes)
    validators = tuple(
        Validator(
            public_key=hashlib.shake_256(b"key %d" % index).digest(48),
            possession_proof=bytes(96),
            stake=100,
            reward=(index + 1).to_bytes(20, "big"),
        )
        for index in range(shard_count * preset.validators_per_shard)
    )
    shards = tuple(
        ShardGenesis(state_root=state_root or bytes((shard + 1,)) * 32, supply=SUPPLY.to_bytes(32, "big"))
        for shard in range(shard_count)
    )
    return Genesis(1, "world", GENESIS_MS, preset, validators, shards)


def sign_requests(genesis, shard, requests):
    """Return the votes that an obedient signer gives."""
    committee = genesis.committees[shard]
    return tuple(
        Vote(
            kind=request.kind,
            slot=request.slot,
            block_hash=request.block_hash,
            validator=request.validator,
            signature=CRYPTO.sign(committee.validators[request.validator].public_key, request.message),
        )
        for request in requests
    )


def certify(genesis, shard, kind, slot, block_hash):
    committee, domain = genesis.committees[shard], genesis.get_domain(shard)
    message = compute_vote_message(domain, kind, slot, block_hash)
    votes = [
        Vote(kind, Slot(slot), block_hash, index, CRYPTO.sign(validator.public_key, message))
        for index, validator in enumerate(committee.validators)
    ]
    return build_certificate(CRYPTO, committee, votes)


def prove(genesis, block):
    header = block.header
    return FinalityProof(
        path=(CertifiedHeader(header, block.justification),),
        notarization=certify(genesis, header.shard, VoteKind.NOTAR, header.slot, header.hash),
        finalization=certify(genesis, header.shard, VoteKind.FINAL, header.slot, header.hash),
    )


def build_block(genesis, parent, content, body, *, step_ms=1000, beacon_proof=b""):
    """Return a child of ``parent`` in the next slot, with its justification."""
    header = parent.header
    justification = EMPTY_JUSTIFICATION
    if header.height:
        notarization = certify(genesis, header.shard, VoteKind.NOTAR, header.slot, header.hash)
        justification = Justification(notarization=notarization, skips=())
    slot = Slot(header.slot + 1)
    child = Header(
        version=1,
        network=genesis.network,
        shard=header.shard,
        epoch=0,
        kind=BlockKind.NORMAL,
        slot=slot,
        height=header.height + 1,
        parent=header.hash,
        parent_slot=header.slot,
        justification_hash=justification.hash,
        timestamp_ms=header.timestamp_ms + step_ms,
        proposer=genesis.committees[header.shard].get_leader(slot),
        body_hash=compute_body_hash(body),
        content=content,
    )
    return Block(child, justification, body, signature=bytes(96), beacon_proof=beacon_proof)


def build_receipt(
    src=0, dst=1, seq=1, *, gas=100_000, value=1, payload=b"hello", kind=ReceiptKind.CALL, tx_hash=ZERO_HASH
):
    is_call = kind is ReceiptKind.CALL
    return encode(
        Receipt(
            version=1,
            kind=kind,
            src=src,
            dst=dst,
            seq=seq,
            id=hash_tagged(b"id", encode((src, dst, seq))),
            origin=Origin(tx_hash=tx_hash, initiator=ZERO_ADDRESS, depth=0),
            parent_id=ZERO_HASH,
            sender=ZERO_ADDRESS,
            target=ZERO_ADDRESS,
            value=value.to_bytes(32, "big"),
            gas_limit=gas if is_call else 0,
            gas_price=1 if is_call else 0,
            reply_gas=0,
            refund_to=ZERO_ADDRESS,
            deadline=0,
            payload=payload if is_call else b"",
        )
    )


def build_transfer(src=0, dst=1, seq=1, value=1, tx_hash=ZERO_HASH):
    return build_receipt(src, dst, seq, value=value, kind=ReceiptKind.TRANSFER, tx_hash=tx_hash)


def build_crosslink(shard, receipts=(), **changes):
    fields = {
        "shard": shard,
        "epoch": 0,
        "parent": ZERO_HASH,
        "first_height": 1,
        "last_height": 1,
        "head_hash": bytes((shard,)) * 32,
        "state_root": ZERO_HASH,
        "links": compute_link_summaries(receipts),
        "inbox_position": 0,
        "burnt": bytes(32),
        "congestion": 0,
        "base_fee": 1_000_000_000,
    }
    return Crosslink(**(fields | changes))


class BeaconChain:
    """An honest beacon whose crosslinks are whatever the test says."""

    def __init__(self, genesis):
        self.genesis = genesis
        self.blocks = [genesis.beacon_block]
        self.proofs = [None]

    def add(self, *crosslinks):
        content = BeaconContent(
            crosslinks_root=compute_crosslinks_root(crosslinks),
            crosslink_count=len(crosslinks),
            state_root=ZERO_HASH,
            registry_root=ZERO_HASH,
        )
        block = build_block(self.genesis, self.blocks[-1], content, encode(BeaconBody(tuple(crosslinks))))
        self.blocks.append(block)
        self.proofs.append(prove(self.genesis, block))
        return block, self.proofs[-1]

    def get_final(self, height):
        return (self.blocks[height], self.proofs[height]) if 0 < height < len(self.blocks) else None


def bundle_of(crosslink, receipts, dst=1):
    chosen = tuple(receipt for receipt in receipts if decode_receipt(receipt).dst == dst)
    return Bundle(crosslink=crosslink.hash, src=crosslink.shard, dst=dst, receipts=chosen)


def followed(outputs):
    return [output for output in outputs if isinstance(output, BeaconFollowed)]


def build_shard_header(genesis, parent, *, summary=None, beacon_ref=None, body=None, step_ms=1000):
    """Return an honest block on ``parent`` with its environment."""
    header = parent.header
    slot = header.slot + 1
    context = BlockContext(
        slot=slot,
        timestamp_ms=header.timestamp_ms + step_ms,
        proposer=genesis.committees[header.shard].get_leader(slot),
        beacon_ref=beacon_ref or header.shard_content.beacon_ref,
        link_base_fees=compute_initial_base_fees(genesis),
    )
    env = compute_env(genesis, header, context)
    summary = summary or EMPTY_SUMMARY
    content = compute_content(header.shard_content, env, context.beacon_ref, summary)
    body = encode(ShardBody(b"", ())) if body is None else body
    return build_block(genesis, parent, content, body, step_ms=step_ms), env


EMPTY_SUMMARY = ExecutionSummary(
    state_root=b"s" * 32,
    transactions_root=ZERO_HASH,
    transaction_count=0,
    delivery_count=0,
    outcomes_root=ZERO_HASH,
    outbox_root=ZERO_HASH,
    logs_bloom=bytes(256),
    gas_used=0,
    burnt=7,
    outbox=(),
    access_list_hash=ZERO_HASH,
)


def build_ref(block):
    return BeaconRef(height=block.header.height, hash=block.hash, epoch=0)


class ToyExecutor:
    """Executes blocks of one shard at once; ``pending`` are raw receipts that users want to send."""

    def __init__(self, genesis, shard):
        self.states = {genesis.build_shard_block(shard).hash: (genesis.shards[shard].state_root, {})}
        self.pending = []
        self.delivered = {}
        self.built = {}
        self.replayed = []
        self.base = genesis.build_shard_block(shard).hash

    def build(self, effect: fx.Build):
        chosen, size = [], 0
        for raw in self.pending:
            if size + len(raw) <= effect.max_body_bytes:
                chosen.append(raw)
                size += len(raw)
        ends, total = [], 0
        for raw in chosen:
            total += len(raw)
            ends.append(total)
        body = ShardBody(b"".join(chosen), tuple(ends))
        if effect.env.parent_hash not in self.states:
            return Built(effect.request, b"", None)
        result = self._run(effect.env, body, effect.inbox)
        self.built[effect.request] = result
        return Built(effect.request, encode(body), result[0], result[3])

    def adopt(self, effect: fx.Adopt):
        self._keep(effect.block_hash, self.built[effect.request])

    def execute(self, effect: fx.Execute):
        body = decode(effect.block.body, ShardBody, max_bytes=1 << 24)
        if effect.env.parent_hash not in self.states:
            return Executed(effect.block.hash, None, "unknown parent")
        result = self._run(effect.env, body, effect.inbox)
        if effect.access_list:
            if effect.access_list != result[3]:
                return Executed(effect.block.hash, None, "access list")
            self.replayed.append(effect.block.hash)
        self._keep(effect.block.hash, result)
        return Executed(effect.block.hash, result[0], "")

    def finalise(self, effect: fx.Finalise):
        body = decode(effect.block.body, ShardBody, max_bytes=1 << 24)
        used = {body.raw[start:end] for start, end in zip((0, *body.ends), body.ends, strict=False)}
        self.pending = [raw for raw in self.pending if raw not in used]
        self.base = effect.block.hash

    def discard(self, effect: fx.Discard):
        self.states.pop(effect.block_hash, None)

    def restore(self, block_hash):
        """Forget all states but that of the block which the machine recovered to."""
        self.states = {block_hash: self.states[block_hash]}
        self.built = {}

    def _keep(self, block_hash, result):
        summary, seqs, inbox, _ = result
        self.states[block_hash] = (summary.state_root, seqs)
        self.delivered[block_hash] = inbox

    def _run(self, env, body, inbox):
        root, seqs = self.states[env.parent_hash]
        seqs = dict(seqs)
        outbox = []
        for start, end in zip((0, *body.ends), body.ends, strict=False):
            receipt = decode_receipt(body.raw[start:end])
            seqs[receipt.dst] = seqs.get(receipt.dst, 0) + 1
            outbox.append(encode(msgspec.structs.replace(receipt, seq=seqs[receipt.dst])))
        gas = [compute_delivery_gas(decode_receipt(receipt)) for receipt in inbox]
        access_list = b"list " + hash_tagged(b"toy", encode((env, body)))
        summary = ExecutionSummary(
            state_root=hash_tagged(b"toy", encode((root, env, body, tuple(inbox)))),
            transactions_root=compute_root([body.raw]),
            transaction_count=len(body.ends),
            delivery_count=len(inbox),
            outcomes_root=ZERO_HASH,
            outbox_root=compute_outbox_root(compute_link_summaries(outbox)),
            logs_bloom=bytes(256),
            gas_used=TRANSFER_GAS * len(body.ends) + sum(gas),
            burnt=len(body.ends),
            outbox=tuple(outbox),
            access_list_hash=keccak256(access_list),
        )
        return summary, seqs, tuple(inbox), access_list
