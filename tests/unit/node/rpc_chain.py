"""A shard without consensus for tests of its readers: the real core, and blocks made, adopted and finalised by hand."""

import asyncio
from collections.abc import Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from eth_account import Account
from eth_utils import to_checksum_address

from node.backend import ShardBackend
from node.dev_accounts import DEV_ACCOUNTS
from node.executor import Execution, build_native_env, summarise
from node.genesis_alloc import build_alloc, compute_alloc_supply, encode_alloc, get_dev_balances
from node.index.records import IndexedBlock
from node.index.store import ChainIndex
from node.rpc.access import RpcAccess
from node.rpc.api import ShardApi
from node.rpc.app import RpcApp
from node.rpc.protocol import RpcLimits
from shards.mempool import Mempool, MempoolLimits
from shards.policy import BlockContext, compute_content, compute_env, compute_initial_base_fees
from shardyard._native import Core, keccak256
from shardyard.blocks import EMPTY_JUSTIFICATION, Block, BlockKind, Header, ShardBody, compute_body_hash
from shardyard.codec import decode, encode
from shardyard.effects import EnvSpec
from shardyard.genesis import Genesis, ShardGenesis
from shardyard.ids import (
    GATEWAY,
    ZERO_HASH,
    Address,
    Epoch,
    Hash32,
    Height,
    Millis,
    ShardId,
    Slot,
    compute_chain_id,
)
from shardyard.preset import get_preset
from shardyard.receipts import Origin, Receipt, ReceiptKind
from shardyard.validators import Validator

SHARD_COUNT = 4
SHARD = ShardId(1)
CHAIN_ID = compute_chain_id(SHARD)
REWARD = Address(bytes.fromhex("00000000000000000000000000000000000000f1"))
ALICE, BOB, CAROL = DEV_ACCOUNTS[:3]


class MemoryJournal:
    """Keeps what a journal would write; may be told to fail."""

    def __init__(self) -> None:
        self.writes: list[list[bytes]] = []
        self.error: OSError | None = None

    async def append(self, body: bytes) -> None:
        if self.error is not None:
            raise self.error
        found = decode(body, ShardBody, max_bytes=len(body))
        starts = (0, *found.ends)
        self.writes.append([found.raw[start:end] for start, end in zip(starts, found.ends, strict=False)])


def build_genesis() -> tuple[Genesis, bytes]:
    """A network of four shards whose keys nobody needs here."""
    alloc = build_alloc(shard_count=SHARD_COUNT, balances=get_dev_balances())
    data = encode_alloc(alloc)
    core = Core(chain_id=CHAIN_ID, shard=SHARD)
    supply = compute_alloc_supply(alloc).to_bytes(32, "big")
    shard = ShardGenesis(state_root=Hash32(core.init_genesis(data)), supply=supply)
    validators = tuple(
        Validator(public_key=bytes([i]) * 48, possession_proof=bytes(96), stake=32, reward=REWARD)
        for i in range(16)
    )
    genesis = Genesis(
        version=1,
        name="rpc-test",
        timestamp_ms=1_700_000_000_000,
        preset=get_preset("devnet"),
        validators=validators,
        shards=(shard,) * SHARD_COUNT,
    )
    return genesis, data


class RpcChain:
    """A shard, its backend and its RPC application."""

    def __init__(
        self,
        place: Path,
        limits: RpcLimits | None = None,
        access: RpcAccess | None = None,
        threads: int = 1,
    ) -> None:
        self.genesis, alloc = build_genesis()
        self.core = Core(chain_id=CHAIN_ID, shard=SHARD, threads=threads)
        self.core.init_genesis(alloc)
        first = self.genesis.build_shard_block(SHARD)
        self.core.set_base(first.hash, 0)
        self.index = ChainIndex(place / "index", network=self.genesis.network, shard=SHARD)
        self.journal = MemoryJournal()
        self.tip = first
        self.envs: dict[Hash32, EnvSpec] = {}
        self.access_lists: dict[tuple[int, Hash32], bytes] = {}
        self.broadcasts: list[tuple[bytes, tuple[int, ...]]] = []
        self.backend = ShardBackend(
            core=self.core,
            index=self.index,
            mempool=Mempool(MempoolLimits()),
            journal=self.journal,
            genesis=self.genesis,
            shard=SHARD,
            get_tip=lambda: self.tip.header,
            broadcast=lambda raw, ends: self.broadcasts.append((raw, ends)),
            find_access_list=lambda height, block_hash: self.access_lists.get((height, block_hash)),
            executors=threads,
        )
        self.access = access or RpcAccess()
        self.api = ShardApi(self.backend, {SHARD: ["http://127.0.0.1:8546"]})
        self.app = RpcApp(self.api, self.access, limits)
        self.logged: list[tuple[Block, bytes, tuple[bytes, ...], tuple[bytes, ...]]] = []

    # --- blocks ---

    def execute(self, inbox: Sequence[bytes] = ()) -> Block:
        """Build a block on the tip out of the mempool, adopt and notarize it."""
        parent = self.tip.header
        slot = Slot(parent.slot + 1)
        proposer = slot % 4
        timestamp = Millis(parent.timestamp_ms + self.genesis.preset.block_time_ms)
        beacon_ref = parent.shard_content.beacon_ref
        context = BlockContext(slot, timestamp, proposer, beacon_ref, compute_initial_base_fees(self.genesis))
        env = compute_env(self.genesis, parent, context)
        batch = self.backend.prepare_selection(parent.hash, env, self.genesis.preset.max_body_bytes)()
        result = self.core.execute(parent.hash, batch, build_native_env(env), "build", inbox)
        body = batch.encode_body(result.included)
        summary = summarise(result, len(result.included) // 4)
        header = Header(
            version=1,
            network=self.genesis.network,
            shard=SHARD,
            epoch=Epoch(0),
            kind=BlockKind.NORMAL,
            slot=slot,
            height=Height(parent.height + 1),
            parent=parent.hash,
            parent_slot=parent.slot,
            justification_hash=EMPTY_JUSTIFICATION.hash,
            timestamp_ms=timestamp,
            proposer=proposer,
            body_hash=compute_body_hash(body),
            content=compute_content(parent.shard_content, env, beacon_ref, summary),
        )
        block = Block(header, EMPTY_JUSTIFICATION, body, b"", b"")
        self.core.adopt(result, block.hash, header.height)
        self.envs[block.hash] = env
        self.access_lists[header.height, block.hash] = result.access_list
        taken = tuple(inbox[: result.inbox_taken])
        outbox = tuple(result.outbox)
        self.backend.on_adopted(
            Execution(
                block.hash,
                parent.hash,
                header.height,
                result.outcomes,
                taken,
                outbox,
                batch,
                result.included,
                stats=result.stats,
            )
        )
        self.logged.append((block, result.outcomes, taken, outbox))
        self.tip = block
        return block

    async def finalise(self, block: Block) -> None:
        """Make an adopted block final, and wait until readers see it."""
        readable = asyncio.Event()

        def listen(head: IndexedBlock) -> None:
            if head.hash == block.hash:
                readable.set()

        self.backend.on_head.append(listen)
        self.core.finalise(block.hash)
        await self.backend.on_final(block)
        async with asyncio.timeout(10):
            await readable.wait()
        self.backend.on_head.remove(listen)

    async def make_block(self, inbox: Sequence[bytes] = ()) -> Block:
        """Build and finalise one block."""
        block = self.execute(inbox)
        await self.finalise(block)
        return block

    # --- transactions ---

    async def call(self, method: str, *params: Any) -> Any:
        """Return the result of one RPC call; raises ``AssertionError`` for an error."""
        answer = await self.ask(method, *params)
        assert "result" in answer, answer
        return answer["result"]

    async def ask(self, method: str, *params: Any) -> Any:
        """Return the whole answer to one RPC call."""
        from node.rpc.api import CallContext

        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        text = await self.app.dispatcher.answer(msgspec.json.encode(request), CallContext(self.api))
        assert text is not None
        return msgspec.json.decode(text)

    async def send(self, sender: Any = ALICE, **fields: Any) -> str:
        """Sign and send a transaction; returns its hash."""
        return await self.call("eth_sendRawTransaction", "0x" + self.sign(sender, **fields).hex())

    def sign(self, sender: Any = ALICE, **fields: Any) -> bytes:
        """Return a signed transaction; EIP-1559 and the next nonce unless told otherwise."""
        transaction: dict[str, Any] = {
            "chainId": CHAIN_ID,
            "gas": 21_000,
            "value": 0,
            "to": BOB.checksum_address,
        }
        if "nonce" not in fields:
            transaction["nonce"] = self.backend.get_pending_nonce(sender.address)
        if "gasPrice" not in fields:
            transaction |= {"maxFeePerGas": 3_000_000_000, "maxPriorityFeePerGas": 5_000_000}
        transaction |= fields
        if transaction["to"] is None:
            del transaction["to"]
        elif isinstance(transaction["to"], str):
            transaction["to"] = to_checksum_address(transaction["to"])
        return bytes(Account.sign_transaction(transaction, sender.private_key).raw_transaction)


def build_message(kind: ReceiptKind, seq: int, **fields: Any) -> Receipt:
    """Return a message from shard 0 to this shard."""
    values: dict[str, Any] = {
        "version": 1,
        "kind": kind,
        "src": ShardId(0),
        "dst": SHARD,
        "seq": seq,
        "id": Hash32(keccak256(b"message" + bytes([0, seq]))),
        "origin": Origin(Hash32(keccak256(b"origin")), ALICE.address, 0),
        "parent_id": ZERO_HASH,
        "sender": ALICE.address,
        "target": CAROL.address,
        "value": bytes(32),
        "gas_limit": 0,
        "gas_price": 0,
        "reply_gas": 0,
        "refund_to": ALICE.address,
        "deadline": 0,
        "payload": b"",
    }
    return Receipt(**values | fields)


def build_transfer(seq: int, target: bytes, value: int) -> bytes:
    """Return an encoded TRANSFER to this shard."""
    message = build_message(
        ReceiptKind.TRANSFER, seq, target=Address(target), value=value.to_bytes(32, "big")
    )
    return encode(message)


@asynccontextmanager
async def open_chain(place: Path, **options: Any):
    """A running chain."""
    chain = RpcChain(place, **options)
    task = asyncio.create_task(chain.backend.run())
    try:
        yield chain
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        chain.app.close()
        chain.index.close()


__all__ = ["GATEWAY", "RpcChain", "build_message", "build_transfer", "open_chain"]
