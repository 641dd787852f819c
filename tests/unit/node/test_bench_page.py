"""The performance page: every figure with its machine, nothing shown that was not measured, plots as sound SVG."""

from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest

from node.bench import page as page_module
from node.bench.__main__ import build_parser
from node.bench.executor import judge
from node.bench.page import (
    CHOICES,
    FLOODS,
    RUNS,
    PageError,
    PageOptions,
    is_current,
    list_arguments,
    measure_missing,
    read_reports,
)
from node.bench.page_plots import draw_floods, draw_plots
from node.bench.page_text import PageParts, Reports, write_page
from node.bench.plots import Bar, Group, Line, draw_bars
from node.bench.report import BenchReport, build_report, equals
from tests.unit.node.test_bench_executor import build_row, build_run

SVG = "{http://www.w3.org/2000/svg}"


def build_executor(**fields: Any) -> BenchReport:
    replayed = build_row(variant="2, access-list replay", fast_path=True, **fields)
    rows = (
        build_row(variant="revm", threads=1),
        build_row(variant="in order", threads=1),
        build_row(**fields),
        replayed,
    )
    return judge(build_run(*rows), (), "no pip here", 0.2)


def build_commitment() -> BenchReport:
    row = {
        "what": "block of transfers",
        "inside": "LtHash",
        "per": "transaction",
        "block": 10_000,
        "cpu_us": 1.5,
        "wall_us": 1.6,
    }
    rows = [row | {"threads": 1}, row | {"threads": 2, "wall_us": 0.9}]
    return build_report("commitment", "1.50 µs", [equals("hashing", 1, 1, "µs")], {"rows": rows})


def build_e2e(**options: Any) -> BenchReport:
    leg: dict[str, Any] = {
        "name": "as fast as answered",
        "offered_tps": 25_000.0,
        "final_tps": 21_000.0,
        "hot_share": 0.61,
        "latency": {"p50": 1.0, "p95": 1.5},
        "missing": 0,
        "doubled": 0,
        "recovery_us": 31.0,
        "cores_used": 1.9,
        "cores_others": 0.02,
        "largest_mb": {"shard-0-0": 210.0},
        "cpu_us": {"shard": 60.0, "client": 12.0, "total": 72.0},
        "stages_us": {"execute_us": 3.0},
    }
    pace = {"of_block_time": 0.97, "interval_p95_s": 1.2, "slow": 1, "empty": 2}
    overload = leg | {
        "name": "overload, 42,000 tx/s",
        "role": "overload",
        "final_tps": 20_160.0,
        "accepted": 700_000,
        "first_mb": {"shard-0-0": 150.0, "beacon-0": 45.0},
        "largest_mb": {"shard-0-0": 371.0, "beacon-0": 300.0},
        "pace": [pace, pace | {"of_block_time": 1.01, "interval_p95_s": 1.05}],
        "refusals": {"HTTP 429: txpool is full": 350_000, "txpool is full": 1_500},
    }
    anvil = {"version": "anvil 1.7.1", "mined_tps": 9000.0, "cpu_us": 90.0, "cores_others": 0.1}
    slower = anvil | {"mined_tps": 7000.0, "flags": "--block-time 1", "connections": 4, "batch": 50}
    made = {"kind": "transfer", "shards": 2, "cross": 0.1} | options
    details = {"options": made, "legs": [leg, overload], "anvil": anvil, "anvil_tries": [anvil, slower]}
    return build_report("e2e", "21,000", [equals("lost", 0, 0, "transactions")], details)


def build_page(reports: Reports) -> str:
    return write_page(PageParts(reports, tuple(draw_plots(reports))))


def test_the_page_shows_every_report_with_its_machine_and_commit():
    reports = Reports(build_executor(), build_commitment(), (build_e2e(),), 31.5)
    page = build_page(reports)
    for text in (
        "raw, disjoint",
        "block of transfers",
        "anvil 1.7.1",
        "31.5 µs",
        "no pip here",
        "21,000",
        "2 shards, 10% across",
    ):
        assert text in page
    assert page.count(reports.list_all()[0].machine["commit"]) >= 3
    for name in draw_plots(reports):
        assert f"plots/{name}" in page
    assert "machine was busy" not in page


def test_the_page_tells_what_an_overload_did_and_how_anvil_was_tried():
    page = build_page(Reports(build_executor(), None, (build_e2e(),), 0.0))
    for text in (
        "350,000 HTTP 429: txpool is full, 1,500 txpool is full",
        "| 96% | 150 to 371 | 97% / 101% | 1.20 / 1.05 | 2 | 2 |",
        "9,000 *",
        "| --block-time 1 | 4 x 50 | 7,000 |",
    ):
        assert text in page


def test_reports_of_before_overloads_and_tries_are_still_shown():
    report = build_e2e()
    report.details["legs"].pop()
    report.details.pop("anvil_tries")
    page = build_page(Reports(build_executor(), None, (report,), 0.0))
    assert "anvil 1.7.1" in page
    assert "In overload twice" not in page
    report.details["anvil"] = None
    assert "Anvil is flooded" not in build_page(Reports(build_executor(), None, (report,), 0.0))


def test_rates_are_drawn_by_shards_and_share_across_with_overload_and_anvil_beside_them():
    reports = [
        build_e2e(shards=1, cross=0.0),
        *(build_e2e(shards=2, cross=cross) for cross in (0.0, 0.1, 0.5)),
    ]
    for report in reports[1:]:
        report.details["legs"].pop()
        report.details["anvil"] = None
    root = ET.fromstring(draw_floods([report.details for report in reports]))
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert {"0% across", "10% across", "50% across", "in overload", "anvil, mined"} <= set(texts)
    assert (texts.count("transfer, 1 shard"), texts.count("transfer, 2 shards")) == (1, 1)
    assert (texts.count("21,000"), texts.count("20,160"), texts.count("9,000")) == (4, 1, 1)


def test_the_page_takes_every_number_of_shards_with_every_share_across_and_both_kinds():
    found = {(flood.kind, flood.shards, flood.cross) for flood in FLOODS.values()}
    shares = {1: (0.0,), 2: (0.0, 0.1, 0.5), 4: (0.0, 0.1, 0.5)}
    wanted = {
        (kind, shards, cross)
        for kind in ("transfer", "erc20")
        for shards, part in shares.items()
        for cross in part
    }
    assert found == wanted
    assert {name for name, flood in FLOODS.items() if flood.overload} == {"e2e-transfer", "e2e-erc20"}
    assert {"e2e", "executor", "commitment", *FLOODS} == set(CHOICES)


@pytest.mark.parametrize("name", RUNS)
def test_every_report_has_a_command_that_the_benches_take(name):
    options = build_parser().parse_args(list_arguments(name, 7.0))
    assert options.bench == RUNS[name]
    if name in FLOODS:
        assert (options.cross / 100, options.seconds) == (FLOODS[name].cross, 7.0)
        assert (options.shards, options.overload) == (FLOODS[name].shards, FLOODS[name].overload)


def build_current(name, seconds=20.0):
    flood = FLOODS[name]
    report = build_e2e(
        kind=flood.kind, shards=flood.shards, cross=flood.cross, seconds=seconds, overload=flood.overload
    )
    report.machine["commit"] = "abc"
    return report


def test_report_is_current_when_code_and_run_are_the_same(monkeypatch):
    monkeypatch.setattr(page_module, "is_same_code", lambda commit: commit == "abc")
    monkeypatch.setattr(page_module, "find_anvil", lambda: None)
    report = build_current("e2e-transfer-2-10")
    assert is_current("e2e-transfer-2-10", report, 0.0)
    assert not is_current("e2e-transfer-2-10", report, 8.0)
    assert not is_current("e2e-transfer-2-50", report, 0.0)
    report.machine["commit"] = "abd"
    assert not is_current("e2e-transfer-2-10", report, 0.0)


def test_report_without_anvil_is_not_current_where_anvil_is_there_now(monkeypatch, tmp_path):
    monkeypatch.setattr(page_module, "is_same_code", lambda _: True)
    monkeypatch.setattr(page_module, "find_anvil", lambda: tmp_path)
    with_anvil, without = build_current("e2e-erc20", 30.0), build_current("e2e-erc20", 30.0)
    without.details["anvil"] = None
    assert is_current("e2e-erc20", with_anvil, 0.0)
    assert not is_current("e2e-erc20", without, 0.0)
    across = build_current("e2e-erc20-2-0")
    across.details["anvil"] = None
    assert is_current("e2e-erc20-2-0", across, 0.0)


@pytest.mark.parametrize("is_forced", [False, True])
async def test_only_what_is_chosen_and_missing_is_measured(monkeypatch, tmp_path, is_forced, capsys):
    measured = []

    async def run(name, arguments):
        measured.append((name, arguments[0]))

    monkeypatch.setattr(page_module, "REPORTS", tmp_path)
    monkeypatch.setattr(page_module, "_run_bench", run)
    monkeypatch.setattr(page_module, "is_same_code", lambda commit: commit == "abc")
    monkeypatch.setattr(page_module, "find_anvil", lambda: None)
    kept = build_current("e2e-transfer-4-50")
    kept.machine["took_s"] = 120
    (tmp_path / "e2e-transfer-4-50.json").write_bytes(msgspec.json.encode(kept))
    await measure_missing(PageOptions(["e2e", "commitment"], is_forced=is_forced))
    wanted = [name for name in RUNS if name != "executor" and (is_forced or name != "e2e-transfer-4-50")]
    assert [name for name, _ in measured] == wanted
    assert {bench for _, bench in measured} == {"e2e", "commitment"}
    said = capsys.readouterr().err
    assert ("1 of them took 2 minutes" in said) == is_forced
    assert (tmp_path / "recovery.json").exists()


def test_the_page_of_a_busy_machine_says_that_it_proves_nothing():
    page = build_page(Reports(build_executor(alu=1.1), None, (), 0.0))
    assert "machine was busy" in page
    assert "has not been run" in page
    assert "recovers a sender in" not in page


def test_tables_have_as_many_cells_as_columns():
    page = build_page(Reports(build_executor(), build_commitment(), (build_e2e(),), 31.5))
    width = 0
    for line in page.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        width = width or line.count("|")
        assert line.count("|") == width, line


def test_plots_are_sound_svg_with_a_bar_per_part_and_the_same_bytes_again():
    groups = [Group("a < b", (Bar((1.0, 2.0), "3 & more", (0, 1)), Bar((0.5,), "half")))]
    drawn = draw_bars("title", ("one", "two"), groups, (Line(2.5, "limit"),))
    assert drawn == draw_bars("title", ("one", "two"), groups, (Line(2.5, "limit"),))
    root = ET.fromstring(drawn)
    assert len(root.findall(f"{SVG}rect")) == 1 + 2 + 3
    assert [text.text for text in root.findall(f"{SVG}text")][-1] == "limit"
    assert "3 & more" in {text.text for text in root.findall(f"{SVG}text")}


def test_reports_are_read_back_and_a_broken_one_is_named(tmp_path):
    (tmp_path / "executor.json").write_bytes(msgspec.json.encode(build_executor()))
    (tmp_path / "recovery.json").write_text('{"us": 30.5}')
    found = read_reports(tmp_path)
    assert found.executor is not None
    assert (found.executor.bench, found.commitment, found.recovery_us) == ("executor", None, 30.5)
    (tmp_path / "commitment.json").write_text("{}")
    with pytest.raises(PageError, match=r"commitment\.json.*try:"):
        read_reports(tmp_path)


def test_the_committed_page_is_the_one_its_reports_give(root):
    folder = root / "docs" / "performance"
    reports = read_reports(folder)
    if reports.executor is None:
        pytest.skip("no reports in docs/performance")
    page = write_page(PageParts(reports, tuple(draw_plots(reports))))
    assert page == (root / "docs" / "performance.md").read_text()
    for name, drawn in draw_plots(reports).items():
        assert drawn == (root / "docs" / "plots" / name).read_text(), name
