"""The executor's bench: promises are judged on a quiet machine only, by the right rows."""

from typing import Any

import pytest

from node.bench.__main__ import build_parser
from node.bench.executor import (
    ERC20,
    RAW,
    REPLAY,
    SENDS,
    SWAPS,
    Ceiling,
    ExecutorRun,
    Row,
    find_noise,
    format_table,
    judge,
    list_targets,
)
from node.bench.pyrevm import PyrevmRow, build_task


def build_row(workload: str = RAW, **fields: Any) -> Row:
    values: dict[str, Any] = {
        **dict.fromkeys(("execute_us", "execute_p95_us", "core_us", "total_us", "total_p95_us"), 2.0),
        "block": 10_000,
        "transactions": 10_000,
        "workload": workload,
        "variant": "2, EVM",
        "threads": 2,
        "fast_path": False,
        "cores": 1.9,
        "sequential": "revm",
        "speed_up": 1.8,
        "ceiling_share": 0.98,
        "alu": 1.9,
        "memory": 1.8,
        "estimate": 1.9,
        "aborts": 0,
        "incarnations": 10_000,
        "at_turn": 0,
        "solos": 0,
        "rss_mb": 100.0,
    }
    return Row(**values | fields)


def build_run(*rows: Row) -> ExecutorRun:
    return ExecutorRun(5, (Ceiling(2, 1.9, 1.8, 60),), rows)


def test_all_promises_held_on_a_quiet_machine():
    run = build_run(
        *(build_row(RAW), build_row(RAW, fast_path=True), build_row(ERC20), build_row(SWAPS)),
        *(build_row("dependent chain", core_us=2.2, speed_up=0.99), build_row(SENDS, transactions=1000)),
    )
    report = judge(run, (), "", 0.1)
    assert report.held, [target for target in report.targets if not target.held]
    assert len(report.targets) == 11


@pytest.mark.parametrize(
    "row",
    [
        build_row(RAW, speed_up=1.2),
        build_row(RAW, total_us=5.0),
        build_row(RAW, fast_path=True, total_us=2.6),
        build_row(RAW, fast_path=True, speed_up=1.2),
        build_row(RAW, fast_path=True, variant=f"2, {REPLAY}", ceiling_share=0.94),
        build_row(SWAPS, variant=f"2, {REPLAY}", ceiling_share=0.94),
        build_row(ERC20, speed_up=1.4),
        build_row(SWAPS, ceiling_share=0.91),
        build_row("dependent chain", speed_up=0.9),
        build_row("dependent chain", speed_up=1.0, core_us=2.6),
        build_row(SENDS, transactions=1000, aborts=11),
    ],
)
def test_each_promise_can_be_missed(row):
    assert any(not target.held for target in list_targets(build_run(row)))


def test_a_replay_is_judged_where_transactions_do_not_meet():
    rows = [build_row(name, variant=f"2, {REPLAY}", speed_up=1.0) for name in (RAW, SWAPS, "raw, 2 accounts")]
    judged = list_targets(build_run(*rows))
    assert [target.name.split(", 2, ")[0] for target in judged] == [RAW, SWAPS]


def test_only_the_largest_blocks_on_two_threads_are_judged():
    rows = (build_row(), build_row(block=1000, speed_up=0.1), build_row(threads=1, speed_up=0.1))
    assert all(target.held for target in list_targets(build_run(*rows)))


def test_no_verdict_when_the_machine_itself_does_not_scale():
    report = judge(build_run(build_row(alu=1.2)), (), "", 3.0)
    assert not report.held
    assert "cores were not free" in report.summary
    assert [target.name for target in report.targets] == [f"{RAW}: quiet machine"]


def test_only_the_workload_that_was_disturbed_gets_no_verdict():
    rows = (
        build_row(ERC20),
        build_row(SWAPS, alu=1.1, ceiling_share=0.5),
        build_row("raw, 2 accounts"),
    )
    run = build_run(*rows)
    assert list(find_noise(run)) == [SWAPS]
    report = judge(run, (), "", 0.1)
    assert [target.name for target in report.targets if not target.held] == [f"{SWAPS}: quiet machine"]


def test_no_verdict_when_parallel_blocks_did_not_get_their_cores():
    assert "got 1.20 of 2 cores" in find_noise(build_run(build_row(SWAPS, cores=1.2)))[SWAPS]
    assert find_noise(build_run(build_row("dependent chain", cores=1.0))) == {}


def test_the_table_names_the_baseline_and_leaves_out_rates_without_commitment():
    rows = (build_row(variant="revm", threads=1, speed_up=1.0), build_row(aborts=500))
    peers = (PyrevmRow(RAW, 4.0, "0.3.7"),)
    lines = format_table(build_run(*rows), peers, "", 0.5)
    revm = next(line for line in lines if "revm *" in line)
    ours = next(line for line in lines if "2, EVM" in line)
    assert "500,000" not in revm
    assert "500,000" in ours
    assert "98%" in ours
    assert "5.0%" in ours
    assert any("pyrevm 0.3.7" in line and "250,000/s" in line for line in lines)


def test_pyrevm_gets_distinct_accounts_and_a_slot_each():
    task = build_task(3, 1)
    assert len(set(task["accounts"])) == len(set(task["slots"])) == 6
    assert len(task["calls"]) == 3


def test_sizes_and_threads_are_lists_of_numbers(capsys):
    options = build_parser().parse_args(["executor", "--blocks", "100,2000", "--threads", "1,2,4"])
    assert (options.blocks, options.threads) == ((100, 2000), (1, 2, 4))
    with pytest.raises(SystemExit):
        build_parser().parse_args(["executor", "--blocks", "0"])
    assert "expected numbers from 1 on" in capsys.readouterr().err
