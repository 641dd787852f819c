"""Requests of nothing but transactions: answered as one, as every other reader would, and refused when too much comes."""

import asyncio
import random

import msgspec
import pytest

from node import admission
from node.rpc.api import CallContext
from node.rpc.app import METHODS
from node.rpc.protocol import Dispatcher
from shards.mempool import Mempool, MempoolLimits
from shardyard import _native
from tests.unit.node.rpc_chain import ALICE, BOB, CAROL, CHAIN_ID, SHARD, RpcChain, open_chain
from tests.unit.node.test_rpc_http import request


def build_call(raw, number):
    return {"jsonrpc": "2.0", "id": number, "method": "eth_sendRawTransaction", "params": ["0x" + raw.hex()]}


def build_request(*raws):
    return msgspec.json.encode([build_call(raw, number) for number, raw in enumerate(raws)])


async def answer(chain, body):
    text = await chain.app.dispatcher.answer(body, CallContext(chain.api))
    return None if text is None else msgspec.json.decode(text)


async def test_a_request_of_transactions_is_one_group_answered_in_order(chain):
    raws = [
        chain.sign(nonce=0),
        chain.sign(BOB, nonce=0),
        chain.sign(nonce=0),
        b"\x02\xc0",
        chain.sign(nonce=1),
    ]
    answers = await answer(chain, build_request(*raws))
    assert [item["id"] for item in answers] == list(range(5))
    hashes = [item.get("result") for item in answers]
    assert hashes == [
        "0x" + _native.keccak256(raw).hex() if number not in {2, 3} else None
        for number, raw in enumerate(raws)
    ]
    assert answers[2]["error"] == {"code": -32000, "message": "already known"}
    assert answers[3]["error"]["message"].startswith("rlp: ")
    assert chain.journal.writes == [[raws[0], raws[1], raws[4]]]


async def test_a_single_call_is_answered_by_a_single_object(chain):
    raw = chain.sign()
    found = await answer(chain, msgspec.json.encode(build_call(raw, "abc")))
    assert found == {"jsonrpc": "2.0", "id": "abc", "result": "0x" + _native.keccak256(raw).hex()}


async def test_mutilated_submissions_get_the_answers_of_the_general_reader(tmp_path):
    draw = random.Random(7)
    async with open_chain(tmp_path / "a") as fast, open_chain(tmp_path / "b") as plain:
        plain.app.dispatcher = Dispatcher(METHODS, plain.app.limits)
        whole = build_request(fast.sign(nonce=0), fast.sign(BOB, nonce=5))
        pieces = [
            b"[",
            b"]",
            b"{",
            b'"',
            b"\\",
            b"\xff",
            b"null",
            b"1e999",
            b" ",
            b",",
            b'"id":1,',
            b"0x",
            b"\\u0030",
            b"-",
        ]
        for _ in range(1500):
            damaged = bytearray(whole)
            for _ in range(draw.randrange(0, 4)):
                place = draw.randrange(len(damaged))
                match draw.randrange(3):
                    case 0:
                        damaged[place] = draw.randrange(256)
                    case 1:
                        del damaged[place : place + draw.randrange(9)]
                    case _:
                        damaged[place:place] = draw.choice(pieces)
            body = bytes(damaged)
            assert await answer(fast, body) == await answer(plain, body), body


async def test_too_much_waiting_is_http_429_in_geths_words(tmp_path, monkeypatch):
    monkeypatch.setattr(admission, "MAX_WAITING", 3)
    chain = RpcChain(tmp_path)  # nobody admits
    waiting = asyncio.create_task(chain.backend.submit([chain.sign(nonce=n) for n in range(3)]))
    await asyncio.sleep(0)
    status, headers, body = await request(chain, build_request(chain.sign(BOB), chain.sign(CAROL)))
    assert (status, headers["retry-after"]) == (429, "1")
    assert [item["error"] for item in msgspec.json.decode(body)] == [
        {"code": -32000, "message": "txpool is full"}
    ] * 2
    assert chain.backend.admission.counters["overflow"] == 2
    waiting.cancel()
    chain.app.close()
    chain.index.close()


def test_a_full_pool_refuses_the_cheap_before_recovering_them_and_takes_who_pays_more(chain_less_core):
    core, sign = chain_less_core
    pool = Mempool(MempoolLimits(max_transactions=2))
    pool.start_at(bytes(32))

    def admit(*raws):
        offsets = [0]
        for raw in raws:
            offsets.append(offsets[-1] + len(raw))
        submission = _native.Submission(b"".join(raws), offsets)
        batch = core.prepare_submissions([submission], pool.get_least_fee())
        admitted = pool.admit(core, batch)
        return batch, [admitted.error(index) for index in range(len(raws))]

    assert pool.get_least_fee() == 0
    assert admit(sign(ALICE, 0, 10**9), sign(BOB, 0, 2 * 10**9))[1] == [None, None]
    assert pool.get_least_fee() == 10**9 + 1
    batch, problems = admit(sign(CAROL, 0, 10**9), sign(CAROL, 0, 10**9 + 1))
    assert problems == ["txpool is full", None]
    assert batch.senders[:20] == bytes(20)
    assert len(pool) == 2
    assert pool.get_next_nonce(ALICE.address, 0) == 0


@pytest.fixture
def chain_less_core():
    from node.load.keys import Account, Draft, Signer
    from tests.unit.node.rpc_chain import build_genesis

    core = _native.Core(chain_id=CHAIN_ID, shard=SHARD)
    core.init_genesis(build_genesis()[1])
    core.set_base(bytes(32), 0)
    signer = Signer(SHARD)

    def sign(sender, nonce, max_fee):
        draft = Draft(Account(sender.private_key), nonce, BOB.address, 1, 21_000, max_fee, 1)
        return signer.sign_all([draft]).raw  # and nothing has recovered it yet

    return core, sign


async def test_a_flood_leaves_pool_and_queue_bounded_and_blocks_go_on(tmp_path, monkeypatch):
    from node.load.keys import Draft, Signer, derive_account
    from node.rpc.access import RpcAccess

    monkeypatch.setattr(admission, "MAX_WAITING", 400)
    monkeypatch.setattr(admission, "MAX_GROUP", 200)
    monkeypatch.setattr(
        "tests.unit.node.rpc_chain.MempoolLimits", lambda: MempoolLimits(max_transactions=500)
    )
    signer = Signer(SHARD)
    async with open_chain(tmp_path, access=RpcAccess()) as chain:
        for index in range(16):
            await chain.send(to="0x" + derive_account(1, SHARD, index).address.hex(), value=10**18)
        await chain.make_block()
        answered, statuses, sizes = set(), set(), set()

        async def flood(index):
            account = derive_account(1, SHARD, index)
            for start in range(0, 600, 60):
                drafts = [
                    Draft(account, nonce, BOB.address, 1, 21_000, 3 * 10**9, 1)
                    for nonce in range(start, start + 60)
                ]
                raws = [raw for raw, _ in signer.sign(drafts)]
                status, _, body = await request(chain, build_request(*raws))
                statuses.add(status)
                for item in msgspec.json.decode(body):
                    if "result" in item:
                        answered.add(item["result"])
                    else:
                        assert item["error"]["message"].startswith(("txpool is full", "nonce too high"))
                sizes.add(len(chain.backend.mempool))

        floods = asyncio.gather(*(flood(index) for index in range(16)))
        while not floods.done() or chain.backend.mempool.get_status()[0]:
            await chain.make_block()
        await floods
        included = [
            "0x" + tx_hash.hex()
            for height in range(2, chain.backend.latest.height + 1)
            for tx_hash in chain.index.get_block(height).transaction_hashes
        ]
        assert len(included) == len(set(included))
        waiting = {"0x" + entry.hash.hex() for entry in chain.backend.mempool}  # behind what was refused
        assert not waiting & set(included)
        assert waiting | set(included) == answered
        assert len(answered) >= 500
        assert max(sizes) <= 500
        assert statuses == {200, 429}
