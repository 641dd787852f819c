"""Random programs and blocks for the oracle tests: contracts that call, create and destroy one another, accounts that
delegate, transactions that depend on each other. Everything follows from one seed.

Code is made of statements that leave the stack as they found it, so that most of it runs to its end; nearly every result
is stored or logged, so that a difference between two machines shows.
"""

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import rlp
from eth_account import Account

from shardyard import _native
from tests.unit.native.shard import BENEFICIARY, CHAIN_ID, GENESIS, GWEI, RICH, SHARD, join, make_env

WALLETS = [Account.from_key(number.to_bytes(32, "big")) for number in range(101, 117)]
SENDERS = [bytes.fromhex(wallet.address[2:]) for wallet in WALLETS]
CONTRACTS = [bytes([0xC0, number]) * 10 for number in range(8)]
FRESH = [bytes([0xF0, number]) * 10 for number in range(4)]
SLOTS = 4
BLOCK_GAS = 30_000_000

STOP, ADD, MUL, SUB, DIV, EXP = 0x00, 0x01, 0x02, 0x03, 0x04, 0x0A
AND, XOR, SHA3, BALANCE, ORIGIN, CALLER, CALLVALUE = 0x16, 0x18, 0x20, 0x31, 0x32, 0x33, 0x34
CALLDATALOAD, EXTCODESIZE, RETURNDATASIZE, EXTCODEHASH, COINBASE = 0x35, 0x3B, 0x3D, 0x3F, 0x41
TIMESTAMP, NUMBER, PREVRANDAO, CHAINID, SELFBALANCE, BASEFEE = 0x42, 0x43, 0x44, 0x46, 0x47, 0x48
MLOAD, MSTORE, SLOAD, SSTORE, JUMPI, GAS, JUMPDEST = 0x51, 0x52, 0x54, 0x55, 0x57, 0x5A, 0x5B
TLOAD, TSTORE, MCOPY, LOG0, CREATE, CALL = 0x5C, 0x5D, 0x5E, 0xA0, 0xF0, 0xF1
CALLCODE, RETURN, DELEGATECALL, CREATE2, STATICCALL = 0xF2, 0xF3, 0xF4, 0xF5, 0xFA
REVERT, INVALID, SELFDESTRUCT = 0xFD, 0xFE, 0xFF

# Init codes of at most 32 bytes: what they leave is after the arrow.
INIT_CODES = [
    bytes.fromhex("6133ff600052600260 1ef3".replace(" ", "")),  # → destroys itself for its caller
    bytes.fromhex("635f355f556000526004601cf3"),  # → stores its input
    bytes.fromhex("6005600155600054600101600055"),  # writes its storage → no code
    bytes.fromhex("32ff"),  # destroys itself at once, for the origin
    bytes.fromhex("5f5ffd"),  # reverts
    bytes.fromhex("60ef60005360016000f3"),  # → code that may not be (EIP-3541)
    bytes.fromhex("fe"),
]


def push(value: int) -> bytes:
    size = max(1, (value.bit_length() + 7) // 8)
    return bytes([0x5F + size]) + value.to_bytes(size, "big")


class Programmer:
    """Writes code."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.statements: list[Callable[[], bytes]] = [
            self.store, self.store, self.store, self.store_transiently, self.log, self.call, self.call,
            self.create, self.create, self.call_created, self.guarded, self.remember,
        ]  # fmt: skip

    def slot(self) -> bytes:
        return push(self.rng.randrange(SLOTS))

    def address(self) -> bytes:
        choice = self.rng.randrange(10)
        if choice < 5:
            return b"\x73" + self.rng.choice(CONTRACTS)
        if choice < 8:
            return b"\x73" + self.rng.choice(SENDERS + FRESH)
        if choice == 8:
            return b"\x73" + self.rng.choice([BENEFICIARY, bytes(19) + bytes([self.rng.randrange(1, 0x13)])])
        return bytes([self.rng.choice([CALLER, ORIGIN, COINBASE])])

    def value(self, depth: int = 2) -> bytes:
        choice = self.rng.randrange(12 if depth else 8)
        if choice == 0:
            return push(self.rng.choice([0, 1, 2, 255, self.rng.getrandbits(64), 2**256 - 1]))
        if choice == 1:
            return self.slot() + bytes([self.rng.choice([SLOAD, SLOAD, TLOAD])])
        if choice in {2, 3}:
            return self.address() + bytes([self.rng.choice([BALANCE, EXTCODESIZE, EXTCODEHASH])])
        if choice == 4:
            return push(0) + bytes([self.rng.choice([CALLDATALOAD, MLOAD])])
        if choice < 8:
            simple = [ORIGIN, CALLER, CALLVALUE, SELFBALANCE, GAS, RETURNDATASIZE, COINBASE]
            return bytes([self.rng.choice([*simple, TIMESTAMP, NUMBER, PREVRANDAO, CHAINID, BASEFEE])])
        operator = self.rng.choice([ADD, MUL, SUB, DIV, AND, XOR, EXP])
        exponent = push(self.rng.randrange(5)) if operator == EXP else self.value(depth - 1)
        return exponent + self.value(depth - 1) + bytes([operator])

    def store(self) -> bytes:
        return self.value() + self.slot() + bytes([SSTORE])

    def store_transiently(self) -> bytes:
        return self.value() + self.slot() + bytes([TSTORE])

    def remember(self) -> bytes:
        return self.value() + push(32 * self.rng.randrange(3)) + bytes([MSTORE])

    def log(self) -> bytes:
        count = self.rng.randrange(4)
        topics = b"".join(self.value(0) for _ in range(count))
        return topics + push(self.rng.randrange(40)) + push(0) + bytes([LOG0 + count])

    def call(self) -> bytes:
        kind = self.rng.choice([CALL, CALL, CALL, CALLCODE, DELEGATECALL, STATICCALL])
        paid = push(self.rng.choice([0, 0, 1, 7])) if kind in {CALL, CALLCODE} else b""
        gas = self.rng.choice([push(30_000), push(60_000), bytes([GAS])])
        memory = push(32) + push(0) + push(32) + push(0)
        return memory + paid + self.address() + gas + bytes([kind]) + self.slot() + bytes([SSTORE])

    def create(self) -> bytes:
        code = self.rng.choice(INIT_CODES)
        written = b"\x7f" + code.ljust(32, b"\0") + push(0) + bytes([MSTORE])
        paid = push(self.rng.choice([0, 0, 3]))
        if self.rng.random() < 0.5:
            made = push(len(code)) + push(0) + paid + bytes([CREATE])
        else:
            made = push(self.rng.randrange(2)) + push(len(code)) + push(0) + paid + bytes([CREATE2])
        return written + made + self.slot() + bytes([SSTORE])

    def call_created(self) -> bytes:
        """Calls whatever address a slot names: often what was created there last."""
        target = self.slot() + bytes([SLOAD])
        memory = push(0) + push(0) + push(32) + push(0)
        return (
            memory
            + push(self.rng.choice([0, 2]))
            + target
            + push(50_000)
            + bytes([CALL])
            + self.slot()
            + bytes([SSTORE])
        )

    def guarded(self) -> bytes:
        """A statement, or the end of the program, that only some inputs reach."""
        inner = self.end() if self.rng.random() < 0.4 else self.rng.choice(self.statements[:-2])()
        condition = push(1 << self.rng.randrange(4)) + push(0) + bytes([CALLDATALOAD, AND, 0x15])
        return condition + b"\x61\xff\xff" + bytes([JUMPI]) + inner + bytes([JUMPDEST])

    def end(self) -> bytes:
        kind = self.rng.randrange(8)
        if kind == 0:
            return push(self.rng.randrange(33)) + push(0) + bytes([REVERT])
        if kind == 1:
            return bytes([INVALID])
        if kind < 5:
            return self.address() + bytes([SELFDESTRUCT])
        return push(self.rng.randrange(33)) + push(0) + bytes([RETURN])

    def program(self) -> bytes:
        code = b""
        for _ in range(self.rng.randrange(3, 9)):
            code = append(code, self.rng.choice(self.statements)())
        return append(code, self.end()) if self.rng.random() < 0.4 else code


def append(code: bytes, statement: bytes) -> bytes:
    """Put a statement behind the code; a guarded one learns where its end is."""
    marker = b"\x61\xff\xff" + bytes([JUMPI])
    at = statement.find(marker)
    if at >= 0:
        end = len(code) + len(statement) - 1
        statement = statement[: at + 1] + end.to_bytes(2, "big") + statement[at + 3 :]
    return code + statement


def build_alloc(rng: random.Random) -> dict[str, dict[str, Any]]:
    """Rich senders and contracts that know one another."""
    writer = Programmer(rng)
    alloc: dict[str, dict[str, Any]] = {
        "0x" + address.hex(): {"balance": hex(RICH), "nonce": "0x0"} for address in SENDERS
    }
    # The last one has little: some of its transactions cannot be paid for.
    alloc["0x" + SENDERS[-1].hex()]["balance"] = hex(10**15)
    for address in CONTRACTS:
        storage = {"0x" + slot.to_bytes(32, "big").hex(): hex(rng.randrange(1, 100)) for slot in range(2)}
        alloc["0x" + address.hex()] = {
            "nonce": "0x1", "balance": hex(1000), "code": "0x" + writer.program().hex(), "storage": storage,
        }  # fmt: skip
    return alloc


class BlockWriter:
    """Writes signed transactions. A core of its own runs each at once, so that it knows the nonces whatever code did to
    them; a few are wrong on purpose.
    """

    def __init__(self, rng: random.Random, alloc: dict[str, dict[str, Any]], beneficiary: bytes) -> None:
        self.rng = rng
        self.beneficiary = beneficiary
        self.programmer = Programmer(rng)
        self.core = _native.Core(chain_id=CHAIN_ID, shard=SHARD)
        self.core.init_genesis(msgspec.json.encode(alloc))
        self.core.set_base(GENESIS, 0)
        self.tip, self.height = GENESIS, 0

    def get_nonce(self, number: int) -> int:
        account = self.core.account(self.tip, SENDERS[number])
        return account[0] if account else 0

    def include(self, raw: bytes) -> None:
        batch = self.core.prepare(*join([raw]))
        env = make_env(gas_limit=BLOCK_GAS, beneficiary=self.beneficiary)
        result = self.core.execute(self.tip, batch, env, "build", ())
        self.height += 1
        self.tip = self.height.to_bytes(32, "little")
        self.core.adopt(result, self.tip, self.height)

    def authorize(self, sender: int) -> Any:
        number = self.rng.randrange(len(WALLETS))
        nonce = self.get_nonce(number) + (1 if number == sender else 0)
        kind = self.rng.randrange(6)
        target = bytes(20) if kind == 0 else self.rng.choice([*CONTRACTS, *SENDERS[:2]])
        chain_id = CHAIN_ID + 1 if kind == 1 else CHAIN_ID
        if kind == 2:
            nonce += 1  # not its nonce: passed over
        return WALLETS[number].sign_authorization({"chainId": chain_id, "address": target, "nonce": nonce})

    def access_list(self) -> list[dict[str, Any]]:
        return [
            {
                "address": "0x" + self.rng.choice(CONTRACTS + SENDERS).hex(),
                "storageKeys": [
                    "0x" + slot.to_bytes(32, "big").hex() for slot in range(self.rng.randrange(SLOTS))
                ],
            }
            for _ in range(self.rng.randrange(3))
        ]

    def write(self) -> bytes:
        sender = self.rng.randrange(len(WALLETS))
        kind = self.rng.choice([0, 0, 1, 2, 2, 2, 4, 4])
        fields: dict[str, Any] = {
            "chainId": CHAIN_ID,
            "nonce": self.get_nonce(sender) + (1 if self.rng.random() < 0.04 else 0),
            "gas": self.rng.choice([120_000, 250_000, 600_000]),
            "value": self.rng.choice([0, 0, 1, 10**12]),
            "data": self.rng.randrange(16).to_bytes(32, "big"),
        }
        if kind < 2:
            fields["gasPrice"] = self.rng.choice([1, 2]) * GWEI
        else:
            fields |= {"maxFeePerGas": 2 * GWEI, "maxPriorityFeePerGas": self.rng.choice([0, 1, GWEI])}
        shape = self.rng.randrange(10)
        if compute_created(sender, fields["nonce"]) == self.beneficiary:
            # Who is paid comes into being, and as often as not is gone in the same transaction, its fee included.
            fields["data"] = self.rng.choice([INIT_CODES[3], INIT_CODES[1], self.programmer.program()])
            kind = 2
            fields = {key: value for key, value in fields.items() if key != "gasPrice"}
            fields |= {"maxFeePerGas": 2 * GWEI, "maxPriorityFeePerGas": GWEI}
        elif shape == 3 and kind != 4:
            fields["data"] = self.programmer.program()
        elif shape < 3:
            fields["to"] = self.rng.choice([*SENDERS, *FRESH, BENEFICIARY])
            fields["data"] = b"" if shape else fields["data"]
        else:
            fields["to"] = self.rng.choice(CONTRACTS)
        if kind:
            fields |= {"type": kind, "accessList": self.access_list()}
        if kind == 4:
            fields["authorizationList"] = [self.authorize(sender) for _ in range(self.rng.randrange(1, 3))]
        raw = bytes(WALLETS[sender].sign_transaction(fields).raw_transaction)
        self.include(raw)
        return raw


@dataclass(frozen=True)
class Case:
    """The state before a block, its transactions, and who is paid for it."""

    alloc: dict[str, dict[str, Any]]
    transactions: list[bytes]
    beneficiary: bytes


def compute_created(sender: int, nonce: int) -> bytes:
    """The address of what a sender creates with this nonce."""
    return _native.keccak256(bytes(rlp.encode([SENDERS[sender], nonce])))[12:]


@functools.cache
def build_case(seed: int, count: int) -> Case:
    """Fees go in turn to an account of no other use, a contract, a sender, and a contract made in the block."""
    rng = random.Random(seed)
    beneficiary = [BENEFICIARY, CONTRACTS[0], SENDERS[0], compute_created(1, 2)][seed % 4]
    alloc = build_alloc(rng)
    writer = BlockWriter(rng, alloc, beneficiary)
    return Case(alloc, [writer.write() for _ in range(count)], beneficiary)
