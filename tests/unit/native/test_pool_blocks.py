"""Blocks built of what a pool chose: no matter how many threads run them, and validators find them the same."""

import pytest
from eth_account import Account
from eth_utils import keccak

from shards.mempool import Mempool, MempoolLimits
from shardyard import _native
from tests.unit.native.shard import (
    ACCEPTER,
    ADDRESSES,
    BASE_FEE,
    CHAIN_ID,
    GENESIS,
    KEYS,
    STORER,
    Shard,
    encode_receipt,
    join,
    make_env,
    make_receipt,
    sign,
    word,
)

SENDERS = len(KEYS)
FIELDS = (
    "state_root",
    "outcomes_root",
    "outcomes",
    "access_list",
    "diff",
    "gas_used",
    "inbox_taken",
    "included",
    "skipped",
    "transactions_root",
)


def delegate(authority, nonce=0, to=STORER):
    return authority.sign_authorization({"chainId": CHAIN_ID, "address": to, "nonce": nonce})


def sign_all(rounds):
    """Of every sender one transaction a round: payments, calls, and delegations of strangers and of other senders."""
    for nonce in range(rounds):
        for key in range(SENDERS):
            nth = nonce * SENDERS + key
            match nth % 5:
                case 0:
                    yield sign(key, nonce, ADDRESSES[(key + 1) % SENDERS], value=1 + nth)
                case 1:
                    stranger = Account.from_key((1000 + nth).to_bytes(32, "big"))
                    yield sign(
                        key, nonce, STORER, type=4, data=word(nth), authorizationList=[delegate(stranger)]
                    )
                case 2 if nonce == rounds - 2:
                    # Takes a nonce that the authority's own last transaction needs: that one falls out of the block.
                    other = (key + 3) % SENDERS
                    signed = delegate(KEYS[other], nonce + (1 if other < key else 0))
                    yield sign(key, nonce, type=4, authorizationList=[signed])
                case _:
                    yield sign(key, nonce, STORER, data=word(nth))


def fill(shard, transactions):
    pool = Mempool(MempoolLimits())
    pool.start_at(GENESIS)
    admitted = pool.admit(shard.core, shard.core.prepare(*join(transactions)))
    assert len(pool) == len(transactions), admitted
    return pool


def test_a_pool_counts_lists_as_it_holds_them():
    """Of 23 bytes of an access list or 27 of an authorization it keeps 68 to 250."""
    shard = Shard()
    pool = Mempool(MempoolLimits(max_bytes=200_000))
    pool.start_at(GENESIS)
    accounts = [{"address": "0x" + word(number)[12:].hex(), "storageKeys": []} for number in range(2000)]
    raws = [sign(key, 0, accessList=accounts, gas=10**7) for key in range(2)]
    admitted = pool.admit(shard.core, shard.core.prepare(*join(raws)))
    assert [admitted.error(place) for place in range(2)] == [None, "txpool is full"]
    assert pool.size_bytes > 3 * len(raws[0])
    pool.remove([keccak(raws[0])])
    assert pool.size_bytes == 0


def test_a_pools_block_with_authorizations_is_the_same_on_any_number_of_threads():
    transactions = list(sign_all(12))
    results = []
    for threads in (1, 2, 4):
        shard = Shard(threads=threads)
        batch = fill(shard, transactions).select_batch(BASE_FEE, 60_000_000, 10**7)
        assert len(batch) == len(transactions)
        result = shard.core.execute(GENESIS, batch, make_env(), "build", ())
        results.append({field: getattr(result, field) for field in FIELDS})
    assert results[0] == results[1] == results[2]
    assert results[0]["skipped"] != []
    reasons = {reason.split(":")[0] for _, reason in results[0]["skipped"]}
    assert reasons == {"nonce too low"}, reasons


def test_validators_find_a_pools_block_the_same_with_and_without_its_list():
    transactions = list(sign_all(12))
    shard = Shard(threads=2)
    batch = fill(shard, transactions).select_batch(BASE_FEE, 60_000_000, 10**7)
    built = shard.core.execute(GENESIS, batch, make_env(), "build", ())
    raws = [batch.raw[start:end] for start, end in zip([0, *batch.ends], batch.ends, strict=False)]
    places = memoryview(built.included).cast("I")
    included = [raws[place] for place in places]
    assert len(included) < len(raws)
    for threads in (1, 2, 4):
        for access_list in (None, built.access_list):
            found = Shard(threads=threads).execute(
                GENESIS, included, mode="validate", access_list=access_list
            )
            assert (found.state_root, found.outcomes_root) == (built.state_root, built.outcomes_root)
            assert (found.diff, found.access_list) == (built.diff, built.access_list)


def test_a_preview_is_the_block_that_would_be_built():
    shard = Shard(threads=2)
    batch = fill(shard, list(sign_all(12))).select_batch(BASE_FEE, 60_000_000, 10**7)
    seen = shard.core.preview(GENESIS, batch, make_env())
    built = shard.core.execute(GENESIS, batch, make_env(), "build", ())
    assert [getattr(seen, field) for field in FIELDS] == [getattr(built, field) for field in FIELDS]
    with pytest.raises(_native.UnknownParent):
        shard.core.preview(b"\7" * 32, batch, make_env())


@pytest.mark.parametrize("gas_limit", [600_000, 2_000_000, 3_021_000])
def test_a_pools_block_keeps_to_the_gas_limit_with_deliveries_before_it(gas_limit):
    transactions = list(sign_all(8))
    inbox = [
        encode_receipt(make_receipt(id=word(n), target=STORER if n % 2 else ACCEPTER)) for n in range(40)
    ]
    results = []
    for threads in (1, 2, 4):
        shard = Shard(threads=threads)
        batch = fill(shard, transactions).select_batch(BASE_FEE, 60_000_000, 10**7)
        env = make_env(gas_limit=gas_limit, inbox_gas=gas_limit // 2)
        result = shard.core.execute(GENESIS, batch, env, "build", inbox)
        results.append({field: getattr(result, field) for field in FIELDS})
    assert results[0] == results[1] == results[2]
    assert 0 < results[0]["inbox_taken"] < len(inbox)
    assert 0 < len(results[0]["included"]) // 4 < len(transactions)
    assert results[0]["gas_used"] <= gas_limit
