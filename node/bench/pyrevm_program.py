"""Runs in an environment of its own and executes transfers and token transfers through pyrevm: a task in as JSON, rows out.

Inside the timer: one call into revm per transaction and the commit. Not inside: nonces, fees, outcomes, commitments; the
interface knows none of them.
"""

import json
import sys
import time
from importlib.metadata import version
from statistics import median
from typing import Any

from pyrevm import EVM, AccountInfo  # type: ignore[import-not-found]  # in .venv-pyrevm only

BALANCE = 10**21
TOKEN = "0x" + "70" * 20
TOKEN_GAS = 300_000


def build_evm(task: dict[str, Any]) -> EVM:
    """Return a machine with the task's accounts, all of them holders of one token."""
    evm = EVM(spec_id="CANCUN")
    for account in task["accounts"]:
        evm.set_balance(account, BALANCE)
    evm.insert_account_info(TOKEN, AccountInfo(code=bytes.fromhex(task["runtime"][2:])))
    for slot in task["slots"]:
        evm.insert_account_storage(TOKEN, int(slot, 16), 0xFFFFFFFFFF)
    return evm


def run_transfers(evm: EVM, task: dict[str, Any]) -> float:
    """Return the seconds that transfers between pairs of accounts take."""
    accounts = task["accounts"]
    started = time.perf_counter()
    for sender, to in zip(accounts[::2], accounts[1::2], strict=True):
        evm.message_call(caller=sender, to=to, value=1)
    evm.commit()
    return time.perf_counter() - started


def run_tokens(evm: EVM, task: dict[str, Any]) -> float:
    """Return the seconds that token transfers between pairs of accounts take."""
    accounts, calls = task["accounts"][::2], [bytes.fromhex(call) for call in task["calls"]]
    started = time.perf_counter()
    for sender, call in zip(accounts, calls, strict=True):
        evm.message_call(caller=sender, to=TOKEN, calldata=call, gas=TOKEN_GAS)
    evm.commit()
    return time.perf_counter() - started


def main() -> None:
    """Measure both workloads."""
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123 - nothing of the project is here
        task = json.load(file)
    count = len(task["accounts"]) // 2
    rows = []
    for workload, run in (("raw, disjoint", run_transfers), ("ERC-20, disjoint, 1 token", run_tokens)):
        times = [run(build_evm(task), task) for _ in range(task["rounds"])]
        rows.append({"workload": workload, "us": median(times) / count * 1e6, "version": version("pyrevm")})
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
