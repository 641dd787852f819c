"""Reading transactions: who sent them, what is refused before any state is looked at, and that nothing crashes."""

import random
import struct

import msgspec
import pytest
import rlp
from eth_utils import keccak

from shardyard import _native
from tests.unit.native.shard import ADDRESSES, CHAIN_ID, GWEI, KEYS, Shard, join, sign, word

FOR_EVERY_CHAIN = {"chainId": 0, "address": b"\x11" * 20, "nonce": 0}
SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@pytest.fixture(scope="module")
def core() -> _native.Core:
    return Shard().core


def refuse(core: _native.Core, raw: bytes) -> str | None:
    return core.prepare(*join([raw])).error(0)


def test_fields_and_senders_are_packed_in_order(core: _native.Core) -> None:
    transactions = [
        sign(0, 7, type=0, gasPrice=5 * GWEI, value=3),
        sign(1, 2**40, type=1, gas=30_000),
        sign(2, 1, maxFeePerGas=2**70, gas=50_000, data=b"\1\2"),
    ]
    batch = core.prepare(*join(transactions))
    assert len(batch) == 3
    assert batch.status == bytes(3)
    assert batch.types == bytes([0, 1, 2])
    assert batch.hashes == b"".join(keccak(raw) for raw in transactions)
    assert batch.senders == b"".join(ADDRESSES[:3])
    assert struct.unpack("<3Q", batch.nonces) == (7, 2**40, 1)
    assert struct.unpack("<3Q", batch.gas_limits) == (100_000, 30_000, 50_000)
    assert struct.unpack("<3Q", batch.max_fees) == (5 * GWEI, 10 * GWEI, 2**64 - 1)
    assert struct.unpack("<3Q", batch.tips) == (5 * GWEI, 10 * GWEI, GWEI)
    costs = [int.from_bytes(batch.costs[32 * i : 32 * i + 32], "big") for i in range(3)]
    assert costs == [3 + 100_000 * 5 * GWEI, 30_000 * 10 * GWEI, 50_000 * 2**70]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_is_the_same_whoever_reads_it(threads: int) -> None:
    transactions = [sign(index % 8, index, value=index) for index in range(40)]
    batch = Shard(threads=threads).core.prepare(*join(transactions))
    assert batch.senders == b"".join(ADDRESSES[index % 8] for index in range(40))


def test_a_description_carries_what_json_rpc_needs(core: _native.Core) -> None:
    raw = sign(
        0,
        3,
        data=b"\xab",
        value=9,
        accessList=[{"address": "0x" + "11" * 20, "storageKeys": ["0x" + word(5).hex()]}],
    )
    found = msgspec.msgpack.decode(core.prepare(*join([raw])).describe(0))
    assert found["from"] == ADDRESSES[0]
    assert found["hash"] == keccak(raw)
    assert found["accessList"] == [[b"\x11" * 20, [word(5)]]]
    expected = {
        "type": 2,
        "chainId": CHAIN_ID,
        "nonce": 3,
        "gas": 100_000,
        "input": b"\xab",
        "value": word(9),
    }
    assert expected.items() <= found.items()
    assert {"maxFeePerGas", "maxPriorityFeePerGas", "yParity", "v", "r", "s", "to"} <= found.keys()
    creation = msgspec.msgpack.decode(core.prepare(*join([sign(0, 0, None, type=0, data=b"\0")])).describe(0))
    assert creation["to"] is None
    assert creation["v"] in {2 * CHAIN_ID + 35, 2 * CHAIN_ID + 36}
    assert "gasPrice" in creation
    assert "yParity" not in creation


def rewrite_legacy(raw: bytes, **fields: int) -> bytes:
    items = rlp.decode(raw)
    places = {"gas": 2, "v": 6, "r": 7, "s": 8}
    for name, value in fields.items():
        items[places[name]] = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes(rlp.encode(items))


def test_refusals_speak_geths_words(core: _native.Core) -> None:
    legacy = sign(0, 0, type=0)
    v, s = (int.from_bytes(rlp.decode(legacy)[place], "big") for place in (6, 8))
    cases = {
        "empty": (b"", "rlp: "),
        "not a list": (b"\x85hello", "rlp: "),
        "trailing": (legacy + b"\0", "rlp: "),
        "cut": (legacy[:-1], "rlp: "),
        "blob": (b"\3" + legacy, "transaction type not supported"),
        "set code without an authorization list": (b"\4" + legacy, "rlp: "),
        "unknown": (b"\x7f" + legacy, "transaction type not supported"),
        "unprotected": (
            rewrite_legacy(legacy, v=27 + (v - 35) % 2),
            "only replay-protected (EIP-155) transactions allowed over RPC",
        ),
        "chain": (sign(0, 0, chainId=1), f"invalid chain id for signer: have 1 want {CHAIN_ID}"),
        "high s": (
            rewrite_legacy(legacy, s=SECP256K1_ORDER - s, v=v ^ 1 if v % 2 == 0 else v + 1),
            "invalid transaction v, r, s values",
        ),
        "zero r": (rewrite_legacy(legacy, r=0), "invalid transaction v, r, s values"),
        "no point": (rewrite_legacy(legacy, r=5), "invalid sender"),
        "gas": (sign(0, 0, gas=20_999), "intrinsic gas too low: have 20999, want 21000"),
        "floor": (sign(0, 0, data=b"\1" * 1000, gas=40_000), "insufficient gas for floor data gas cost"),
        "tip": (
            sign(0, 0, maxPriorityFeePerGas=11 * GWEI),
            "max priority fee per gas higher than max fee per gas",
        ),
        "authorization for every chain": (
            sign(0, 0, type=4, authorizationList=[KEYS[1].sign_authorization(FOR_EVERY_CHAIN)]),
            f"authorization 0 is for every chain (chain id 0) and would replay on all: sign it for {CHAIN_ID}",
        ),
        "initcode": (sign(0, 0, None, data=b"\0" * 49_153, gas=10**7), "max initcode size exceeded"),
        "size": (sign(0, 0, data=b"\0" * 131_072, gas=10**7), "oversized data"),
    }
    for name, (raw, reason) in cases.items():
        found = refuse(core, raw)
        assert found is not None, name
        assert found.startswith(reason), (name, found)
    assert refuse(core, legacy) is None


def test_one_bad_transaction_does_not_touch_its_neighbours(core: _native.Core) -> None:
    batch = core.prepare(*join([sign(0, 0), b"\xff\xff", sign(1, 0)]))
    assert [code == 0 for code in batch.status] == [True, False, True]
    assert batch.senders == ADDRESSES[0] + bytes(20) + ADDRESSES[1]
    with pytest.raises(ValueError, match="could not be decoded"):
        batch.describe(1)
    with pytest.raises(IndexError):
        batch.error(3)


def test_prepare_never_crashes_on_mutated_transactions(core: _native.Core) -> None:
    rng = random.Random(7)
    samples = [sign(0, 0, type=kind, data=b"\1" * 40) for kind in (0, 1, 2)]
    pieces = []
    for _ in range(3_000):
        raw = bytearray(rng.choice(samples))
        for _ in range(rng.randint(1, 4)):
            match rng.randrange(3):
                case 0:
                    raw[rng.randrange(len(raw))] = rng.randrange(256)
                case 1:
                    del raw[rng.randrange(len(raw)) :]
                    raw += rng.randbytes(rng.randrange(8)) + b"\0"
                case _:
                    raw.insert(rng.randrange(len(raw)), rng.randrange(256))
        pieces.append(bytes(raw))
    pieces += [rng.randbytes(rng.randrange(200)) for _ in range(1_000)]
    batch = core.prepare(*join(pieces))
    for index, raw in enumerate(pieces):
        assert batch.hashes[32 * index : 32 * index + 32] == keccak(raw)
        assert (batch.status[index] == 0) == (batch.error(index) is None)


def test_a_transaction_is_accepted_in_one_encoding_only(core: _native.Core) -> None:
    raw = sign(0, 0, type=1)
    for position in range(len(raw)):
        for bit in range(8):
            changed = bytearray(raw)
            changed[position] ^= 1 << bit
            batch = core.prepare(*join([bytes(changed)]))
            assert batch.senders != ADDRESSES[0] or batch.status != b"\0"


def test_offsets_must_cut_the_blob(core: _native.Core) -> None:
    raw = sign(0, 0)
    for offsets in ([], [0], [0, len(raw) + 1], [1, len(raw)], [0, 9, 3, len(raw)]):
        with pytest.raises(_native.CoreError, match="offsets"):
            core.prepare(raw, offsets)
    assert len(core.prepare(b"", [0])) == 0
