"""Options: where each comes from, which source wins, and what is said of a bad one."""

from pathlib import Path

import pytest

from node.config import (
    Options,
    check_name,
    get_default_name,
    get_home,
    get_name_flag,
    read_file,
    resolve_options,
)
from shardyard.errors import ConfigError


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "network.toml"
    path.write_text('shards = 3\nvalidators = 7\nbalance = "5ether"\n')
    return path


def test_flag_beats_environment_beats_file_beats_default(config_file: Path) -> None:
    environ = {"SHARDYARD_SHARDS": "5", "SHARDYARD_VALIDATORS": "6"}
    options, origin = resolve_options({"shards": 8, "seed": None}, environ, config_file)
    assert (options.shards, options.validators, options.balance, options.seed) == (8, 6, "5ether", 0)
    assert origin["shards"] == "flag"
    assert origin["validators"] == "environment"
    assert origin["balance"] == str(config_file)
    assert origin["seed"] == "default"


def test_file_in_the_working_directory_is_taken_unless_another_is_given(
    tmp_path: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHARDYARD_NAME", raising=False)
    (tmp_path / "shardyard.toml").write_text('name = "here"\nshards = 2\n')
    assert resolve_options({}, {}, None)[0].shards == 2
    assert resolve_options({}, {}, config_file)[0].shards == 3
    assert get_default_name() == "here"
    monkeypatch.setenv("SHARDYARD_NAME", "there")
    assert get_default_name() == "there"


def test_advice_names_the_network_unless_every_shell_means_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHARDYARD_NAME", raising=False)
    assert (get_name_flag("dev"), get_name_flag("foo")) == ("", " --name foo")
    monkeypatch.setenv("SHARDYARD_NAME", "foo")
    assert (get_name_flag("dev"), get_name_flag("foo")) == (" --name dev", " --name foo")
    monkeypatch.delenv("SHARDYARD_NAME")
    (tmp_path / "shardyard.toml").write_text("name = ")
    assert get_name_flag("dev") == " --name dev"


@pytest.mark.parametrize(
    ("key", "nearest"), [("shard", "shards"), ("portbase", "port_base"), ("Validators", "validators")]
)
def test_unknown_key_names_the_nearest_one(tmp_path: Path, key: str, nearest: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f"{key} = 1\n")
    with pytest.raises(ConfigError, match=rf"bad\.toml: unknown key '{key}'; try: {nearest}$"):
        read_file(path)


def test_unknown_variable_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"^SHARDYARD_EXECUTOR: unknown key 'executor'; try: executors$"):
        resolve_options({}, {"SHARDYARD_EXECUTOR": "2"}, None)


def test_key_like_no_other_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="known keys: name, shards, nodes_per_shard"):
        resolve_options({}, {"SHARDYARD_ZZZZ": "2"}, None)


def test_variables_of_data_nodes_tests_and_tracebacks_are_no_options() -> None:
    others = ("HOME", "NODE", "DEBUG", "FIXTURES", "SCHEDULE", "SCHEDULES")
    options, _ = resolve_options({}, {"PATH": "x", **{f"SHARDYARD_{other}": "1" for other in others}}, None)
    assert options == Options()


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("SHARDYARD_SHARDS", "four", "SHARDYARD_SHARDS: got 'four', expected a whole number"),
        ("SHARDYARD_SHARDS", "4.5", "SHARDYARD_SHARDS: got '4.5', expected a whole number"),
        ("SHARDYARD_SYNC_MEMPOOL", "maybe", "SHARDYARD_SYNC_MEMPOOL: got 'maybe', expected true or false"),
    ],
)
def test_wrong_type_names_the_variable_and_what_was_expected(variable: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve_options({}, {variable: text}, None)
    assert str(raised.value).startswith(words)
    assert "try: " in str(raised.value)


def test_wrong_type_in_a_file_names_file_and_key(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("balance = 3\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: balance: got 3, expected text"):
        resolve_options({}, {}, path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"shards": 0}, "shards: got 0, expected 1..256"),
        ({"shards": 257}, "shards: got 257, expected 1..256"),
        ({"port_base": 70_000}, "port_base: got 70000, expected 0..65000"),
        ({"seed": -1}, "seed: got -1, expected 0..18446744073709551615"),
        ({"block_time_ms": 49}, "block_time_ms: got 49, expected 50..60000"),
        ({"preset": "devnt"}, "preset: got 'devnt', expected one of devnet, test, bench; try: devnet"),
        ({"nodes_per_shard": 5}, "nodes_per_shard: got 5, expected at most the 4 validators"),
        ({"followers": 17}, "followers: got 17, expected 0..16"),
        ({"broker": "rabbit"}, "broker: got 'rabbit', expected auto, embedded, mosquitto or a URL"),
    ],
)
def test_value_outside_its_range_is_refused(flags: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve_options(flags, {}, None)
    assert words in str(raised.value)


@pytest.mark.parametrize("name", ["", "-x", "Dev", "a.b", "../up", "a/b", "x" * 33])
def test_name_that_is_no_folder_and_no_topic_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 32 of a-z"):
        check_name(name)


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_file(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("shards = = 3\n")
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        read_file(tmp_path / "broken.toml")


def test_home_is_where_the_variable_says(home: Path) -> None:
    assert get_home() == home.resolve()


@pytest.mark.parametrize(
    "text", [b'name = "\xff"', b"shards = " + b"[" * 5000, b"shards = " + b"9" * 5000, b"shards = ]"]
)
def test_file_that_is_no_toml_is_refused_with_its_name(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "network.toml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"network\.toml: .*; try: "):
        read_file(path)
