"""A network on disk: made once, reopened as it is, refused in another shape with the two ways out."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from node.config import Options
from node.network import (
    MAX_SOCKET_PATH_BYTES,
    Network,
    NetworkMissingError,
    NetworkUnreadableError,
    create_network,
    get_local_validators,
    is_taken,
    open_network,
    open_or_create,
    parse_node,
    parse_wei,
    write_json,
)
from shardyard.errors import ConfigError
from shardyard.ids import BEACON, ShardId

SMALL = Options(name="small", shards=2, validators=4, nodes_per_shard=2, seed=7)


@pytest.fixture
def network(home: Path) -> Network:
    return create_network(home / "small", SMALL)


def test_same_seed_makes_the_same_network(home: Path, network: Network) -> None:
    again = create_network(home / "again", msgspec.structs.replace(SMALL))
    assert again.genesis == network.genesis
    assert again.directory == network.directory
    other = create_network(home / "other", msgspec.structs.replace(SMALL, seed=8))
    assert other.genesis.network != network.genesis.network


def test_keys_are_for_their_owner_alone(network: Network) -> None:
    assert (network.root / "keys").stat().st_mode & 0o777 == 0o700
    files = list((network.root / "keys").iterdir())
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_opened_network_is_the_created_one(network: Network) -> None:
    assert open_network(network.root) == network


def test_other_parameters_are_refused_with_the_two_ways_out(network: Network) -> None:
    wanted = msgspec.structs.replace(SMALL, shards=3)
    with pytest.raises(ConfigError, match=r"has shards = 2, not 3; try: --fresh .* or --name"):
        open_or_create(network.root, wanted, given={"shards"})
    assert open_network(network.root).options.shards == 2


def test_parameters_that_were_not_given_are_taken_from_the_network(network: Network) -> None:
    opened = open_or_create(network.root, Options(name="small", port_base=0), given={"name", "port_base"})
    assert opened.options.shards == 2
    assert opened.options.port_base == 0


def test_data_of_another_format_is_refused_with_the_two_ways_out(network: Network) -> None:
    stamp = json.loads((network.root / "network.json").read_text())
    (network.root / "network.json").write_text(json.dumps({**stamp, "format": 99}))
    with pytest.raises(
        NetworkUnreadableError,
        match=r"got data format 99, expected 3; try: shardyard up --fresh --name small, or another --name",
    ):
        open_network(network.root)


def test_genesis_of_another_network_is_refused(home: Path, network: Network) -> None:
    other = create_network(home / "other", msgspec.structs.replace(SMALL, seed=8))
    (network.root / "genesis.bin").write_bytes((other.root / "genesis.bin").read_bytes())
    with pytest.raises(NetworkUnreadableError, match=r"not the one of network\.json"):
        open_network(network.root)


def test_network_that_lacks_a_file_is_damaged_and_still_ours(network: Network) -> None:
    (network.root / "genesis.bin").unlink()
    with pytest.raises(
        NetworkUnreadableError,
        match=r"damaged network files \(no genesis\.bin\); try: shardyard up --fresh --name small",
    ):
        open_network(network.root)


@pytest.mark.parametrize("name", ["network.json", "genesis.bin", "directory.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'{"format": 3}', b'{"a": 1}', b"\xff"])
def test_network_with_a_file_of_nonsense_is_unreadable_and_still_ours(
    network: Network, name: str, content: bytes
) -> None:
    (network.root / name).write_bytes(content)
    with pytest.raises(NetworkUnreadableError, match=r"try: shardyard up --fresh --name small, or another"):
        open_network(network.root)


@pytest.mark.parametrize(
    ("name", "content", "got"),
    [
        ("shard-0-0.key", b"", "an empty file, expected 64 hexadecimal digits"),
        (
            "shard-0-0.key",
            b"xy" * 32,
            "64 characters that are something else, expected 64 hexadecimal digits",
        ),
        (
            "shard-0-0.key",
            b"ab" * 31,
            "62 characters that are something else, expected 64 hexadecimal digits",
        ),
        ("shard-0-0.key", b"ab" * 32, "another key, expected the one of directory.json"),
        ("shard-0-0.key", b"\xff", "bytes that are no text, expected 64 hexadecimal digits"),
        ("shard-0-0.key", None, "no such file, expected 64 hexadecimal digits"),
        ("validators.json", b"{", "1 characters that are something else, expected 8 secrets of 64 hex"),
        ("validators.json", b"[]", "2 characters that are something else, expected 8 secrets of 64 hex"),
        ("validators.json", b"[1, 2]", "6 characters that are something else, expected 8 secrets of 64 hex"),
        (
            "validators.json",
            json.dumps(["00" * 32] * 8).encode(),
            "another secret of validator 0, expected the one",
        ),
        (
            "validators.json",
            json.dumps(["ab"] * 8).encode(),
            "another secret of validator 0, expected the one",
        ),
        ("validators.json", None, "no such file, expected 8 secrets of 64 hexadecimal digits"),
        ("broker.json", b"[]", "2 characters that are something else, expected a password for every node"),
        (
            "broker.json",
            b"{}",
            "none for beacon-0, launcher, observer, shard-0-0, shard-0-1, shard-1-0, shard-1-1",
        ),
        ("broker.json", None, "no such file, expected a password for every node and the observer"),
    ],
)
def test_damaged_key_file_is_named_with_what_was_got_and_nothing_of_it(
    network: Network, name: str, content: bytes | None, got: str
) -> None:
    path = network.root / "keys" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    read: dict[str, Callable[[], object]] = {
        "validators.json": lambda: network.read_validator_secrets(ShardId(0), (0, 2)),
        "broker.json": network.read_broker_passwords,
        "shard-0-0.key": lambda: network.read_node_key("shard-0-0"),
    }
    with pytest.raises(NetworkUnreadableError) as raised:
        read[name]()
    told = str(raised.value)
    assert told.startswith(f"{path}: got {got}")
    assert "; try: put back a copy of it, or shardyard up --fresh --name small" in told
    assert not content or len(content) < 32 or content.decode()[2:32] not in told


def test_folder_of_somebody_else_is_left_alone(home: Path) -> None:
    (home / "mine").mkdir()
    (home / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not by a network of ours, and is left alone") as raised:
        open_or_create(home / "mine", Options(name="mine"), given=set())
    assert not isinstance(raised.value, NetworkMissingError)
    assert [path.name for path in (home / "mine").iterdir()] == ["thesis.txt"]


def test_missing_network_says_how_to_make_one(home: Path) -> None:
    with pytest.raises(NetworkMissingError, match="try: shardyard up --name absent"):
        open_network(home / "absent")


def test_failed_creation_leaves_nothing_behind(home: Path) -> None:
    with pytest.raises(ConfigError, match="amount"):
        create_network(home / "bad", msgspec.structs.replace(SMALL, balance="a lot"))
    assert list(home.iterdir()) == []


def test_replicas_share_a_committee_without_overlap(network: Network) -> None:
    assert get_local_validators(network, "shard-0-0") == (0, 2)
    assert get_local_validators(network, "shard-0-1") == (1, 3)
    assert get_local_validators(network, "beacon-0") == tuple(range(8))


def test_follower_is_a_replica_more_and_has_no_keys(home: Path) -> None:
    made = create_network(home / "followed", msgspec.structs.replace(SMALL, name="followed", followers=1))
    assert [node for node in made.nodes if node.startswith("shard-1")] == [
        "shard-1-0",
        "shard-1-1",
        "shard-1-2",
    ]
    assert get_local_validators(made, "shard-1-1") == (1, 3)
    assert get_local_validators(made, "shard-1-2") == ()
    (made.root / "keys" / "validators.json").unlink()
    assert made.read_validator_secrets(BEACON, ()) == {}


def test_node_ids_name_chain_and_replica() -> None:
    assert parse_node("shard-2-1") == (2, 1)
    assert parse_node("beacon-0") == (BEACON, 0)


def test_folder_that_is_empty_is_no_network(home: Path) -> None:
    (home / "small").mkdir()
    assert not is_taken(home / "small")
    with pytest.raises(NetworkMissingError, match="try: shardyard up --name small"):
        open_network(home / "small")
    assert open_or_create(home / "small", SMALL, given=set()).options.shards == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"shards": 4}', b"\xff"])
def test_damaged_endpoints_are_told_from_those_of_a_network_that_never_ran(
    network: Network, content: bytes
) -> None:
    with pytest.raises(NetworkMissingError, match="has never been started"):
        network.read_endpoints()
    (network.root / "endpoints.json").write_bytes(content)
    with pytest.raises(
        NetworkUnreadableError,
        match=r"endpoints\.json: got a damaged file .* try: shardyard down --name small",
    ):
        network.read_endpoints()


def test_file_is_on_disk_before_it_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "file.json", []
    write_json(path, 1)
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: seen.append((os.fstat(descriptor).st_size, path.read_text()))
    )
    write_json(path, [2, 3])
    assert seen == [(len(path.read_bytes()), "1\n")]


def test_control_sockets_are_where_the_launcher_put_them_whatever_the_shell_says(
    network: Network, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(home / "a"))
    recorded = network.record_run_dir()
    assert recorded.is_relative_to(home / "a")
    monkeypatch.setattr(tempfile, "tempdir", str(home / "b"))
    assert network.run_dir == recorded
    shutil.copytree(network.root, home / "copy")
    assert open_network(home / "copy").run_dir.is_relative_to(home / "b")
    network.forget_run_dir()
    assert network.run_dir.is_relative_to(home / "b")


def test_control_sockets_have_names_that_every_system_takes(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "é" * 30)
    path = network.get_control_path("shard-255-31")
    assert len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
    assert path.parent.parent.parent == Path("/tmp")


@pytest.mark.parametrize("block_time_ms", [50, 53])
def test_block_time_at_which_the_largest_message_never_fits_is_refused(
    home: Path, block_time_ms: int
) -> None:
    options = msgspec.structs.replace(SMALL, block_time_ms=block_time_ms)
    with pytest.raises(
        ConfigError,
        match=rf"block_time_ms: got {block_time_ms} .* expected 54 or more, .* try: --block-time 54ms",
    ):
        create_network(home / "fast", options)
    assert list(home.glob("fast")) == []


@pytest.mark.parametrize(("preset", "block_time_ms"), [("devnet", 54), ("test", 0), ("bench", 50)])
def test_block_time_at_which_the_largest_message_fits_is_taken(
    home: Path, preset: str, block_time_ms: int
) -> None:
    found = create_network(
        home / "fast", msgspec.structs.replace(SMALL, preset=preset, block_time_ms=block_time_ms)
    ).genesis.preset
    assert found.inbox_gas >= found.max_receipt_gas


def test_control_sockets_have_short_names(home: Path) -> None:
    network = create_network(home / ("n" * 32), msgspec.structs.replace(SMALL, name="n" * 32))
    assert len(str(network.get_control_path("shard-255-15"))) < 100


@pytest.mark.parametrize(
    ("text", "wei"),
    [
        ("0", 0),
        ("123", 123),
        ("1ether", 10**18),
        ("1 eth", 10**18),
        ("0.5ether", 5 * 10**17),
        (".5ether", 5 * 10**17),
        ("20gwei", 20 * 10**9),
        ("1_000", 1000),
        ("0.000000000000000001ether", 1),
    ],
)
def test_amounts(text: str, wei: int) -> None:
    assert parse_wei(text) == wei


@pytest.mark.parametrize(
    "text", ["9" * 5000, "0." + "0" * 5000 + "1ether", str(2**256), "1" + "0" * 60 + "ether"]
)
def test_amounts_beyond_256_bits_are_refused_in_few_words(text: str) -> None:
    with pytest.raises(ConfigError, match=r"amount: got .*, expected") as raised:
        parse_wei(text)
    assert len(str(raised.value)) < 200
    assert parse_wei(str(2**256 - 1)) == 2**256 - 1


def test_balances_beyond_256_bits_together_are_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"balance: got .* for each of 10 accounts, expected less than"):
        create_network(home / "rich", msgspec.structs.replace(SMALL, balance=str(2**255)))


@pytest.mark.parametrize(
    "text", ["", "ether", "-1ether", "1e18", "0.5", "1.5wei", "1 dollar", "0x10", "1..0ether", "٣"]
)
def test_amounts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected for example 1ether"):
        parse_wei(text)
