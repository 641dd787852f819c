"""Every fuzz target takes real encodings, and refuses changed ones by its own errors only, fast."""

import random
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from node.lab import fuzz, fuzz_probe
from node.lab.fuzz import main
from node.lab.fuzz_probe import FindingError, Probe
from node.lab.fuzz_targets import TARGETS, Target, get_target

INPUTS = 150
MUST_HAVE = {
    "message", "struct", "proof", "certificate", "receipt", "submission", "body", "engine", "replica", "beacon",
    "envelope", "sealed", "topic", "control", "rpc", "ingress", "transaction", "config", "frames", "native",
}  # fmt: skip


def change(draw, data):
    """Change a few places: flip, cut, repeat, insert."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(changed) + 1)
        match draw.randrange(4):
            case 0 if changed:
                changed[place % len(changed)] ^= 1 << draw.randrange(8)
            case 1:
                del changed[place : place + draw.randint(1, 8)]
            case 2:
                changed[place:place] = changed[place : place + draw.randint(1, 16)]
            case _:
                changed[place:place] = draw.randbytes(draw.randint(1, 8))
    return bytes(changed)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_target_holds_for_real_and_changed_encodings(target):
    draw = random.Random(target.name)
    probe = Probe(target, 60.0)
    seeds = [data for data in target.list_seeds() if len(data) <= target.max_bytes]
    assert seeds, "a target without seeds explores nothing"
    for data in (b"", b"\x00", b"\xff" * 64, *seeds):
        probe.feed(data)
    for _ in range(INPUTS):
        probe.feed(change(draw, draw.choice(seeds)))


def test_every_place_where_bytes_come_in_is_a_target():
    assert {target.name for target in TARGETS} >= MUST_HAVE


def test_what_a_target_must_not_do_is_a_finding(monkeypatch):
    def raise_it(_data):
        raise KeyError("planted")

    with pytest.raises(KeyError):
        Probe(Target("t", "", lambda: raise_it, (ValueError,), list), 1.0).feed(b"")

    monkeypatch.setattr(fuzz_probe, "MAX_INPUT_CPU_S", 0.0)
    slow = Probe(Target("t", "", lambda: lambda _: sum(range(100_000)), (), list), 1.0)
    with pytest.raises(FindingError, match="of processor time"):
        slow.feed(b"")


def test_the_first_input_may_fill_caches_and_no_more(monkeypatch):
    times = iter([0.0, 5.0, 5.0, 5.1])
    monkeypatch.setattr(fuzz_probe.time, "thread_time", lambda: next(times))
    Probe(Target("t", "", lambda: lambda _: None, (), list), 1.0).feed(b"")
    assert next(times, None) is None, "it was measured twice"


def test_a_replay_that_shows_the_finding_again_says_so(tmp_path, capsys, monkeypatch):
    def fail(_data):
        raise KeyError("planted")

    path = tmp_path / "input"
    path.write_bytes(b"abc")
    monkeypatch.setattr(fuzz, "get_target", lambda name: Target(name, "", lambda: fail, (ValueError,), list))
    assert main(["--only", "message", "--replay", str(path)]) == fuzz.EXIT_MISSED
    told = capsys.readouterr()
    assert "3 bytes: KeyError: 'planted' (in fail, " in told.out
    assert not told.err


def test_a_finding_that_the_corpus_holds_is_told_and_ends_the_target(tmp_path, monkeypatch):
    """Every further process stumbles over the same input of the corpus and writes the same file."""

    def stumble(command, **_):
        (Path(command[-2]) / "findings" / "crash-1").write_bytes(b"x")
        return subprocess.CompletedProcess(command, 77, b"", b"ERROR: planted")

    monkeypatch.setattr(fuzz.subprocess, "run", stumble)
    for _ in range(2):  # the next run tells it again
        tally = fuzz.run_target(Target("t", "", lambda: lambda _: None, (), list), tmp_path, 60.0)
        (line,) = tally.findings
        assert "crash-1: ERROR: planted" in line


def test_a_process_that_grows_is_a_finding(monkeypatch):
    sizes = iter(range(0, 1 << 40, 1 << 28))
    monkeypatch.setattr(fuzz_probe, "_read_rss", lambda: next(sizes))
    probe = Probe(Target("t", "", lambda: lambda _: None, (), list), 0.0)
    for _ in range(2 * fuzz_probe.CHECK_EVERY - 1):
        probe.feed(b"")
    with pytest.raises(FindingError, match="grew by 256 MiB"):
        probe.feed(b"")


def test_an_input_is_replayed_alone(tmp_path, capsys):
    path = tmp_path / "input"
    path.write_bytes(b"[" * 1000)
    assert main(["--only", "control", "--replay", str(path)]) == 0
    assert "taken or refused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "nothing"], "expected one of message, struct"),
        (["--replay", "/nowhere"], "try: --only message --replay FILE"),
        (["--only", "message", "--replay", "/nowhere"], "try: a file below findings"),
    ],
)
def test_bad_options_are_told_with_what_to_try(arguments, words, capsys):
    assert main(arguments) == fuzz.EXIT_USAGE
    assert words in capsys.readouterr().err
    assert get_target("message").name == "message"


@pytest.mark.timeout(600)  # two processes import everything, instrumented, on a machine that may be busy
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has wheels for Linux on x86-64 only")
def test_a_guided_run_keeps_its_corpus_and_counts(tmp_path, capsys):
    state = tmp_path / "fuzz"
    assert main(["--minutes", "0.03", "--only", "topic", "--only", "message", "--state", str(state)]) == 0
    assert "no crash, no hang, no growth" in capsys.readouterr().out
    assert len(list((state / "topic" / "corpus").iterdir())) >= 4
    assert (state / "runs.jsonl").read_bytes().count(b"\n") == 1
