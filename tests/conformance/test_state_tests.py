"""Ethereum's state tests pass alone and inside parallel blocks, and the command tells passed, failed and skipped apart.

The excerpt beside this file always runs. The whole archive runs where it is: in the folder that SHARDYARD_FIXTURES names,
or in ../shared/fixtures beside the clone; of it, here only a sample, because all of it takes minutes.
"""

import json
from pathlib import Path

import msgspec
import pytest

from node.conformance.__main__ import main, run_mode
from node.conformance.archive import ArchiveError, Document, read_documents
from node.conformance.tally import PANIC, Report, Tally, decode_reports, load_skips
from shardyard import _native

VECTORS = Path(__file__).parent / "vectors"
SAMPLE = (
    "stCreate2/*",
    "stEIP1559/*",
    "stSelfBalance/*",
    "stTransactionTest/*",
    "stRevertTest/*",
    "*selfdestruct/*",
)


@pytest.fixture(scope="session")
def archive(fixtures: Path) -> Path:
    found = fixtures / "state_tests.tar.xz"
    if not found.is_file():
        pytest.skip("no state_tests.tar.xz among the fixtures")
    return found


def change(document: Document, **expected: str) -> bytes:
    """The document with other expectations in its first vector."""
    tests = json.loads(document.text)
    first = next(iter(tests.values()))
    next(iter(first["post"].values()))[0].update(expected)
    return json.dumps(tests).encode()


def read_one(name: str) -> Document:
    (document,) = read_documents(VECTORS, name)
    return document


@pytest.mark.parametrize("mode", ["alone", "parallel"])
def test_excerpt_passes(mode: str) -> None:
    tally = run_mode(list(read_documents(VECTORS)), mode, 2)
    assert tally.failures == []
    assert tally.passed > 30
    assert set(tally.skipped) <= {(name, reason) for name, reason in load_skips().items()}


@pytest.mark.parametrize("glob", SAMPLE)
def test_archive_passes_in_parallel_blocks(archive: Path, glob: str) -> None:
    tally = run_mode(list(read_documents(archive, glob)), "parallel", 3)
    assert tally.failures == []
    assert tally.parallel > 0


def test_parallel_vectors_were_executed_by_several_workers() -> None:
    document = read_one("log1_Caller.json")
    assert {report.workers for report in decode_reports(_native.run_state_tests(document.text, 2))} == {2}
    assert {report.workers for report in decode_reports(_native.run_state_tests(document.text, 0))} == {0}


@pytest.mark.parametrize("threads", [0, 2])
def test_wrong_root_is_a_failure(threads: int) -> None:
    wrong = change(read_one("log1_Caller.json"), hash="0x" + "11" * 32)
    (report,) = decode_reports(_native.run_state_tests(wrong, threads))
    assert "state root" in report.reason
    assert "11" * 32 in report.reason


@pytest.mark.parametrize("threads", [0, 2])
def test_wrong_logs_are_a_failure(threads: int) -> None:
    wrong = change(read_one("log1_Caller.json"), logs="0x" + "11" * 32)
    (report,) = decode_reports(_native.run_state_tests(wrong, threads))
    assert "logs hash" in report.reason


@pytest.mark.parametrize("threads", [0, 2])
def test_transaction_that_should_have_been_refused_is_a_failure(threads: int) -> None:
    wrong = change(read_one("log1_Caller.json"), expectException="TransactionException.SENDER_NOT_EOA")
    (report,) = decode_reports(_native.run_state_tests(wrong, threads))
    assert report.reason.startswith("executed, expected")


@pytest.mark.parametrize("threads", [0, 2])
def test_refusal_for_another_reason_is_a_failure(threads: int) -> None:
    wrong = change(read_one("lowFeeCap.json"), expectException="TransactionException.NONCE_IS_MAX")
    reports = decode_reports(_native.run_state_tests(wrong, threads))
    assert "expected TransactionException.NONCE_IS_MAX" in reports[0].reason


def test_encoding_and_fields_must_say_the_same() -> None:
    document = read_one("coinbaseT2.json")
    tests = json.loads(document.text)
    for test in tests.values():
        test["transaction"]["nonce"] = "0x07"
    reports = decode_reports(_native.run_state_tests(json.dumps(tests).encode(), 0))
    assert all("its fields are" in report.reason for report in reports)


def test_what_is_no_state_test_is_refused() -> None:
    with pytest.raises(_native.CoreError, match="state test"):
        _native.run_state_tests(b"[]", 0)
    with pytest.raises(ValueError, match="at least 2"):
        _native.run_state_tests(b"{}", 1)


def report_of(**changes: object) -> Report:
    whole = Report(test="t", fork="Cancun", data=0, gas=0, value=0, mode="alone", reason="", workers=0)
    return msgspec.structs.replace(whole, **changes)


def test_listed_failure_is_skipped_listed_success_passes_and_panic_never_is_skipped() -> None:
    tally = Tally("alone", {"known.json": "why"})
    tally.add("a/known.json", [report_of(), report_of(reason="state root"), report_of(reason=PANIC)])
    tally.add("a/other.json", [report_of(reason="state root")])
    assert (tally.vectors, tally.passed, tally.skipped.total(), len(tally.failures)) == (4, 1, 1, 2)
    assert tally.as_dict()["skips"] == [{"file": "known.json", "vectors": 1, "reason": "why"}]


def test_every_skip_has_a_reason() -> None:
    assert all(len(reason) > 20 for reason in load_skips().values())


def test_command_reports_and_fails_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(VECTORS), "--only", "stLogTests/*", "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert [(mode["mode"], mode["failed"]) for mode in report["modes"]] == [("alone", 0), ("parallel", 0)]
    (tmp_path / "wrong.json").write_bytes(change(read_one("log1_Caller.json"), hash="0x" + "11" * 32))
    assert main([str(tmp_path / "wrong.json"), "--mode", "parallel"]) == 1
    assert "FAILED parallel wrong.json" in capsys.readouterr().out


def test_command_says_what_is_wrong_with_its_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "absent.tar.xz")]) == 2
    (tmp_path / "torn.tar.xz").write_bytes(b"\xfd7zXZ\0torn")
    assert main([str(tmp_path / "torn.tar.xz")]) == 2
    assert main([str(VECTORS), "--only", "nothing*"]) == 2
    told = capsys.readouterr().err
    assert told.count("try: ") == 3
    with pytest.raises(ArchiveError, match="no archive"):
        list(read_documents(VECTORS / "README.md"))
