"""The performance page: every figure with its machine, nothing shown that was not measured, plots as sound SVG."""

from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest

from node.bench.executor import judge
from node.bench.page import PageError, read_reports
from node.bench.page_plots import draw_plots
from node.bench.page_text import PageParts, Reports, write_page
from node.bench.plots import Bar, Group, Line, draw_bars
from node.bench.report import BenchReport, build_report, equals
from tests.unit.node.test_bench_executor import build_row, build_run

SVG = "{http://www.w3.org/2000/svg}"


def build_executor(**fields: Any) -> BenchReport:
    rows = (build_row(variant="revm", threads=1), build_row(variant="in order", threads=1), build_row())
    return judge(build_run(*rows, **fields), (), "no pip here", 0.2)


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


def build_e2e() -> BenchReport:
    leg = {
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
    anvil = {"version": "anvil 1.7.1", "mined_tps": 9000.0, "cpu_us": 90.0, "cores_others": 0.1}
    details = {"options": {"kind": "transfer", "shards": 2, "cross": 0.1}, "legs": [leg], "anvil": anvil}
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
