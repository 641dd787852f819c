"""Claims about the mempool: nonce order, replacement, caps, eviction, and what a block does to it."""

import pytest

from shards.mempool import Mempool, MempoolEntry, MempoolError, MempoolLimits
from shardyard.ids import Address, Hash32

GWEI = 10**9
RICH = 10**30


def make_entry(sender=1, nonce=0, *, max_fee=10 * GWEI, tip=GWEI, gas=21_000, size=100, value=0, salt=0):
    identity = (sender << 160) | (nonce << 96) | (salt << 64) | (max_fee & ((1 << 60) - 1))
    return MempoolEntry(
        hash=Hash32(identity.to_bytes(32, "big")),
        sender=Address(sender.to_bytes(20, "big")),
        nonce=nonce,
        gas_limit=gas,
        max_fee=max_fee,
        tip=tip,
        cost=value + gas * max_fee,
        raw=bytes((sender % 256,)) * size,
    )


def make_pool(**limits):
    return Mempool(MempoolLimits(**limits))


def add(pool, entry, nonce=0, balance=RICH):
    return pool.add(entry, nonce, balance)


def select(pool, *, base_fee=GWEI, gas=10**9, size=10**7, ancestors=()):
    return pool.select(base_fee, gas, size, ancestors)


def test_transactions_of_a_sender_are_offered_in_nonce_order():
    pool = make_pool()
    for nonce in (2, 0, 1):
        add(pool, make_entry(nonce=nonce, tip=GWEI * (nonce + 1)))
    raw, ends, hashes = select(pool)
    assert [pool.get(tx_hash).nonce for tx_hash in hashes] == [0, 1, 2]
    assert ends == (100, 200, 300)
    assert len(raw) == 300


def test_better_tips_come_first_and_equal_tips_in_order_of_arrival():
    pool = make_pool()
    for sender, tip in ((1, 1), (2, 3), (3, 3), (4, 2)):
        add(pool, make_entry(sender=sender, tip=tip * GWEI))
    hashes = select(pool)[2]
    assert [pool.get(tx_hash).sender[-1] for tx_hash in hashes] == [2, 3, 4, 1]


def test_effective_tip_is_bounded_by_what_the_base_fee_leaves():
    pool = make_pool()
    add(pool, make_entry(sender=1, max_fee=2 * GWEI, tip=2 * GWEI))
    add(pool, make_entry(sender=2, max_fee=9 * GWEI, tip=GWEI + 1))
    hashes = select(pool, base_fee=GWEI)[2]
    assert [pool.get(tx_hash).sender[-1] for tx_hash in hashes] == [2, 1]


def test_a_fee_below_the_base_fee_blocks_the_senders_later_nonces():
    pool = make_pool()
    add(pool, make_entry(nonce=0, max_fee=GWEI))
    add(pool, make_entry(nonce=1, max_fee=10 * GWEI))
    assert select(pool, base_fee=2 * GWEI)[2] == ()


def test_a_gap_keeps_what_follows_back_until_it_is_filled():
    pool = make_pool()
    add(pool, make_entry(nonce=1))
    assert select(pool)[2] == ()
    assert pool.get_status() == (0, 1)
    add(pool, make_entry(nonce=0))
    assert len(select(pool)[2]) == 2
    assert pool.get_status() == (2, 0)
    assert pool.get_next_nonce(make_entry().sender, 0) == 2


@pytest.mark.parametrize(
    ("entry", "account_nonce", "balance", "reason"),
    [
        (make_entry(nonce=3), 4, RICH, "nonce too low"),
        (make_entry(nonce=200), 0, RICH, "nonce too high"),
        (make_entry(value=10), 0, 5, "insufficient funds for gas * price + value"),
        (make_entry(gas=10**10), 0, RICH, "exceeds block gas limit"),
        (make_entry(max_fee=1, tip=1), 0, RICH, "transaction underpriced"),
    ],
)
def test_refusals_use_the_words_of_geth(entry, account_nonce, balance, reason):
    pool = make_pool(min_fee=7)
    with pytest.raises(MempoolError, match="^" + reason.replace("*", r"\*").replace("+", r"\+")) as caught:
        pool.add(entry, account_nonce, balance)
    assert caught.value.reason == reason
    assert len(pool) == 0
    assert pool.get_senders() == ()


def test_the_same_transaction_twice_is_already_known():
    pool = make_pool()
    add(pool, make_entry())
    with pytest.raises(MempoolError, match="already known"):
        add(pool, make_entry())


def test_a_replacement_must_raise_both_fees_by_ten_percent():
    pool = make_pool()
    old = make_entry(max_fee=100 * GWEI, tip=10 * GWEI)
    add(pool, old)
    for max_fee, tip in ((109, 11), (110, 10), (200, 10)):
        with pytest.raises(MempoolError, match="replacement transaction underpriced"):
            add(pool, make_entry(max_fee=max_fee * GWEI, tip=tip * GWEI, salt=1))
    new = make_entry(max_fee=110 * GWEI, tip=11 * GWEI, salt=1)
    assert add(pool, new) == [old.hash]
    assert old.hash not in pool
    assert select(pool)[2] == (new.hash,)
    assert pool.size_bytes == 100


def test_a_replacement_may_round_the_ten_percent_down_as_wallets_do():
    pool = make_pool()
    add(pool, make_entry(max_fee=1_500_000_007, tip=15))
    with pytest.raises(MempoolError, match="replacement transaction underpriced"):
        add(pool, make_entry(max_fee=1_650_000_006, tip=16, salt=1))
    add(pool, make_entry(max_fee=1_500_000_007 * 110 // 100, tip=15 * 110 // 100, salt=1))
    with pytest.raises(MempoolError, match="replacement transaction underpriced"):
        add(pool, make_entry(max_fee=2_000_000_000, tip=16, salt=2))  # 16 * 1.1 is 17


def test_the_next_nonce_goes_on_behind_nonces_that_were_used_elsewhere():
    pool = make_pool()
    for nonce in (1, 2, 4):
        add(pool, make_entry(nonce=nonce))
    sender = make_entry().sender
    assert [pool.get_next_nonce(sender, nonce) for nonce in range(6)] == [0, 3, 3, 3, 5, 5]


def test_the_balance_must_cover_everything_a_sender_has_waiting():
    pool = make_pool()
    one = make_entry().cost
    add(pool, make_entry(nonce=0), balance=2 * one)
    add(pool, make_entry(nonce=1), balance=2 * one)
    with pytest.raises(MempoolError, match="insufficient funds"):
        add(pool, make_entry(nonce=2), balance=2 * one)
    assert len(pool) == 2


def test_a_sender_is_capped():
    pool = make_pool(max_per_sender=3)
    for nonce in range(3):
        add(pool, make_entry(nonce=nonce))
    with pytest.raises(MempoolError, match="account limit exceeded"):
        add(pool, make_entry(nonce=3))


def test_a_full_pool_evicts_the_last_of_the_cheapest_sender():
    pool = make_pool(max_transactions=3)
    add(pool, make_entry(sender=1, nonce=0, max_fee=2 * GWEI))
    tail = make_entry(sender=1, nonce=1, max_fee=50 * GWEI)
    add(pool, tail)
    add(pool, make_entry(sender=2, max_fee=20 * GWEI))
    assert add(pool, make_entry(sender=3, max_fee=30 * GWEI)) == [tail.hash]
    assert len(pool) == 3
    assert pool.get_status() == (3, 0)


def test_a_full_pool_refuses_who_pays_no_more_and_stays_as_it_was():
    pool = make_pool(max_transactions=2)
    add(pool, make_entry(sender=1, max_fee=5 * GWEI))
    add(pool, make_entry(sender=2, max_fee=6 * GWEI))
    before = select(pool)
    for entry in (make_entry(sender=3, max_fee=5 * GWEI), make_entry(sender=3, nonce=1, max_fee=90 * GWEI)):
        with pytest.raises(MempoolError, match="txpool is full"):
            add(pool, entry)
    assert select(pool) == before
    add(pool, make_entry(sender=3, max_fee=7 * GWEI))
    assert len(pool) == 2


def test_a_large_transaction_evicts_as_many_as_it_needs_or_none():
    pool = make_pool(max_bytes=400)
    for nonce in range(2):
        add(pool, make_entry(sender=1, nonce=nonce, max_fee=2 * GWEI))
    add(pool, make_entry(sender=2, max_fee=3 * GWEI))
    add(pool, make_entry(sender=4, max_fee=90 * GWEI))
    with pytest.raises(MempoolError, match="txpool is full"):
        add(pool, make_entry(sender=3, max_fee=50 * GWEI, size=350))
    assert len(pool) == 4
    assert len(add(pool, make_entry(sender=3, max_fee=50 * GWEI, size=300))) == 3
    assert pool.size_bytes == 400


def test_blocks_stay_within_gas_and_bytes():
    pool = make_pool()
    for sender in range(1, 6):
        add(pool, make_entry(sender=sender))
    assert len(select(pool, gas=50_000)[2]) == 2
    assert len(select(pool, size=350)[2]) == 3


def test_transactions_of_an_unfinal_ancestor_are_passed_over_and_offered_again_when_it_is_discarded():
    pool = make_pool()
    for nonce in range(3):
        add(pool, make_entry(nonce=nonce))
    parent = Hash32(b"p" * 32)
    pool.mark_included(parent, select(pool, gas=42_000)[2])
    assert [pool.get(tx_hash).nonce for tx_hash in select(pool, ancestors=(parent,))[2]] == [2]
    assert len(select(pool)[2]) == 3  # a block beside it may still take them
    pool.on_discarded(parent)
    assert len(select(pool, ancestors=(parent,))[2]) == 3


def test_a_final_block_removes_used_nonces_and_what_can_no_longer_be_paid():
    pool = make_pool()
    for nonce in range(4):
        add(pool, make_entry(nonce=nonce, value=10 * nonce))
    sender = make_entry().sender
    cost = make_entry(nonce=2, value=20).cost
    removed = pool.on_final(Hash32(bytes(32)), [(sender, 2, 2 * cost - 1)])
    assert len(removed) == 2
    removed = pool.on_final(Hash32(bytes(32)), [(sender, 2, cost)])
    assert [pool.get_by_nonce(sender, nonce) is not None for nonce in range(4)] == [False, False, True, False]
    assert pool.on_final(Hash32(bytes(32)), [(sender, 9, RICH)]) != []
    assert len(pool) == 0
    assert pool.size_bytes == 0
    assert pool.get_senders() == ()


def test_removing_the_middle_of_a_run_splits_it():
    pool = make_pool()
    entries = [make_entry(nonce=nonce) for nonce in range(3)]
    for entry in entries:
        add(pool, entry)
    pool.remove([entries[1].hash, Hash32(b"?" * 32)])
    assert pool.get_status() == (1, 1)
    pending, queued = pool.get_content()
    assert [entry.nonce for entry in pending[entries[0].sender]] == [0]
    assert [entry.nonce for entry in queued[entries[0].sender]] == [2]


def test_an_account_read_before_the_last_block_does_not_bring_used_nonces_back():
    pool = make_pool()
    add(pool, make_entry(nonce=5), nonce=4)
    with pytest.raises(MempoolError, match="nonce too low: next nonce 4, tx nonce 3"):
        add(pool, make_entry(nonce=3), nonce=3)


def test_a_replacement_cannot_outgrow_the_pool():
    pool = make_pool(max_bytes=300)
    add(pool, make_entry(sender=1))
    add(pool, make_entry(sender=2))
    with pytest.raises(MempoolError, match="txpool is full"):
        add(pool, make_entry(sender=1, max_fee=20 * GWEI, tip=2 * GWEI, size=201, salt=1))
    add(pool, make_entry(sender=1, max_fee=20 * GWEI, tip=2 * GWEI, size=200, salt=1))
    assert pool.size_bytes == 300
