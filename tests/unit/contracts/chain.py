"""A shard without consensus: the native core, the genesis every network has, and one block per call.

Two of them make a network: what one emits, a test hands to the other, as the beacon would.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from eth_abi import decode, encode
from eth_account import Account
from eth_utils import to_checksum_address

from node.artifacts import Artifact, load_artifact
from node.dev_accounts import DEV_ACCOUNTS, DevAccount
from node.genesis_alloc import Alloc, build_alloc, encode_alloc, get_dev_balances
from shardyard._native import BlockEnv, BlockResult, CallResult, Core, keccak256
from shardyard.ids import compute_chain_id
from shardyard.receipts import Receipt, decode_receipt

SHARD_COUNT = 4
BLOCK_GAS = 60_000_000
BASE_FEE = 1_000
GAS_PRICE = 2_000


def selector(signature: str) -> bytes:
    return keccak256(signature.encode())[:4]


def encode_call(signature: str, *arguments: Any) -> bytes:
    inner = signature[signature.index("(") + 1 : -1]
    types = inner.split(",") if inner else []
    return selector(signature) + encode(types, arguments)


def encode_interop(chain_id: int, address: bytes) -> bytes:
    """Return the ERC-7930 address of a contract on a shard."""
    return bytes.fromhex("0001000002") + chain_id.to_bytes(2, "big") + b"\x14" + address


def mapping_slot(slot: int, key: int | bytes) -> bytes:
    """Return where Vyper keeps the value of `key` in the mapping at `slot`."""
    word = key.to_bytes(32, "big") if isinstance(key, int) else key.rjust(32, b"\0")
    return keccak256(slot.to_bytes(32, "big") + word)


def decode_reason(output: bytes) -> str:
    """Return the text of a revert, or its data in hex when it is no Error(string)."""
    if output[:4] == selector("Error(string)"):
        (text,) = decode(["string"], output[4:])
        return str(text)
    return f"0x{output.hex()}"


@dataclass(frozen=True)
class Log:
    address: bytes
    topics: list[bytes]
    data: bytes


@dataclass(frozen=True)
class Outcome:
    status: int
    gas_used: int
    contract: bytes
    logs: list[Log]


@dataclass(frozen=True)
class Block:
    result: BlockResult
    outcomes: list[Outcome]
    receipts: list[Receipt]


class Chain:
    """One shard's state; every `execute` is a block on top of the last."""

    def __init__(self, shard: int = 0, extra: Alloc | None = None) -> None:
        """Start shard `shard` of four; `extra` entries of genesis replace or join the usual ones."""
        alloc = build_alloc(shard_count=SHARD_COUNT, balances=get_dev_balances())
        alloc.update(extra or {})
        self.shard = shard
        self.chain_id = compute_chain_id(shard)
        self.core = Core(chain_id=self.chain_id, shard=shard)
        self.genesis_root = self.core.init_genesis(encode_alloc(alloc))
        self.height = 0
        self.head = keccak256(b"genesis")
        self.core.set_base(self.head, 0)

    def env(self, link_base_fees: Iterable[tuple[int, int]] = (), beacon_height: int = 1) -> BlockEnv:
        return BlockEnv(
            number=self.height + 1,
            timestamp=1_700_000_000 + self.height,
            gas_limit=BLOCK_GAS,
            base_fee=BASE_FEE,
            beneficiary=b"\xbe" * 20,
            prevrandao=bytes(32),
            parent_hash=self.head,
            beacon_root=b"\xbb" * 32,
            beacon_height=beacon_height,
            inbox_gas=BLOCK_GAS // 2,
            link_base_fees=list(link_base_fees),
        )

    def execute(
        self,
        transactions: Sequence[bytes] = (),
        inbox: Sequence[bytes] = (),
        link_base_fees: Iterable[tuple[int, int]] = (),
        beacon_height: int = 1,
    ) -> Block:
        offsets = [0]
        for raw in transactions:
            offsets.append(offsets[-1] + len(raw))
        batch = self.core.prepare(b"".join(transactions), offsets)
        env = self.env(link_base_fees, beacon_height)
        result = self.core.execute(self.head, batch, env, "build", list(inbox))
        assert result.skipped == []
        self.height += 1
        self.head = keccak256(self.head + result.state_root)
        self.core.adopt(result, self.head, self.height)
        outcomes = [
            Outcome(o[1], o[2], o[5], [Log(*log) for log in o[6]])
            for o in msgspec.msgpack.decode(result.outcomes)
        ]
        return Block(result, outcomes, [decode_receipt(data) for data in result.outbox])

    def sign(self, account: DevAccount, to: bytes | None, data: bytes, *, value: int, gas: int) -> bytes:
        state = self.core.account(self.head, account.address)
        transaction = {
            "chainId": self.chain_id,
            "nonce": state[0] if state else 0,
            "gas": gas,
            "gasPrice": GAS_PRICE,
            "value": value,
            "data": data,
        }
        if to is not None:
            transaction["to"] = to_checksum_address(to)
        return bytes(Account.sign_transaction(transaction, account.private_key).raw_transaction)

    def transact(
        self, to: bytes, data: bytes = b"", *, value: int = 0, gas: int = 2_000_000, account: int = 0
    ) -> Block:
        """Execute one transaction, which must succeed, in a block of its own."""
        block = self.execute([self.sign(DEV_ACCOUNTS[account], to, data, value=value, gas=gas)])
        assert block.outcomes[0].status == 1, self.call(to, data, value=value, gas=gas, account=account)
        return block

    def deploy(self, name: str, *arguments: Any, types: Sequence[str] = ()) -> bytes:
        """Return the address of a new contract."""
        artifact: Artifact = load_artifact(name)
        data = artifact.init_code + encode(types, arguments)
        block = self.execute([self.sign(DEV_ACCOUNTS[9], None, data, value=0, gas=5_000_000)])
        assert block.outcomes[0].status == 1
        return block.outcomes[0].contract

    def call(
        self, to: bytes, data: bytes = b"", *, value: int = 0, gas: int = 5_000_000, account: int = 0
    ) -> CallResult:
        request = {
            "from": bytes(DEV_ACCOUNTS[account].address),
            "to": to,
            "gas": gas,
            "gasPrice": 0,
            "value": value.to_bytes(32, "big"),
            "input": data,
        }
        return self.core.call(self.head, self.env(), msgspec.msgpack.encode(request))

    def read(self, to: bytes, signature: str, *arguments: Any, returns: str = "uint256") -> Any:
        """Return what a view answers."""
        result = self.call(to, encode_call(signature, *arguments))
        assert result.status == "success", decode_reason(result.output)
        (value,) = decode([returns], result.output)
        return value

    def balance(self, address: bytes) -> int:
        account = self.core.account(self.head, address)
        return int.from_bytes(account[1], "big") if account else 0

    def supply(self) -> int:
        return int.from_bytes(self.core.total_supply(self.head), "big")

    def slot(self, address: bytes, key: bytes) -> int:
        return int.from_bytes(self.core.storage(self.head, address, key), "big")
