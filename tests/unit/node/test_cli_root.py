"""The command line as a whole: what it lists, what it answers to mistakes, and which exit code each way to fail has."""

import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from node.cli import load
from node.cli import network as networks
from node.cli.output import print_json
from node.cli.root import COMMANDS, CliError, cli, get_exit_code, run
from node.cli.session import Session
from node.config import Options
from node.control import ControlError, NoAnswerError
from node.launcher import launcher
from node.launcher.lock import NetworkBusyError, lock_network
from node.launcher.ports import PortInUseError
from node.load.run import LoadStoppedError
from node.network import Network, NetworkMissingError, NetworkUnreadableError, create_network, write_json
from shardyard.errors import ConfigError, ShardyardError

HELP_TARGET_S = 0.15
"""Measured 0.11 s; the test allows for a busy machine and looks at what is imported instead of at the clock."""


def test_help_lists_every_command_without_importing_one(capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import sys; from node.cli.root import run; code = run(['--help']);"
        "print(code, [m for m in sys.modules if m.startswith('node.cli.') and m not in"
        " {'node.cli.root', 'node.cli.output'}]"
        " + sorted({'asyncio', 'eth_account', 'shardyard._native', 'psutil'} & set(sys.modules)))"
    )
    started = time.monotonic()
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    assert time.monotonic() - started < 20 * HELP_TARGET_S
    assert told.splitlines()[-1] == "0 []"
    for command in COMMANDS:
        assert f" {command} " in told


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_table_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert f"shardyard {command}" in capsys.readouterr().out


def test_bare_command_is_asking_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["statsu"], "try: shardyard status"),
        (["tx", "sned"], "try: shardyard tx send"),
        (["node", "lst"], "try: shardyard node list"),
        (["zzzz"], "try: shardyard --help"),
        (["up", "--no-such-option"], "try: shardyard up --help"),
        (["tx", "send"], "try: shardyard tx send --help"),
        (["up", "--shards", "many"], "try: shardyard up --help"),
        (["up", "--block-time", "soon"], "try: shardyard up --help"),
    ],
)
def test_misspelt_command_line_is_usage_and_names_the_way_out(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], remedy: str
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == remedy


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ShardyardError("x"), 1),
        (CliError("x"), 1),
        (ConfigError("x"), 2),
        (NetworkMissingError("x"), 3),
        (NetworkUnreadableError("x"), 1),
        (ControlError("x"), 3),
        (NoAnswerError("x"), 3),
        (CliError("x", 4), 4),
        (CliError("x", 5), 5),
        (CliError("x", 6), 6),
        (PortInUseError("x"), 7),
        (NetworkBusyError("x"), 7),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: ShardyardError, code: int) -> None:
    assert get_exit_code(error) == code


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["down"],
        ["node", "list"],
        ["shard", "list"],
        ["block", "latest"],
        ["tx", "send", "--to", "1", "--value", "1"],
        ["tx", "status", "0x" + "00" * 32],
        ["explain", "0x" + "00" * 32],
        ["faucet", "1"],
        ["env"],
        ["logs"],
        ["reset", "--yes"],
        ["watch", "--count", "1"],
        ["doctor"],
    ],
)
def test_without_a_network_every_command_says_how_to_start_one(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run([*arguments, "--name", "absent"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "try: shardyard up --name absent"


def test_error_as_json_is_one_document_on_standard_error(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "--name", "absent", "--json"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["error"] == {
        "code": 3,
        "message": f"no network 'absent' at {home.resolve() / 'absent'}",
        "try": "shardyard up --name absent",
    }


def test_name_that_leaves_the_home_folder_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reset", "--yes", "--name", "../elsewhere"]) == 2
    assert "expected 1 to 32 of a-z" in capsys.readouterr().err


def test_reset_leaves_a_folder_of_somebody_else_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "mine").mkdir()
    (home / "mine" / "thesis.txt").write_text("years of work")
    assert run(["reset", "--yes", "--name", "mine"]) == 1
    assert "left alone" in capsys.readouterr().err
    assert (home / "mine" / "thesis.txt").exists()


@pytest.fixture
def network(home: Path) -> Network:
    return create_network(home / "mine", Options(name="mine", shards=1, seed=1))


def test_deletion_that_is_cut_short_is_finished_by_the_next_one(
    home: Path, network: Network, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(folder: Path, **_: Any) -> None:
        if "deleted" in str(folder):
            raise KeyboardInterrupt

    with monkeypatch.context() as cut_short:
        cut_short.setattr(shutil, "rmtree", interrupt)
        assert run(["reset", "--yes", "--name", "mine"]) == 130
    assert not network.root.exists()
    assert [path.name.rpartition("-")[0] for path in home.iterdir()] == [".mine.deleted"]
    assert run(["reset", "--yes", "--name", "mine"]) == 0
    assert list(home.iterdir()) == []
    assert run(["reset", "--yes", "--name", "mine"]) == 3


def test_network_that_runs_is_not_deleted(network: Network, capsys: pytest.CaptureFixture[str]) -> None:
    with lock_network(network.root):
        assert run(["reset", "--yes", "--name", "mine"]) == 7
    assert capsys.readouterr().err.endswith("network 'mine' is running\ntry: shardyard down --name mine\n")
    assert network.root.exists()


def test_deletion_waits_for_processes_that_are_still_leaving(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def answer_once(path: Path, _method: str, **_: Any) -> None:
        asked.append(path.stem)
        assert network.root.exists()
        if len(asked) > 1:
            raise ControlError("it is gone")

    monkeypatch.setattr(launcher, "ask", answer_once)
    assert run(["reset", "--yes", "--name", "mine"]) == 0
    assert asked == ["beacon-0", "beacon-0", "shard-0-0"]


def test_empty_folder_is_no_network(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "mine").mkdir()
    assert run(["reset", "--yes", "--name", "mine"]) == 3
    assert capsys.readouterr().err.endswith("try: shardyard up --name mine\n")


@pytest.mark.parametrize(
    ("encoding", "instead"), [("latin-1", b"?"), ("latin-1:namereplace", b"\\N{"), ("latin-1:ignore", b"")]
)
def test_output_of_a_character_that_the_terminal_does_not_have_is_no_failure(
    network: Network, encoding: str, instead: bytes
) -> None:
    told = subprocess.run(
        [sys.executable, "-c", "from node.cli import main; main()", "validator", "list", "--name", "mine"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    assert instead in told.stdout
    assert told.stderr == b""


def test_document_is_out_before_the_command_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written))
    print_json([1])
    assert json.loads(written.getvalue())["items"] == [1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--seed", "-1"],
        ["block", "watch", "--shard", "abc"],
        ["block", "watch", "--shard", "9" * 5000],
        ["block", "show", "9" * 5000],
        ["block", "prove", "9" * 5000, "file"],
        ["faucet", "1", "9" * 5000],
        ["fault", "heal", "9" * 5000],
        ["faucet", "9" * 5000, "1ether"],
        ["tx", "send", "--to", "1", "--from", "9" * 5000],
        ["tx", "send", "--to", "1", "--nonce", "-1"],
        ["tx", "send", "--to", "1", "--gas", "-5"],
        ["tx", "send", "--to", "1", "--timeout", "nan"],
        ["tx", "xsend", "--dst", "1", "--timeout", "-1"],
        ["tx", "wait", "0x" + "00" * 32, "--timeout", "nan"],
        ["tx", "wait", "0x" + "00" * 32, "--timeout", "inf"],
        ["load", "run", "--tps", "nan"],
        ["load", "run", "--tps", "inf"],
        ["load", "run", "--zipf", "nan"],
        ["load", "run", "--duration", "9" * 5000],
        ["load", "run", "--duration", "1s"],
        ["load", "run", "--duration", "1m", "--warm-up", "1m"],
    ],
)
def test_value_that_cannot_be_is_usage_in_few_words(
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.setattr(Session, "get_client", lambda *_: Mock())
    assert run([*arguments, "--name", "mine"]) == 2
    *_, message, remedy = capsys.readouterr().err.splitlines()
    assert message.startswith("error: ")
    assert len(message) < 300
    assert remedy.startswith("try: ")


@pytest.mark.parametrize(
    ("words", "at"),
    [
        ("latest", "latest"),
        ("7", "0x7"),
        ("0x7", "0x7"),
        ("0x" + "aB" * 32, "0x" + "aB" * 32),
        ("0x" + "00" * 31, None),
        ("0x" + "zz" * 32, None),
    ],
)
def test_block_is_named_by_tag_height_or_hash(
    network: Network, monkeypatch: pytest.MonkeyPatch, words: str, at: str | None
) -> None:
    client = Mock()
    client.request = Mock(return_value="0x")
    monkeypatch.setattr(Session, "get_client", lambda *_: client)
    code = run(["contract", "call", "0x" + "00" * 20, "f()", "--at", words, "--name", "mine"])
    assert code == (0 if at else 2)
    assert [call.args[2] for call in client.request.call_args_list] == ([at] if at else [])
    client.request = Mock(return_value=None)
    assert run(["block", "show", words, "--name", "mine"]) == (1 if at else 2)
    by = "eth_getBlockByHash" if at and len(at) == 66 else "eth_getBlockByNumber"
    assert [call.args[:2] for call in client.request.call_args_list] == ([(by, at)] if at else [])


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["call", "0x" + "11" * 20, "count()(uint256)"], ["eth_call", "eth_getCode"]),
        (["send", "0x" + "11" * 20, "increment()"], ["eth_getCode"]),
    ],
)
def test_calling_where_no_contract_is_says_so_and_sends_nothing(
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    asked: list[str],
) -> None:
    client = Mock()
    client.request = Mock(return_value="0x")
    monkeypatch.setattr(Session, "get_client", lambda *_: client)
    assert run(["contract", *words, "--shard", "1", "--name", "mine"]) == 1
    assert capsys.readouterr().err == (
        f"error: there is no contract at 0x{'11' * 20} on shard 1\n"
        "try: --shard with the shard that it was deployed on\n"
    )
    assert [call.args[0] for call in client.request.call_args_list] == asked


@pytest.mark.parametrize("name", ["genesis.bin", "endpoints.json"])
def test_damaged_files_are_no_mistake_of_who_asks(
    network: Network, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (network.root / name).write_bytes(b"{")
    assert run(["env", "--name", "mine"]) == 1
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("error", [LoadStoppedError("stopped"), asyncio.CancelledError()])
def test_load_that_is_interrupted_is_no_failure(
    network: Network, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    async def end(_: object) -> None:
        raise error

    write_json(network.root / "endpoints.json", {"shards": [{"shard": 0, "rpc": "http://127.0.0.1:1"}]})
    monkeypatch.setattr(Session, "ask_launcher", lambda *_: None)
    monkeypatch.setattr(load, "run_interruptibly", end)
    assert run(["load", "run", "--name", "mine"]) == 130
    assert list((network.root / "load").iterdir()) == []
    (network.root / "notes").mkdir()
    assert run(["load", "run", "--name", "mine", "--out", str(network.root / "notes")]) == 130
    assert (network.root / "notes").is_dir()


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Let the next command end with an error."""

    def set_error(error: Exception) -> None:
        monkeypatch.setattr(cli, "main", Mock(side_effect=error))

    return set_error


def test_error_that_nobody_foresaw_is_a_line_and_says_how_to_see_more(
    fail: Callable[[Exception], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SHARDYARD_DEBUG", raising=False)
    fail(ZeroDivisionError("two\nlines"))
    assert run(["status"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: unexpected ZeroDivisionError: two lines",
        "try: the same with SHARDYARD_DEBUG=1 shows the traceback",
    ]
    assert run(["status", "--json"]) == 1
    assert json.loads(capsys.readouterr().err)["error"]["code"] == 1
    monkeypatch.setenv("SHARDYARD_DEBUG", "1")
    assert run(["status"]) == 1
    assert capsys.readouterr().err.startswith("Traceback (most recent call last):")


def test_error_of_a_task_is_told_without_the_group_around_it(
    fail: Callable[[Exception], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fail(ExceptionGroup("tasks", [ExceptionGroup("tasks", [ConfigError("bad; try: good")])]))
    assert run(["status"]) == 2
    assert capsys.readouterr().err == "error: bad\ntry: good\n"


def test_version_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert document["shardyard"]


def test_options_in_force_and_their_origin(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHARDYARD_SHARDS", "6")
    assert run(["config", "show", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["options"]["shards"] == 6
    assert document["origin"]["shards"] == "environment"
    assert document["origin"]["validators"] == "default"


def test_config_validate_names_the_nearest_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.toml"
    path.write_text("shard = 3\n")
    assert run(["config", "validate", str(path)]) == 2
    assert capsys.readouterr().err.endswith("unknown key 'shard'\ntry: shards\n")


@pytest.mark.parametrize(
    "line",
    [
        "block_time_ms = 53",
        'balance = "much"',
        "broker_port = 8547",
        'broker = "mqtt://alice:secret@broker"',
    ],
)
def test_config_validate_refuses_what_up_would(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
) -> None:
    monkeypatch.setattr(networks, "_start_detached", None)
    for key in ("PORT_BASE", "BROKER_PORT"):
        monkeypatch.delenv(f"SHARDYARD_{key}", raising=False)
    path = tmp_path / "net.toml"
    path.write_text(f"{line}\n")
    assert run(["config", "validate", str(path)]) == 2
    told = capsys.readouterr().err
    assert run(["up", "-d", "--fresh", "-c", str(path)]) == 2
    assert capsys.readouterr().err.splitlines()[0] == told.splitlines()[0]
    assert not list(home.iterdir())
