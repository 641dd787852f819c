"""The flood's arithmetic: what counts as final, how long it took, and what is missing or doubled."""

from node.bench.flood import Request
from node.bench.settled import Watched, check_answered, compute_rate, list_latencies
from node.bench.signed import FloodKnobs, ShardSource, SignedPlan, Token
from node.bench.stages import CpuReading
from shardyard import _native
from shardyard.ids import compute_chain_id


def build_plan(count=4, refused=()):
    hashes = b"".join(_native.keccak256(bytes([number])) for number in range(count))
    request = Request(b"", 0, count, sent=10.0, answered=10.5, accepted=count, refused=refused)
    return SignedPlan(0, hashes, [[request]])


def texts(plan, *numbers):
    return ["0x" + plan.get_hash(number).hex() for number in numbers]


def test_every_answered_transaction_must_stand_in_one_final_block():
    plan = build_plan()
    assert check_answered(plan, {1: texts(plan, 0, 1), 2: texts(plan, 2, 3)}) == (0, 0)
    assert check_answered(plan, {1: texts(plan, 0, 1), 2: texts(plan, 1, 2)}) == (1, 1)
    assert check_answered(build_plan(refused=(3,)), {1: texts(plan, 0, 1, 2)}) == (0, 0)


def test_latency_counts_from_the_moment_a_request_was_due_to_its_blocks_finality():
    plan = build_plan()
    shard = Watched(finals=[(12.0, 1), (14.0, 3)])
    blocks = {1: texts(plan, 0), 2: texts(plan, 1), 3: texts(plan, 2), 4: texts(plan, 3)}
    assert list_latencies(plan, blocks, shard, since=0.0) == [2.0, 4.0, 4.0]
    assert list_latencies(plan, blocks, shard, since=11.0) == []


def test_rate_is_counted_between_two_advances_of_finality():
    plan = build_plan()
    shard = Watched(finals=[(9.0, 1), (11.0, 2), (12.0, 3), (14.0, 5), (40.0, 6)])
    blocks = {height: texts(plan, 0, 1) for height in range(1, 7)}
    assert compute_rate(shard, blocks, 10.0, 20.0) == 2 * 3 / 3.0
    assert compute_rate(shard, blocks, 10.0, 11.5) == 0.0


def test_senders_stay_on_one_connection_with_their_nonces_in_order():
    knobs = FloodKnobs(
        "erc20", 1, 0.0, accounts=7, connections=2, batch=10, seed=3, max_fee=10**10, tip=1, threads=1
    )
    source = ShardSource(knobs, 0)
    source.token = Token(b"\x11" * 20, 60_000)
    plan = source.sign(40)
    core = _native.Core(chain_id=compute_chain_id(0), shard=0)
    seen = {}
    for number, queue in enumerate(plan.queues):
        for request in queue:
            batch = core.prepare_submissions([_native.read_submission(request.body, 1000)])
            assert batch.hashes == plan.hashes[32 * request.first : 32 * (request.first + request.count)]
            for i in range(len(batch)):
                assert batch.error(i) is None
                key = batch.senders[20 * i : 20 * i + 20]
                connection, nonce = seen.get(key, (number, 0))
                assert (connection, nonce) == (
                    number,
                    int.from_bytes(batch.nonces[8 * i : 8 * i + 8], "little"),
                )
                seen[key] = (number, nonce + 1)
    assert len(seen) == 7


def test_what_others_took_of_the_machine_is_told_apart():
    before = CpuReading({"shard-0-0": 1.0}, pool=0.5, client=0.0, machine=10.0)
    used = CpuReading({"shard-0-0": 3.0}, pool=2.0, client=0.5, machine=16.0).since(before)
    assert (used.total, used.pool, used.others) == (2.5, 1.5, 3.5)
