"""What a load run sends: determined by its seed, dense in nonces, with ids that the gateway will give."""

import pytest

from node.load.workload import MESSAGE_TAG, Knobs, Workload
from shardyard import _native
from shardyard.ids import compute_chain_id


def test_the_same_seed_sends_the_same_bytes():
    knobs = Knobs(shards=2, tps=50, cross_ratio=0.4, accounts=4, seed=9)
    first, second = Workload(knobs), Workload(knobs)
    assert first.draw(20) == second.draw(20)
    assert first.draw(5) == second.draw(5)


def test_another_seed_sends_others():
    def draw(seed):
        return {plan.tx_hash for plan in Workload(Knobs(shards=2, tps=50, accounts=4, seed=seed)).draw(10)}

    assert not draw(1) & draw(2)


def test_nonces_of_every_sender_are_dense_and_in_order():
    plans = Workload(Knobs(shards=2, tps=50, cross_ratio=0.5, accounts=3, seed=1)).draw(60)
    seen = {}
    for plan in plans:
        assert plan.nonce == seen.get((plan.shard, plan.sender), 0)
        seen[plan.shard, plan.sender] = plan.nonce + 1


def test_message_ids_count_only_what_crosses():
    plans = Workload(Knobs(shards=3, tps=50, cross_ratio=0.5, accounts=2, seed=4)).draw(60)
    sent = {}
    for plan in plans:
        assert bool(plan.message) == (plan.dst != plan.shard)
        if plan.message:
            nonce = sent.get((plan.shard, plan.sender), 0)
            sent[plan.shard, plan.sender] = nonce + 1
            parts = (compute_chain_id(plan.shard).to_bytes(32, "big"), plan.sender, nonce.to_bytes(32, "big"))
            assert plan.message == "0x" + _native.keccak256(MESSAGE_TAG + b"".join(parts)).hex()


def test_due_moments_are_evenly_spaced_over_chunks():
    workload = Workload(Knobs(shards=1, tps=10, accounts=1))
    moments = [plan.due_s for plan in workload.draw(3) + workload.draw(3)]
    assert moments == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_cross_ratio_is_kept():
    plans = Workload(Knobs(shards=4, tps=50, cross_ratio=0.3, accounts=4, seed=2)).draw(1000)
    assert 230 < sum(bool(plan.message) for plan in plans) < 370


@pytest.mark.parametrize(
    "knobs",
    [
        Knobs(shards=1, tps=10, cross_ratio=0.1),
        Knobs(shards=2, tps=10, cross_ratio=1.5),
        Knobs(shards=2, tps=0),
        Knobs(shards=2, tps=10, accounts=0),
    ],
)
def test_impossible_numbers_are_refused(knobs):
    with pytest.raises(ValueError, match="got"):
        Workload(knobs)
