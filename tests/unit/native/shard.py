"""One shard's core with funded keys and hand-made contracts: what the tests of the boundary stand on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from eth_account import Account

from shardyard import _native
from shardyard.receipts import Receipt, ReceiptKind

CHAIN_ID = 31337
SHARD = 0
GENESIS = b"\x01" * 32
GWEI = 10**9
BASE_FEE = GWEI
RICH = 10**24
KEYS = [Account.from_key(number.to_bytes(32, "big")) for number in range(1, 9)]
ADDRESSES = [bytes.fromhex(key.address[2:]) for key in KEYS]
BENEFICIARY = b"\xcc" * 20
REMOTE_SENDER = b"\x71" * 20
REFUND_TO = b"\x72" * 20
RECEIPT_PRICE = 3 * GWEI

STORE = bytes.fromhex("5f355f55")  # slot 0 := first word of the input
STORER = b"\x51" * 20
REVERT = bytes.fromhex("63deadbeef5f526004601cfd")  # reverts with deadbeef
REVERTER = b"\x52" * 20
ACCEPT = bytes.fromhex("632432ef2660e01b5f5260205ff3")  # answers receiveMessage and receiveReply alike
ACCEPTER = b"\x53" * 20
BURN = bytes.fromhex("fe")
BURNER = b"\x54" * 20

CODE = {STORER: STORE, REVERTER: REVERT, ACCEPTER: ACCEPT, BURNER: BURN}


def word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def join(transactions: Sequence[bytes]) -> tuple[bytes, list[int]]:
    offsets = [0]
    for raw in transactions:
        offsets.append(offsets[-1] + len(raw))
    return b"".join(transactions), offsets


def make_alloc() -> bytes:
    alloc: dict[str, dict[str, Any]] = {key.address: {"balance": str(RICH)} for key in KEYS}
    for address, code in CODE.items():
        alloc["0x" + address.hex()] = {"nonce": "0x1", "code": "0x" + code.hex()}
    return msgspec.json.encode(alloc)


def make_env(number: int = 1, parent: bytes = GENESIS, **overrides: Any) -> _native.BlockEnv:
    fields: dict[str, Any] = {
        "number": number,
        "timestamp": 1_700_000_000 + number,
        "gas_limit": 60_000_000,
        "base_fee": BASE_FEE,
        "beneficiary": BENEFICIARY,
        "prevrandao": bytes(32),
        "parent_hash": parent,
        "beacon_root": b"\xbb" * 32,
        "beacon_height": 10,
        "inbox_gas": 30_000_000,
    }
    return _native.BlockEnv(**(fields | overrides))


def sign(key: int, nonce: int, to: bytes | None = b"\x99" * 20, **fields: Any) -> bytes:
    transaction: dict[str, Any] = {
        "type": 2,
        "chainId": CHAIN_ID,
        "nonce": nonce,
        "gas": 100_000,
        "maxFeePerGas": 10 * GWEI,
        "maxPriorityFeePerGas": GWEI,
        "value": 0,
        "data": b"",
    } | fields
    if transaction["type"] not in {2, 4}:
        transaction.pop("maxFeePerGas")
        transaction.pop("maxPriorityFeePerGas")
        transaction.setdefault("gasPrice", 10 * GWEI)
    if transaction["type"] == 0:
        transaction.pop("type")
    if to is not None:
        transaction["to"] = to
    return bytes(KEYS[key].sign_transaction(transaction).raw_transaction)


def make_receipt(kind: ReceiptKind = ReceiptKind.CALL, **fields: Any) -> Receipt:
    values: dict[str, Any] = {
        "version": 1,
        "kind": kind,
        "src": 3,
        "dst": 0,
        "seq": 1,
        "id": b"\x0a" * 32,
        "origin": (b"\x0b" * 32, b"\x0c" * 20, 4),
        "parent_id": bytes(32),
        "sender": REMOTE_SENDER,
        "target": ACCEPTER,
        "value": word(1000),
        "gas_limit": 100_000,
        "gas_price": RECEIPT_PRICE,
        "reply_gas": 50_000,
        "refund_to": REFUND_TO,
        "deadline": 0,
        "payload": b"hello",
    }
    if kind is ReceiptKind.TRANSFER:
        values |= {"gas_limit": 0, "gas_price": 0, "reply_gas": 0}
    if kind in {ReceiptKind.RESULT, ReceiptKind.BOUNCE}:
        values |= {"reply_gas": 0, "parent_id": b"\x0d" * 32}
        values["payload"] = msgspec.msgpack.encode([kind is ReceiptKind.RESULT, word(400), b"data"])
    return msgspec.convert(list((values | fields).values()), Receipt)


def encode_receipt(receipt: Receipt) -> bytes:
    return msgspec.msgpack.encode(receipt)


@dataclass(frozen=True)
class Outcome:
    type: int
    status: int
    gas_used: int
    cumulative_gas_used: int
    effective_gas_price: int
    contract_address: bytes
    logs: list[Any]
    tx_hash: bytes
    sender: bytes
    to: bytes


def read_outcomes(result: _native.BlockResult) -> list[Outcome]:
    return [Outcome(*fields) for fields in msgspec.msgpack.decode(result.outcomes)]


class Shard:
    """A core at genesis; `extend` executes and adopts, so tests name blocks by their hashes."""

    def __init__(self, *, threads: int = 1, history: int = 256) -> None:
        self.core = _native.Core(chain_id=CHAIN_ID, shard=SHARD, threads=threads, history=history)
        self.root = self.core.init_genesis(make_alloc())
        self.core.set_base(GENESIS, 0)
        self.numbers = {GENESIS: 0}

    def execute(
        self,
        parent: bytes,
        transactions: Sequence[bytes] = (),
        inbox: Sequence[bytes] = (),
        mode: Any = "build",
        access_list: bytes | None = None,
        **overrides: Any,
    ) -> _native.BlockResult:
        env = make_env(self.numbers[parent] + 1, parent, **overrides)
        batch = self.core.prepare(*join(transactions))
        return self.core.execute(parent, batch, env, mode, inbox, access_list)

    def extend(
        self,
        parent: bytes,
        block: bytes,
        transactions: Sequence[bytes] = (),
        inbox: Sequence[bytes] = (),
        **overrides: Any,
    ) -> _native.BlockResult:
        result = self.execute(parent, transactions, inbox, **overrides)
        assert result.skipped == []
        self.numbers[block] = self.numbers[parent] + 1
        self.core.adopt(result, block, self.numbers[block])
        return result

    def balance(self, at: bytes, address: bytes) -> int:
        account = self.core.account(at, address)
        return int.from_bytes(account[1], "big") if account else 0

    def supply(self, at: bytes) -> int:
        return int.from_bytes(self.core.total_supply(at), "big")
