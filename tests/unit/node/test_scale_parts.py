"""The parts of a scaled network: processors, tables of costs, plans that cannot be run, counted transactions."""

import msgspec
import pytest

from node.scale.costs import Costs, CostsError, read_costs, write_costs
from node.scale.execution import CountedShard, encode_body
from node.scale.network import Plan, ScaleError, build_genesis
from node.scale.server import MAX_QUEUED, MicroClock, Processor
from shards.policy import verify_emission
from shardyard.blocks import ShardBody
from shardyard.codec import decode
from shardyard.effects import EnvSpec
from shardyard.ids import ShardId
from shardyard.receipts import decode_receipt

COSTS = Costs(
    machine="tests",
    **{field.name: field.type(100) for field in msgspec.structs.fields(Costs) if field.name != "machine"},
)


def test_a_processor_does_one_job_after_the_other_and_completions_first():
    clock, done = MicroClock(), []
    processor = Processor(clock)

    def job(name, cost_us):
        return lambda: ({name: cost_us}, lambda: done.append((name, clock.now_us)))

    processor.offer(job("first", 10.0))
    processor.offer(job("message", 5.0))
    processor.submit(job("completion", 7.0))
    clock.run_until(100)
    assert done == [("first", 10), ("completion", 17), ("message", 22)]
    assert processor.busy == {"first": 10.0, "completion": 7.0, "message": 5.0}


def test_a_full_queue_loses_messages_and_counts_them_but_no_completions():
    clock = MicroClock()
    processor = Processor(clock)
    done = []
    for _ in range(MAX_QUEUED + 3):
        processor.offer(lambda: ({"x": 1.0}, lambda: done.append("message")))
    processor.submit(lambda: ({"x": 1.0}, lambda: done.append("completion")))
    assert processor.dropped == 2  # one is being served
    clock.run_until(10_000)
    assert done.count("message") == MAX_QUEUED + 1
    assert done[1] == "completion"


def test_costs_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "costs.json"
    write_costs(COSTS, path)
    assert read_costs(path) == COSTS


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"handle": -1.0}, "handle: got -1"),
        ({"recover": 1e9}, "recover: got 1000000000"),
        ({"gas": 0}, "gas: got 0, expected above 0"),
        ({"handle": "fast"}, "Expected `float`"),
        ({"colour": 1}, "unknown field `colour`"),
        ({"handle": None}, "Expected `float`"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused_with_what_to_try(tmp_path, change, text):
    path = tmp_path / "costs.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(COSTS) | change))
    with pytest.raises(CostsError, match="try: ") as caught:
        read_costs(path)
    assert text in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[]", b'{"machine": "x"}', b'{"handle": NaN}'])
def test_a_file_that_is_no_table_is_refused(tmp_path, data):
    path = tmp_path / "costs.json"
    path.write_bytes(data)
    with pytest.raises(CostsError, match="is no table of costs"):
        read_costs(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CostsError, match="No such file"):
        read_costs(tmp_path / "none.json")
    with pytest.raises(CostsError, match="cannot write"):
        write_costs(COSTS, tmp_path / "none" / "costs.json")


@pytest.mark.parametrize(
    "change",
    [
        {"shards": 0},
        {"shards": 257},
        {"validators": 17},
        {"shard_nodes": 17},
        {"beacon_committee": 0},
        {"beacon_nodes": 65},
        {"cores": 0},
        {"cross": 1.01},
        {"cross": float("nan")},
        {"tps_per_shard": -1},
        {"block_time_ms": 99},
        {"seconds": 7.9},
        {"seconds": float("inf")},
        {"regions": "mars"},
    ],
)
def test_a_plan_that_cannot_be_run_says_what_was_expected(change):
    Plan().verify()
    with pytest.raises(ScaleError, match=r"^--.*: got .*, expected "):
        msgspec.structs.replace(Plan(), **change).verify()


@pytest.mark.parametrize(
    ("block_time_ms", "seconds", "blocks"),
    [(1000, 20, 6), (1000, 8, 2), (100, 0.8, 2), (100, 2, 6), (250, 2.9, 3), (300, 20, 6), (2000, 16, 2)],
)
def test_a_third_of_a_run_at_most_six_blocks_is_not_measured(block_time_ms, seconds, blocks):
    plan = msgspec.structs.replace(Plan(), block_time_ms=block_time_ms, seconds=seconds)
    plan.verify()
    assert plan.warmup_s == pytest.approx(blocks * block_time_ms / 1000)


def test_counted_transactions_are_real_offsets_and_their_messages_are_what_a_shard_may_emit():
    plan = Plan(shards=4, validators=4, cross=0.25, tps_per_shard=1000)
    genesis = build_genesis(plan)
    shard = CountedShard(genesis, ShardId(2), plan, COSTS)
    block = genesis.build_shard_block(ShardId(2))
    env = _build_env(block.hash)
    assert shard.build(msgspec.structs.replace(env, parent_hash=bytes(32)), (), 1 << 23, 0) is None
    given = shard.build(env, (), 1 << 23, 1_000_000)
    assert given.summary.transaction_count == 1000
    assert given.leaving == len(given.summary.outbox) == 250
    verify_emission(genesis, ShardId(2), given.summary)
    shard.keep(bytes(31) + b"\x01", given.standing)
    later = shard.build(msgspec.structs.replace(env, parent_hash=bytes(31) + b"\x01"), (), 1 << 23, 1_500_000)
    assert later.summary.transaction_count == 500, "what the parent included is not included again"
    receipts = [decode_receipt(data) for data in (*given.summary.outbox, *later.summary.outbox)]
    assert len({receipt.id for receipt in receipts}) == 375
    for dst in (0, 1, 3):
        numbers = [receipt.seq for receipt in receipts if receipt.dst == dst]
        assert numbers == list(range(1, len(numbers) + 1))
    body = decode(encode_body(3), ShardBody, max_bytes=100)
    assert body.ends == (1, 2, 3)
    assert len(body.raw) == 3


def test_a_block_without_room_for_users_takes_none():
    plan = Plan(shards=2, validators=4, tps_per_shard=1000)
    genesis = build_genesis(plan)
    shard = CountedShard(genesis, ShardId(0), plan, COSTS)
    env = _build_env(genesis.build_shard_block(ShardId(0)).hash)
    assert shard.build(env, (), 0, 1_000_000).summary.transaction_count == 0


def _build_env(parent):
    return EnvSpec(1, 1, 600_000_000, 10**9, bytes(20), bytes(32), parent, bytes(32), 0, 300_000_000, ())
