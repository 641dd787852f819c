"""Benches: targets that decide the exit code, one line at the end."""

import json
import shutil
import subprocess

import pytest

from node.bench import report as report_module
from node.bench.__main__ import BENCHES, build_parser
from node.bench.commitment import LIMITS_US, Row, judge
from node.bench.native import NativeBenchError
from node.bench.report import (
    EXIT_MISSED,
    at_most,
    build_report,
    describe_commit,
    equals,
    finish,
    is_same_code,
)
from node.cli.load import parse_seconds, parse_share
from node.cli.root import CliError


def test_missed_target_is_named_and_fails_a_check(tmp_path, capsys):
    report = build_report(
        "some", "took 3 s", [at_most("time", 3.0, 2.0, "s"), equals("lost", 0, 0, "things")], {}
    )
    assert finish(report, tmp_path / "deep" / "report.json", is_check=True) == EXIT_MISSED
    assert finish(report, None, is_check=False) == 0
    written = json.loads((tmp_path / "deep" / "report.json").read_text())
    assert (written["held"], [target["held"] for target in written["targets"]]) == (False, [False, True])
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "some: took 3 s; TARGETS MISSED"
    assert "missed: time: got 3 s, target 2" in captured.err


def test_met_targets_pass_a_check():
    report = build_report("some", "took 1 s", [at_most("time", 1.0, 2.0, "s")], {})
    assert finish(report, None, is_check=True) == 0


def test_bench_that_measured_nothing_holds_nothing():
    assert not build_report("some", "", [], {}).held


def _commitment_row(what: str, *, threads: int = 1, block: int = 10_000, cpu_us: float = 1.0) -> Row:
    return Row(what, "hashes", "transaction", threads, block, 9.0, cpu_us)


def test_commitment_is_judged_by_the_largest_block_on_one_thread():
    rows = [_commitment_row(what) for what in LIMITS_US]
    beside = [
        _commitment_row(rows[0].what, block=10, cpu_us=50),
        _commitment_row(rows[0].what, threads=2, cpu_us=50),
    ]
    assert judge(rows + beside).held
    assert not judge([*rows, _commitment_row(rows[0].what, cpu_us=50)]).held


def test_commitment_without_a_judged_row_is_an_error():
    with pytest.raises(NativeBenchError, match="try:"):
        judge([_commitment_row("something else")])


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_takes_json_and_check(name):
    options = build_parser().parse_args([name, "--json", "x.json", "--check"])
    assert options.check
    assert options.json.name == "x.json"


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("250ms", 0.25), ("2m", 120), ("1.5", 1.5)])
def test_durations_are_read_as_people_write_them(text, seconds):
    assert parse_seconds(text, "duration") == seconds


@pytest.mark.parametrize(("text", "share"), [("20%", 0.2), ("0.3", 0.3), ("0", 0)])
def test_shares_are_read_as_people_write_them(text, share):
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "fast", "-1s", "10 x"])
def test_other_durations_are_refused_with_a_way_out(text):
    with pytest.raises(CliError, match=r"^drain: got .* try: --drain 30s"):
        parse_seconds(text, "drain")


@pytest.mark.parametrize("text", ["", "half", "120%", "-5%", "2"])
def test_other_shares_are_refused_with_a_way_out(text):
    with pytest.raises(CliError, match="try:"):
        parse_share(text)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    git = shutil.which("git")
    if git is None:
        pytest.skip("no git here")

    def run(*command):
        subprocess.run([git, "-C", str(tmp_path), *command], check=True, capture_output=True)

    run("init", "-q")
    run("config", "user.email", "a@example.org")
    run("config", "user.name", "a")
    (tmp_path / "docs").mkdir()
    for name in ("code.py", "docs/page.md", "README.md"):
        (tmp_path / name).write_text("one")
    run("add", "-A")
    run("commit", "-qm", "one")
    monkeypatch.setattr(report_module, "ROOT", tmp_path)
    return tmp_path, run


def test_code_is_the_same_while_only_documents_change(clone):
    folder, run = clone
    commit = describe_commit()
    assert is_same_code(commit)
    (folder / "docs" / "page.md").write_text("two")
    (folder / "README.md").write_text("two")
    assert describe_commit() == commit
    run("commit", "-qam", "two")
    assert describe_commit() != commit
    assert is_same_code(commit)


@pytest.mark.parametrize("name", ["code.py", "more.py"])
def test_changed_or_new_code_is_other_code(clone, name):
    folder, _ = clone
    commit = describe_commit()
    (folder / name).write_text("two")
    assert not is_same_code(commit)
    assert describe_commit() == f"{commit} with changes"
    assert not is_same_code(describe_commit())


@pytest.mark.parametrize("commit", ["", "0123456789ab"])
def test_report_of_an_unknown_commit_is_of_other_code(clone, commit):
    assert not is_same_code(commit)
