"""Measures what a node's operations cost on this machine, one by one, with the code and the data of real networks.

Signatures, envelopes, execution and the disk are measured by themselves. What grows with crosslinks, links, receipts and
shards is measured on submissions, blocks and states of small networks that run for it, and told apart by least squares.
Times are of this process's processors, so that what else the machine does is not counted; of several rounds the fastest counts.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from crosslink.beacon import BeaconMachine
from crosslink.ledger import build_beacon_ref
from crosslink.state import BeaconState, CrosslinkFacts, apply_crosslinks, build_genesis_state
from crosslink.validity import check_bodies, verify_position
from node.bench.projection import fit
from node.bench.report import describe_cpu
from node.executor import build_native_env
from node.genesis_alloc import build_alloc, encode_alloc
from node.load.keys import Account, Draft, Signer, derive_account
from node.load.workload import encode_gateway_transfer
from node.scale.costs import Costs
from node.scale.network import Plan, build_genesis
from node.scale.process import ScaleProcess
from node.scale.world import World
from shards.beacon_blocks import decode_beacon_body
from shards.bundles import verify_bundle
from shards.policy import BlockContext, compute_env, compute_initial_base_fees
from shardyard import _native
from shardyard import effects as fx
from shardyard import events as ev
from shardyard.blocks import BeaconRef, Block, compute_body_hash
from shardyard.crosslinks import CrosslinkSubmission
from shardyard.genesis import Genesis, ShardGenesis
from shardyard.ids import BEACON, GATEWAY, Hash32, ShardId, compute_chain_id
from shardyard.keys import NodeKey, verify_node_signature
from shardyard.messages import Certificates, Message, SubmitCrosslink, Votes, decode_message, encode_message
from shardyard.preset import get_preset
from shardyard.quorum import encode_bitmap

ROUNDS: Final = 5
SENDERS: Final = 200
TRANSACTIONS: Final = 2000
BATCHES: Final = (1, 4, 16, 64)
SAMPLES: Final = (
    Plan(shards=2, tps_per_shard=40, cross=0.5),
    Plan(shards=12, tps_per_shard=10, cross=1.0),
    Plan(shards=12, tps_per_shard=120, cross=1.0),
    Plan(shards=40, tps_per_shard=30, cross=1.0),
)
"""Networks whose submissions, blocks and states are measured: few and many links, few and many receipts a link."""
STATE_SHARDS: Final = (16, 64, 256)
"""States without links: what is moved on and hashed for every shard, whatever happens."""
_UNMEASURED: Final = Costs(
    machine="",
    **{field.name: field.type(1) for field in msgspec.structs.fields(Costs) if field.name != "machine"},
)
"""Of the networks that only make what is measured."""


def measure_costs(progress: Callable[[str], None] = lambda _: None) -> Costs:
    """Return what operations cost here; ``progress`` is told what is measured. Takes some ten seconds."""
    progress("signatures")
    found = _measure_signatures()
    progress("envelopes")
    found |= _measure_envelopes()
    progress("execution")
    found |= _measure_execution()
    progress("disk")
    found["sync"] = _measure_sync()
    progress("beacon")
    worlds = [_run_sample(plan) for plan in SAMPLES]
    found |= _measure_codec(worlds)
    histories = [_replay(world) for world in worlds]
    found |= _measure_crosslinks(worlds, histories)
    found |= _measure_blocks(worlds, histories)
    found["handle"] = median(_STEPS) / 1000
    fields = {field.name: field.type for field in msgspec.structs.fields(Costs) if field.name != "machine"}
    values = {
        name: max(1, round(found[name])) if kind is int else round(found[name], 4)
        for name, kind in fields.items()
    }
    return Costs(machine=f"{describe_cpu()}, {os.cpu_count()} cores", **values)  # type: ignore[arg-type]


def _time(work: Callable[[], object], repeat: int = 1) -> float:
    """Return the microseconds of processor time that ``work`` takes, of the fastest of several rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time_ns()
        for _ in range(repeat):
            work()
        best = min(best, (time.process_time_ns() - started) / repeat)
    return best / 1000


def _fit_line(sizes: Sequence[int], times: Sequence[float]) -> tuple[float, float]:
    """Return what is always there and what each one adds."""
    base, each = fit([(1.0, float(size)) for size in sizes], times)
    return base, each


def _measure_signatures() -> dict[str, float]:
    secrets = [_native.bls_secret_key(bytes([index]) * 32) for index in range(max(BATCHES))]
    message = bytes(32)
    keys = _native.BlsKeySet(
        [_native.bls_public_key(secret) for secret in secrets],
        [_native.bls_prove_possession(secret) for secret in secrets],
    )
    signatures = _native.bls_sign_many(secrets, message)
    items = [(index, message, signature) for index, signature in enumerate(signatures)]

    def verify_batch(size: int) -> float:
        return _time(lambda: keys.verify_votes(items[:size]))

    batch, vote = _fit_line(BATCHES, [verify_batch(size) for size in BATCHES])
    times = []
    for size in BATCHES:
        bitmap = encode_bitmap(range(size), len(secrets))
        signature = _native.bls_aggregate(signatures[:size])
        if not keys.verify(bitmap, message, signature):
            raise AssertionError("an honest aggregate does not verify")
        times.append(_time(partial(keys.verify, bitmap, message, signature)))
    certificate, signer = _fit_line(BATCHES, times)
    return {
        "vote_sign": _time(lambda: _native.bls_sign_many(secrets, message)) / len(secrets),
        "votes_verify": batch,
        "vote_verify": vote,
        "vote_aggregate": _time(lambda: _native.bls_aggregate(signatures)) / len(signatures),
        "certificate_verify": certificate,
        "certificate_signer": signer,
    }


def _measure_envelopes() -> dict[str, float]:
    key, message = NodeKey(bytes(32)), bytes(512)
    signature = key.sign(message)
    return {
        "envelope_sign": _time(lambda: key.sign(message), 50),
        "envelope_verify": _time(lambda: verify_node_signature(key.public_key, message, signature), 50),
    }


def _measure_execution() -> dict[str, float]:
    """Measure recovery and execution on the native core, of signed transfers in one block."""
    senders = [derive_account(1, 0, index) for index in range(SENDERS)]
    alloc = build_alloc(shard_count=2, balances={account.address: 10**24 for account in senders})
    core = _native.Core(chain_id=compute_chain_id(0), shard=0)
    root = core.init_genesis(encode_alloc(alloc))
    preset = msgspec.structs.replace(get_preset("devnet"), validators_per_shard=1)
    mock = World(Plan(shards=2, validators=1, shard_nodes=1, beacon_nodes=1), _UNMEASURED).genesis
    genesis = Genesis(
        version=1,
        name="measure",
        timestamp_ms=mock.timestamp_ms,
        preset=preset,
        validators=mock.validators,
        shards=tuple(ShardGenesis(Hash32(root), bytes(32)) for _ in range(2)),
    )
    block = genesis.build_shard_block(ShardId(0))
    core.set_base(block.hash, 0)
    context = BlockContext(
        1,
        genesis.timestamp_ms + 1000,
        0,
        block.header.shard_content.beacon_ref,
        compute_initial_base_fees(genesis),
    )
    env = compute_env(genesis, block.header, context)
    staying = _execute(core, env, senders, (21_000, senders[0].address, b""))
    call = encode_gateway_transfer(1, senders[0].address)
    leaving = _execute(core, env, senders, (200_000, GATEWAY, call))
    return {
        "recover": min(staying[0], leaving[0]),
        "execute": staying[1],
        "deliver": staying[1],  # it credits an account, as a transfer does
        "gas": staying[2],
        "tx_bytes": staying[3],
        "execute_cross": leaving[1],
        "gas_cross": leaving[2],
        "tx_cross_bytes": leaving[3],
    }


def _execute(
    core: _native.Core, env: fx.EnvSpec, senders: Sequence[Account], kind: tuple[int, bytes, bytes]
) -> tuple[float, float, float, float]:
    """Return microseconds of recovery and of execution, gas and bytes, of one transaction."""
    gas, to, data = kind
    each = TRANSACTIONS // len(senders)
    drafts = [
        Draft(account, nonce, to, 1, gas, 50 * 10**9, 10**9, data)
        for account in senders
        for nonce in range(each)
    ]
    signed = Signer(0).sign_all(drafts)
    offsets = (0, *signed.ends)
    started = time.process_time_ns()
    batch = core.prepare(signed.raw, offsets)
    recovery = (time.process_time_ns() - started) / 1000  # once: senders are remembered
    native = build_native_env(env)
    result = core.execute(env.parent_hash, batch, native, "build", ())
    count = len(result.included) // 4
    if count != len(drafts):
        raise AssertionError(f"got {count} of {len(drafts)} transactions included: {result.skipped[:1]}")
    execution = _time(lambda: core.execute(env.parent_hash, batch, native, "build", ()))
    return recovery / count, execution / count, result.gas_used / count, len(signed.raw) / count


def _measure_sync() -> float:
    """Return how long a small write takes to be on disk where data of nodes is: the median, on the clock."""
    times = []
    with tempfile.NamedTemporaryFile(dir=Path.cwd() if os.access(Path.cwd(), os.W_OK) else None) as file:
        for _ in range(40):
            os.write(file.fileno(), bytes(2048))
            started = time.perf_counter_ns()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter_ns() - started) / 1000)
    return median(times)


_STEPS: list[int] = []


class _TimedProcess(ScaleProcess):
    """Times the steps that are consensus alone."""

    def ask(self, event: ev.Event, now_ms: int) -> list[fx.Effect]:
        """Give the machine one event."""
        started = time.process_time_ns()
        effects = super().ask(event, now_ms)
        if isinstance(event, ev.MessageReceived) and isinstance(event.message, Votes | Certificates):
            _STEPS.append(time.process_time_ns() - started)
        return effects


def _run_sample(plan: Plan) -> World:
    _STEPS.clear()
    small = msgspec.structs.replace(
        plan, validators=4, shard_nodes=2, beacon_committee=4, beacon_nodes=2, seconds=8.0, regions=""
    )
    world = World(small, _UNMEASURED, _TimedProcess)
    world.run()
    return world


def _get_beacon(world: World) -> BeaconMachine:
    machine = next(process.machine for process in world.processes.values() if process.chain == BEACON)
    assert isinstance(machine, BeaconMachine), "the beacon's process runs the beacon"
    return machine


def _find_submissions(world: World, count: int = 4) -> list[CrosslinkSubmission]:
    """Return submissions of the last final beacon blocks that carry any."""
    beacon, found = _get_beacon(world), []
    for height in range(beacon.engine.final_block.header.height, 0, -1):
        block = beacon.engine.get_final_block(height)
        assert block is not None, "a network of seconds keeps all its blocks"
        for crosslink in decode_beacon_body(world.genesis, block).crosslinks:
            submission = beacon.get_submission(crosslink.hash)
            if submission is not None:
                found.append(submission)
            if len(found) == count:
                return found
    return found


def _measure_codec(worlds: Sequence[World]) -> dict[str, float]:
    """Measure structured messages by what the beacon is offered, and blobs by the body of a full block."""
    messages: list[Message] = [
        SubmitCrosslink(submission) for world in worlds for submission in _find_submissions(world)
    ]
    encoded = [encode_message(message) for message in messages]
    kib = sum(len(data) for data in encoded) / 1024
    blob = bytes(1 << 20)

    def hash_blob() -> None:
        compute_body_hash(blob)
        compute_body_hash(b"")  # the last two are remembered
        compute_body_hash(b"\x00")

    return {
        "decode_kib": _time(lambda: [decode_message(data) for data in encoded]) / kib,
        "encode_kib": _time(lambda: [encode_message(message) for message in messages]) / kib,
        "blob_kib": (_time(hash_blob) + _time(lambda: bytearray(blob))) / 1024,
    }


def _measure_crosslinks(worlds: Sequence[World], histories: Sequence["_History"]) -> dict[str, float]:
    rows, times, placing, bundles = [], [], [], []
    for world in worlds:
        for submission in _find_submissions(world):
            receipts = sum(len(outbox) for outbox in submission.outboxes)
            rows.append((1.0, float(len(submission.crosslink.links)), float(receipts)))
            checked = check_bodies(world.genesis, submission)
            times.append(_time(lambda item=submission, at=world: check_bodies(at.genesis, item)))  # type: ignore[misc]
            for link, bundle in zip(submission.crosslink.links, checked.bundles, strict=True):
                bundles.append(_time(lambda a=link, b=bundle: verify_bundle(a, b.receipts)) / link.count)  # type: ignore[misc]
    base, link_us, receipt_us = fit(rows, times)
    for world, history in zip(worlds, histories, strict=True):
        placing += _place(world, history)
    return {
        "crosslink_check": base,
        "link_check": link_us,
        "receipt_check": receipt_us,
        "receipt_verify": median(bundles),
        "place": median(placing),
    }


class _History(msgspec.Struct):
    """The last final beacon block of a network with the state before it, as its blocks give them."""

    state: BeaconState
    facts: list[CrosslinkFacts]
    block: Block
    refs: dict[int, BeaconRef]


def _replay(world: World) -> _History:
    """Go through the beacon's final blocks again, up to the last one that carries crosslinks."""
    beacon = _get_beacon(world)
    state = build_genesis_state(world.genesis)
    refs = {0: build_beacon_ref(world.genesis.beacon_block)}
    found: _History | None = None
    for height in range(1, beacon.engine.final_block.header.height + 1):
        block = beacon.engine.get_final_block(height)
        assert block is not None, "a network of seconds keeps all its blocks"
        facts: list[CrosslinkFacts] = []
        for crosslink in decode_beacon_body(world.genesis, block).crosslinks:
            submission = beacon.get_submission(crosslink.hash)
            assert submission is not None, "a network of seconds keeps all its submissions"
            facts.append(check_bodies(world.genesis, submission).facts)
        if facts:
            found = _History(state, facts, block, dict(refs))
        state = apply_crosslinks(state, facts)
        refs[height] = build_beacon_ref(block)
    assert found is not None, "a network of seconds has crosslinks"
    return found


def _place(world: World, history: _History) -> list[float]:
    """Return the microseconds of placing each crosslink of a block."""
    genesis, state = world.genesis, history.state
    return [
        _time(lambda item=item: verify_position(genesis, state, item, history.refs.get))  # type: ignore[misc]
        for item in history.facts[:4]
    ]


def _measure_blocks(worlds: Sequence[World], histories: Sequence[_History]) -> dict[str, float]:
    """Measure reading a beacon block's body, and moving the state on and hashing it."""
    bodies, reads, states, moves = [], [], [], []
    for world, history in zip(worlds, histories, strict=True):
        shards, links = world.plan.shards, sum(len(item.links) for item in history.facts)
        bodies.append((float(len(history.facts)), float(links)))
        reads.append(_time(lambda a=world, b=history: decode_beacon_body(a.genesis, b.block), 4))  # type: ignore[misc]
        states.append((float(shards), float(shards**2), float(links)))
        moves.append(_time(lambda a=history: apply_crosslinks(a.state, a.facts).compute_root(), 4))  # type: ignore[misc]
    for shards in STATE_SHARDS:
        state = build_genesis_state(build_genesis(Plan(shards=shards, validators=1)))
        states.append((float(shards), float(shards**2), 0.0))
        moves.append(_time(lambda a=state: apply_crosslinks(a, []).compute_root()))  # type: ignore[misc]
    body, body_link = fit(bodies, reads)
    entry, cell, state_link = fit(states, moves)
    return {
        "body_read": body,
        "body_link": body_link,
        "state_entry": entry,
        "state_cell": cell,
        "state_link": state_link,
    }
