"""The command line as a whole: what it lists, what it answers to mistakes, and which exit code each way to fail has."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node.cli.root import COMMANDS, CliError, get_exit_code, run
from node.control import ControlError, NoAnswerError
from node.launcher.lock import NetworkBusyError
from node.launcher.ports import PortInUseError
from node.network import NetworkMissingError
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
