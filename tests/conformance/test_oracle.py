"""Generated blocks have the same outcomes and the same state here and in ``ethereum-execution``, an EVM by other people.

Here they run on two and on four threads through the parallel path, and in order; there one transaction after the other. What they
are made of is in ``programs``: calls, creations, self-destruction and re-creation, delegations, access lists, transient
storage, fees to an account that the code looks at, and transactions that cannot be in the block.
"""

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardyard import _native
from tests.conformance.programs import BLOCK_GAS, Case, build_case
from tests.unit.native.shard import CHAIN_ID, GENESIS, SHARD, Outcome, join, make_env, read_outcomes

SEEDS = range(12)
TRANSACTIONS = 96
ENV = {
    "number": 1,
    "timestamp": 1_700_000_001,
    "gas_limit": BLOCK_GAS,
    "base_fee": 10**9,
    "prevrandao": "00" * 32,
    "beacon_root": "bb" * 32,
}

Ask = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def ask(oracle_python: Path) -> Iterator[Ask]:
    """``ask(case)``: what the other EVM says of it."""
    program = Path(__file__).with_name("oracle.py")
    with subprocess.Popen(
        [oracle_python, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(case: dict[str, Any]) -> dict[str, Any]:
            process.stdin.write(json.dumps(case) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close()


class Ours:
    """One block of the native core."""

    def __init__(self, case: Case, threads: int) -> None:
        core = _native.Core(chain_id=CHAIN_ID, shard=SHARD, threads=threads)
        core.init_genesis(msgspec.json.encode(case.alloc))
        core.set_base(GENESIS, 0)
        env = make_env(gas_limit=BLOCK_GAS, beneficiary=case.beneficiary)
        self.alloc = case.alloc
        self.result = core.execute(GENESIS, core.prepare(*join(case.transactions)), env, "build", ())
        self.stats = msgspec.msgpack.decode(self.result.stats)
        self.fates: dict[int, Outcome | str] = dict(self.result.skipped)
        included = memoryview(self.result.included).cast("I")
        self.fates |= dict(zip(included, read_outcomes(self.result), strict=True))

    def describe_state(self) -> dict[str, Any]:
        """Every account that is not empty, with the slots that are not zero, as the oracle describes its own."""
        codes = {bytes.fromhex(entry.get("code", "0x")[2:]) for entry in self.alloc.values()}
        accounts, storage = {}, {}
        for name, entry in self.alloc.items():
            code = bytes.fromhex(entry.get("code", "0x")[2:])
            accounts[name[2:]] = [int(entry["nonce"], 16), int(entry["balance"], 16), _native.keccak256(code)]
            storage[name[2:]] = {slot[2:]: int(value, 16) for slot, value in entry.get("storage", {}).items()}
        changed, slots, new_codes = msgspec.msgpack.decode(self.result.diff)
        codes |= set(new_codes)
        for address, *present in changed:
            accounts.pop(address.hex(), None)
            if present:
                accounts[address.hex()] = [present[0], int.from_bytes(present[1], "big"), present[2]]
        for address, written in slots:
            held = storage.setdefault(address.hex(), {})
            held |= {slot.hex(): int.from_bytes(value, "big") for slot, value in written}
        by_hash = {_native.keccak256(code): code.hex() for code in codes}
        return {
            address: [
                nonce, hex(balance), by_hash[code_hash],
                {slot: hex(value) for slot, value in storage.get(address, {}).items() if value},
            ]
            for address, (nonce, balance, code_hash) in accounts.items()
        }  # fmt: skip


def check_fates(ours: dict[int, Outcome | str], theirs: list[dict[str, Any]]) -> None:
    for index, fate in enumerate(theirs):
        mine = ours[index]
        if "refused" in fate:
            assert isinstance(mine, str), (index, fate, mine)
            continue
        assert isinstance(mine, Outcome), (index, fate, mine)
        logs = [
            [address.hex(), [topic.hex() for topic in topics], data.hex()]
            for address, topics, data in mine.logs
        ]
        found = {"succeeded": bool(mine.status), "cumulative": mine.cumulative_gas_used, "logs": logs}
        assert found == fate, index


@pytest.mark.parametrize("seed", SEEDS)
def test_generated_block_is_what_another_evm_makes_of_it(ask: Ask, seed: int) -> None:
    case = build_case(seed, TRANSACTIONS)
    theirs = ask(
        {
            "chain_id": CHAIN_ID,
            "env": ENV | {"beneficiary": case.beneficiary.hex()},
            "alloc": case.alloc,
            "transactions": [raw.hex() for raw in case.transactions],
        }
    )
    for threads in (1, 2, 4):
        ours = Ours(case, threads)
        assert ours.stats["workers"] == (threads if threads > 1 else 0)
        check_fates(ours.fates, theirs["fates"])
        assert ours.describe_state() == theirs["state"]


def test_generated_blocks_hold_something_of_everything() -> None:
    """Otherwise agreement would say little."""
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        case = build_case(seed, TRANSACTIONS)
        ours = Ours(case, 2)
        outcomes = [fate for fate in ours.fates.values() if isinstance(fate, Outcome)]
        seen["refused"] += len(ours.fates) - len(outcomes)
        seen["failed"] += sum(not outcome.status for outcome in outcomes)
        seen["created"] += sum(bool(outcome.contract_address) for outcome in outcomes)
        seen["logged"] += sum(bool(outcome.logs) for outcome in outcomes)
        seen |= Counter({f"type {outcome.type}": 1 for outcome in outcomes})
        accounts = ours.describe_state().values()
        seen["delegating"] += sum(code.startswith("ef0100") for _, _, code, _ in accounts)
        seen["new"] += len(accounts) - len(case.alloc)
    assert {key for key, count in seen.items() if count > 0} >= {
        "refused", "failed", "created", "logged", "delegating", "new",
        "type 0", "type 1", "type 2", "type 4",
    }, seen  # fmt: skip
