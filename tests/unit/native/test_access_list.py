"""Block access lists: the hash is the list's, a block executes with its list on any number of threads, lies are refused."""

import pytest
from eth_utils import keccak

from shardyard import _native
from tests.unit.native.shard import ADDRESSES, GENESIS, STORER, Shard, sign, word

TRANSACTIONS = [sign(0, nonce, STORER, data=word(nonce % 3)) for nonce in range(80)] + [
    sign(1, nonce, ADDRESSES[2], value=5) for nonce in range(20)
]


def test_the_hash_is_that_of_the_list_and_no_number_of_threads_changes_it() -> None:
    results = [Shard(threads=threads).execute(GENESIS, TRANSACTIONS) for threads in (1, 2, 4)]
    assert len({result.access_list for result in results}) == 1
    assert results[0].access_list_hash == keccak(results[0].access_list)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_block_executes_with_its_list_as_without_and_with_no_other(threads: int) -> None:
    shard = Shard(threads=threads)
    built = shard.execute(GENESIS, TRANSACTIONS)
    found = shard.execute(GENESIS, TRANSACTIONS, mode="validate", access_list=built.access_list)
    assert (found.state_root, found.outcomes, found.diff) == (built.state_root, built.outcomes, built.diff)
    assert found.access_list == built.access_list
    for wrong in (b"", b"\xc0", built.access_list[:-1], built.access_list + b"\0"):
        with pytest.raises(_native.InvalidBlock, match="access list"):
            shard.execute(GENESIS, TRANSACTIONS, mode="validate", access_list=wrong)
