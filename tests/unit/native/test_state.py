"""The state over forks, finality and restarts: every name keeps naming the state it named."""

import random
import threading

import msgspec
import pytest

from shardyard import _native
from tests.unit.native.shard import (
    ADDRESSES,
    GENESIS,
    RICH,
    SHARD,
    STORER,
    Shard,
    make_alloc,
    sign,
    word,
)

TARGET = b"\x99" * 20
A, B, C, D, E = (bytes([number]) * 32 for number in range(0xA1, 0xA6))


def test_siblings_have_states_of_their_own() -> None:
    shard = Shard()
    shard.extend(GENESIS, A, [sign(0, 0, value=1)])
    shard.extend(GENESIS, B, [sign(0, 0, value=2), sign(1, 0, value=40)])
    shard.extend(A, C, [sign(0, 1, value=10)])
    assert [shard.balance(at, TARGET) for at in (GENESIS, A, B, C)] == [0, 1, 42, 11]
    assert len({shard.core.state_root(at) for at in (GENESIS, A, B, C)}) == 4


def test_finalising_keeps_ancestors_readable_and_drops_other_branches() -> None:
    shard = Shard()
    shard.extend(GENESIS, A, [sign(0, 0, value=1)])
    shard.extend(GENESIS, B, [sign(0, 0, value=2)])
    shard.extend(A, C, [sign(0, 1, value=10)])
    shard.extend(B, D, [sign(0, 1, value=20)])
    shard.core.finalise(C)
    shard.core.finalise(C)
    shard.core.finalise(A)
    assert [shard.balance(at, TARGET) for at in (GENESIS, A, C)] == [0, 1, 11]
    assert not shard.core.has(B)
    assert not shard.core.has(D)
    with pytest.raises(_native.MissingState):
        shard.core.account(D, TARGET)
    with pytest.raises(_native.UnknownParent):
        shard.core.finalise(D)
    shard.extend(C, E, [sign(0, 2, value=100)])
    assert shard.balance(E, TARGET) == 111


def test_discarding_takes_descendants_along() -> None:
    shard = Shard()
    shard.extend(GENESIS, A, [sign(0, 0)])
    shard.extend(A, B, [sign(0, 1)])
    shard.extend(GENESIS, C, [sign(1, 0)])
    shard.core.discard(A)
    assert [shard.core.has(at) for at in (GENESIS, A, B, C)] == [True, False, False, True]
    with pytest.raises(_native.UnknownParent):
        shard.execute(B)


def test_adopting_is_idempotent_and_needs_its_parent() -> None:
    shard = Shard()
    first = shard.extend(GENESIS, A, [sign(0, 0, value=1)])
    second = shard.extend(A, B, [sign(0, 1, value=1)])
    shard.core.adopt(first, A, 1)
    shard.core.discard(A)
    with pytest.raises(_native.UnknownParent):
        shard.core.adopt(second, B, 2)
    shard.core.adopt(first, A, 1)
    shard.core.adopt(second, B, 2)
    assert shard.balance(B, TARGET) == 2
    shard.core.finalise(B)
    shard.core.adopt(first, A, 1)
    assert shard.balance(A, TARGET) == 1


def test_history_answers_at_every_height_it_keeps_and_at_none_below() -> None:
    shard = Shard(history=5)
    blocks = [GENESIS] + [bytes([0xB0, number]) * 16 for number in range(1, 11)]
    roots = [shard.root]
    for number in range(1, 11):
        data = word(number)
        result = shard.extend(blocks[number - 1], blocks[number], [sign(0, number - 1, STORER, data=data)])
        roots.append(result.state_root)
        shard.core.finalise(blocks[number])
    for number in range(5, 11):
        assert shard.core.storage(blocks[number], STORER, word(0)) == word(number)
        account = shard.core.account(blocks[number], ADDRESSES[0])
        assert account is not None
        assert account[0] == number
        assert shard.core.state_root(blocks[number]) == roots[number]
    for number in range(5):
        with pytest.raises(_native.MissingState):
            shard.core.storage(blocks[number], STORER, word(0))


def test_a_read_below_the_base_cannot_be_built_upon() -> None:
    shard = Shard()
    shard.extend(GENESIS, A)
    shard.core.finalise(A)
    with pytest.raises(_native.UnknownParent):
        shard.execute(GENESIS)


def random_transactions(seed: int, count: int = 60) -> list[bytes]:
    rng = random.Random(seed)
    nonces = [0] * 8
    transactions = []
    for _ in range(count):
        key = rng.randrange(8)
        if rng.random() < 0.4:
            transaction = sign(key, nonces[key], STORER, data=word(rng.choice([0, 1, rng.getrandbits(200)])))
        elif rng.random() < 0.2:
            code = bytes.fromhex("600a5f5560016000f3")
            transaction = sign(key, nonces[key], None, data=code, gas=200_000)
        else:
            transaction = sign(key, nonces[key], rng.randbytes(20), value=rng.randrange(1, 10**18))
        nonces[key] += 1
        transactions.append(transaction)
    return transactions


def test_diffs_lead_another_core_to_the_same_roots() -> None:
    shard, follower = Shard(), Shard()
    parent = GENESIS
    transactions = random_transactions(3, 90)
    for number in range(3):
        block = bytes([0xD0, number]) * 16
        result = shard.extend(parent, block, transactions[30 * number : 30 * number + 30])
        for _ in range(2):
            assert follower.core.apply_diff(block, number + 1, result.diff) == result.state_root
        parent = block
    shard.core.finalise(parent)
    assert shard.core.snapshot() == follower.core.snapshot()


def test_a_snapshot_restores_the_identical_state() -> None:
    shard = Shard()
    shard.extend(GENESIS, A, random_transactions(5))
    shard.core.finalise(A)
    chunks = shard.core.snapshot()
    restored = _native.Core(chain_id=31337, shard=SHARD)
    assert restored.restore(chunks) == shard.core.state_root(A)
    assert restored.restore(chunks[::-1]) == shard.core.state_root(A)
    restored.set_base(A, 1)
    assert restored.snapshot() == chunks
    assert restored.code(A, STORER) == shard.core.code(A, STORER) != b""
    assert restored.total_supply(A) == shard.core.total_supply(A)


def test_snapshot_chunks_stay_within_their_size() -> None:
    storage = {hex(slot): "0x1" for slot in range(1, 30_001)}
    alloc = {"0x" + "77" * 20: {"code": "0x00", "storage": storage}}
    core = _native.Core(chain_id=31337, shard=SHARD)
    root = core.init_genesis(msgspec.json.encode(alloc))
    chunks = core.snapshot()
    assert len(chunks) > 1
    assert max(len(chunk) for chunk in chunks) <= 1 << 20
    assert _native.Core(chain_id=31337, shard=SHARD).restore(chunks) == root


def test_malformed_snapshots_and_diffs_change_nothing() -> None:
    shard = Shard()
    result = shard.extend(GENESIS, A, random_transactions(9, 20))
    shard.core.finalise(A)
    chunks, root = shard.core.snapshot(), shard.core.state_root(A)
    rng = random.Random(1)
    for source, load in (
        (chunks[0], lambda data: shard.core.restore([data])),
        (result.diff, lambda data: shard.core.apply_diff(B, 2, data)),
    ):
        for _ in range(300):
            cut = source[: rng.randrange(len(source))]
            with pytest.raises(_native.CoreError):
                load(cut)
    with pytest.raises(_native.CoreError):
        shard.core.restore([chunks[0], chunks[0]])
    assert shard.core.state_root(A) == root


def test_the_commitment_does_not_depend_on_the_order_of_changes() -> None:
    transactions = [sign(key, 0, bytes([key + 1]) * 20, value=5) for key in range(8)]
    shard = Shard()
    forward = shard.execute(GENESIS, transactions)
    backward = shard.execute(GENESIS, transactions[::-1])
    assert forward.state_root == backward.state_root
    assert forward.diff == backward.diff
    assert forward.transactions_root != backward.transactions_root


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_never_change_a_result(threads: int) -> None:
    transactions = [sign(index % 8, index // 8, index.to_bytes(20, "big"), value=1) for index in range(800)]
    alone, together = Shard(), Shard(threads=threads)
    first = alone.execute(GENESIS, transactions, mode="validate")
    second = together.execute(GENESIS, transactions, mode="validate")
    fields = (
        "state_root",
        "transactions_root",
        "outcomes_root",
        "outbox_root",
        "logs_bloom",
        "diff",
        "outcomes",
    )
    assert all(getattr(first, field) == getattr(second, field) for field in fields)


def test_writing_a_value_back_leaves_no_trace_in_the_commitment() -> None:
    shard = Shard()
    shard.extend(GENESIS, A, [sign(0, 0, STORER, data=word(7))])
    cleared = shard.extend(A, B, [sign(0, 1, STORER, data=word(0))])
    assert shard.core.storage(B, STORER, word(0)) == word(0)
    assert msgspec.msgpack.decode(cleared.diff)[1] == [[STORER, [[word(0), word(0)]]]]
    shard.core.finalise(B)
    # What a snapshot restores never had the slot: equal roots say that nothing of it is left.
    assert _native.Core(chain_id=31337, shard=SHARD).restore(shard.core.snapshot()) == cleared.state_root


def test_an_account_that_destroys_itself_in_its_creation_is_gone_with_its_balance() -> None:
    shard = Shard()
    # Stores, then self-destructs to itself inside its own creation (EIP-6780: the value is burnt).
    code = bytes.fromhex("60015f5530ff")
    result = shard.extend(GENESIS, A, [sign(0, 0, None, data=code, value=1000, gas=200_000)])
    created = msgspec.msgpack.decode(result.outcomes)[0][5]
    assert shard.core.account(A, created) is None
    assert shard.core.storage(A, created, word(0)) == word(0)
    assert shard.supply(GENESIS) - shard.supply(A) == int.from_bytes(result.burnt, "big")
    fees = msgspec.msgpack.decode(result.outcomes)[0][2] * 10**9
    assert int.from_bytes(result.burnt, "big") == fees + 1000


def test_genesis_errors_name_the_account() -> None:
    core = _native.Core(chain_id=31337, shard=SHARD)
    for alloc in (
        {"0x12": {"balance": "1"}},
        {"0x" + "11" * 20: {"balance": "ten"}},
        {"0x" + "11" * 20: {"balance": -1}},
        {"0x" + "11" * 20: {"code": "0xzz"}},
        {"0x" + "11" * 20: {"storage": {"0x0": "0x1"}}},
        {"0x" + "11" * 20: {"blance": "1"}},
        {"0x" + "11" * 20: {"balance": "1"}, "11" * 20: {"balance": "1"}},
    ):
        with pytest.raises(_native.CoreError, match="malformed"):
            core.init_genesis(msgspec.json.encode(alloc))
    with pytest.raises(_native.CoreError):
        core.init_genesis(b"[" * 100_000)


def test_packed_reads_agree_with_single_ones() -> None:
    shard = Shard()
    shard.extend(GENESIS, A, [sign(0, 0, value=1)])
    packed = shard.core.nonces_balances(A, ADDRESSES[0] + b"\xee" * 20 + TARGET)
    assert packed[:8] == (1).to_bytes(8, "little")
    assert int.from_bytes(packed[8:40], "big") == shard.balance(A, ADDRESSES[0]) < RICH
    assert packed[40:80] == bytes(40)
    assert packed[80:] == bytes(8) + word(1)
    with pytest.raises(_native.CoreError, match="multiple of 20"):
        shard.core.nonces_balances(A, b"\0" * 21)
    assert shard.core.init_genesis(make_alloc()) == shard.root


def test_reads_and_executions_go_on_while_blocks_are_finalised() -> None:
    shard = Shard(history=64)
    blocks = [GENESIS] + [bytes([0xB0, number]) * 16 for number in range(1, 41)]
    failures: list[object] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            for number, block in enumerate(blocks):
                if shard.core.has(block):
                    stored = shard.core.storage(block, STORER, word(0))
                    if stored != word(number):
                        failures.append((number, stored))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(1, 41):
            shard.extend(blocks[number - 1], blocks[number], [sign(0, number - 1, STORER, data=word(number))])
            if number > 3:
                shard.core.finalise(blocks[number - 3])
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert failures == []


def test_commitments_are_pinned() -> None:
    # A change of these is a change of the protocol: every stored chain would have to start anew.
    shard = Shard()
    assert shard.root.hex() == "2879e863f969045f337a312cb6340fb176fee80d2231d6784d2dd1ef73887f47"
    result = shard.execute(GENESIS, [sign(0, 0, value=1), sign(1, 0, STORER, data=word(7))])
    assert result.state_root.hex() == "44239bfc082160733603c44cce8f08cc678fba1903c9c0fa57be02828b44e81d"
    assert (
        result.transactions_root.hex() == "0d58154f31950da7c93632b52dcd18c38b398803ea3636c80a7d5a8d0af27219"
    )
    assert result.outcomes_root.hex() == "361c22b6bc11f68c8be2701cd934d7446cdb839d72fc2ca04d627863163a1272"
