"""The other side of the oracle tests: executes blocks with ``ethereum-execution``, in an interpreter of its own.

One case a line on standard input, one answer a line on standard output, JSON with bytes in hexadecimal. It imports nothing
of this project: the two sides share the bytes of transactions and nothing else.
"""

import json
import sys

from ethereum.crypto.hash import Hash32
from ethereum.exceptions import EthereumException
from ethereum.forks.prague.blocks import decode_receipt
from ethereum.forks.prague.fork import process_transaction
from ethereum.forks.prague.fork_types import Account, Address
from ethereum.forks.prague.state import State, set_account, set_storage
from ethereum.forks.prague.transactions import LegacyTransaction, decode_transaction
from ethereum.forks.prague.trie import trie_get
from ethereum.forks.prague.vm import BlockEnvironment, BlockOutput
from ethereum_rlp import rlp
from ethereum_types.bytes import Bytes, Bytes32
from ethereum_types.numeric import U64, U256, Uint


def read_bytes(text):
    return Bytes(bytes.fromhex(text.removeprefix("0x")))


def build_state(alloc):
    state = State()
    for name, entry in alloc.items():
        address = Address(read_bytes(name))
        account = Account(
            nonce=Uint(int(entry.get("nonce", "0x0"), 16)),
            balance=U256(int(entry.get("balance", "0x0"), 16)),
            code=read_bytes(entry.get("code", "0x")),
        )
        set_account(state, address, account)
        for slot, value in entry.get("storage", {}).items():
            set_storage(state, address, Bytes32(read_bytes(slot)), U256(int(value, 16)))
    return state


def build_env(state, chain_id, env):
    return BlockEnvironment(
        chain_id=U64(chain_id),
        state=state,
        block_gas_limit=Uint(env["gas_limit"]),
        block_hashes=[],
        coinbase=Address(read_bytes(env["beneficiary"])),
        number=Uint(env["number"]),
        base_fee_per_gas=Uint(env["base_fee"]),
        time=U256(env["timestamp"]),
        prev_randao=Bytes32(read_bytes(env["prevrandao"])),
        excess_blob_gas=U64(0),
        parent_beacon_block_root=Hash32(read_bytes(env["beacon_root"])),
    )


def execute(env, output, index, raw):
    """What became of one transaction: a refusal by name, or status, cumulative gas and logs."""
    try:
        transaction = decode_transaction(raw if raw[0] < 0xC0 else rlp.decode_to(LegacyTransaction, raw))
        process_transaction(env, output, transaction, Uint(index))
    except EthereumException as error:
        return {"refused": type(error).__name__}
    receipt = decode_receipt(trie_get(output.receipts_trie, rlp.encode(Uint(index))))
    logs = [
        [log.address.hex(), [topic.hex() for topic in log.topics], log.data.hex()] for log in receipt.logs
    ]
    return {
        "succeeded": bool(receipt.succeeded),
        "cumulative": int(receipt.cumulative_gas_used),
        "logs": logs,
    }


def describe(state):
    """Every account that is not empty, with the slots that are not zero."""
    found = {}
    for address, account in state._main_trie._data.items():
        if account.nonce == Uint(0) and account.balance == U256(0) and not account.code:
            continue
        trie = state._storage_tries.get(address)
        slots = {slot.hex(): hex(int(value)) for slot, value in trie._data.items()} if trie else {}
        found[address.hex()] = [int(account.nonce), hex(int(account.balance)), account.code.hex(), slots]
    return found


def main():
    for line in sys.stdin:
        case = json.loads(line)
        state = build_state(case["alloc"])
        env, output = build_env(state, case["chain_id"], case["env"]), BlockOutput()
        fates = [
            execute(env, output, index, read_bytes(raw)) for index, raw in enumerate(case["transactions"])
        ]
        sys.stdout.write(json.dumps({"fates": fates, "state": describe(state)}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
