"""What is in the state of a shard at height 0: predeployed contracts and funded accounts.

Every shard gets the gateway, the contract that burns its RECEIPT_GAS (X2), the CREATE2 deployer, Multicall3
and Prague's system contracts, at the addresses they have everywhere. The result is the JSON that
``Core.init_genesis`` takes; it is the same bytes for the same arguments, so that every process comes to the
same state root.
"""

from collections.abc import Mapping
from typing import Final, TypedDict

import msgspec

from node.artifacts import load_artifact, load_canonical_contracts
from node.dev_accounts import DEV_ACCOUNTS, DEV_BALANCE
from shardyard.errors import ConfigError
from shardyard.ids import CHAIN_ID_BASE, GATEWAY, Address

BURNER: Final = Address(bytes.fromhex("0000000000000000000000000000000000005a7e"))
"""Holds one INVALID instruction: a call with n gas burns n gas."""
BURNER_CODE: Final = b"\xfe"
MAX_SHARDS: Final = 0x1_0000 - CHAIN_ID_BASE
"""The gateway reads two bytes of chain id from an ERC-7930 address."""


class AllocEntry(TypedDict, total=False):
    """One account of genesis; numbers and bytes as 0x hex."""

    balance: str
    nonce: str
    code: str
    storage: dict[str, str]


Alloc = dict[str, AllocEntry]


def get_dev_balances(balance: int = DEV_BALANCE) -> dict[Address, int]:
    """Return the public development accounts, each with ``balance`` wei."""
    return {account.address: balance for account in DEV_ACCOUNTS}


def build_alloc(*, shard_count: int, balances: Mapping[Address, int]) -> Alloc:
    """Return the state of a shard at height 0.

    Raises ``ConfigError`` for a number of shards that chain ids cannot name, for a balance outside 256 bits,
    and for one at the address of a predeployed contract: the gateway's balance is what is claimable, nobody
    else's.
    """
    if not 1 <= shard_count <= MAX_SHARDS:
        raise ConfigError(f"shards: got {shard_count}, expected 1 to {MAX_SHARDS}")
    alloc = _build_predeploys(shard_count)
    for address, balance in balances.items():
        name = _hex(address)
        if name in alloc:
            raise ConfigError(
                f"balance of {name}: got {balance}, expected none: it is a predeployed contract"
            )
        if not 0 <= balance < 1 << 256:
            raise ConfigError(f"balance of {name}: got {balance}, expected 0 to 2^256 - 1 wei")
        alloc[name] = {"balance": hex(balance)}
    return dict(sorted(alloc.items()))


def encode_alloc(alloc: Alloc) -> bytes:
    """Return the bytes that ``Core.init_genesis`` takes."""
    return msgspec.json.encode(alloc, order="sorted")


def compute_alloc_supply(alloc: Alloc) -> int:
    """Return the wei in ``alloc``: what the supply of the shard starts from (X11)."""
    return sum(int(entry.get("balance", "0x0"), 16) for entry in alloc.values())


def _build_predeploys(shard_count: int) -> Alloc:
    gateway = load_artifact("gateway")
    shard_count_slot = gateway.storage["shard_count"]
    alloc: Alloc = {
        _hex(GATEWAY): {
            **_contract(gateway.runtime_code),
            "storage": {_word(shard_count_slot): _word(shard_count)},
        },
        _hex(BURNER): _contract(BURNER_CODE),
    }
    for contract in load_canonical_contracts():
        alloc[_hex(contract.address)] = _contract(contract.runtime_code)
    return alloc


def _contract(code: bytes) -> AllocEntry:
    # EIP-161: a contract's nonce starts at 1, so none of these can ever count as empty and be swept away.
    return {"balance": "0x0", "nonce": "0x1", "code": _hex(code)}


def _word(value: int) -> str:
    return f"0x{value:064x}"


def _hex(data: bytes) -> str:
    return f"0x{data.hex()}"
