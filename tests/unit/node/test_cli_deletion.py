"""Deleting a network: where it cannot be renamed, where it is a link, beside somebody else who deletes it, and for nothing."""

import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.cli import deletion
from node.cli.root import run
from node.config import Options
from node.launcher.lock import NetworkBusyError, find_holder, lock_network
from node.network import Network, create_network, open_network


@pytest.fixture
def network(home: Path) -> Network:
    return create_network(home / "mine", Options(name="mine", shards=1, seed=1))


def reset() -> int:
    return run(["reset", "--yes", "--name", "mine"])


@pytest.fixture
def refuse_to_rename(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let nothing be renamed from now on."""

    def set_error(number: int) -> None:
        def rename(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(Path, "rename", rename)

    return set_error


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EBUSY])
def test_network_that_cannot_be_renamed_is_deleted_where_it_is(
    home: Path, network: Network, refuse_to_rename: Callable[[int], None], number: int
) -> None:
    (network.root / "data" / "link").symlink_to(home)
    refuse_to_rename(number)
    assert reset() == 0
    assert list(home.iterdir()) == []


def test_deletion_in_place_that_is_cut_short_leaves_a_network_that_can_be_deleted(
    home: Path, network: Network, refuse_to_rename: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_rename(errno.EXDEV)
    unlink, gone = Path.unlink, []

    def interrupt(path: Path, **more: Any) -> None:
        if path.name == "network.json":
            raise KeyboardInterrupt
        gone.append(path.name)
        unlink(path, **more)

    with monkeypatch.context() as cut_short:
        cut_short.setattr(Path, "unlink", interrupt)
        assert reset() == 130
    assert [path.name for path in network.root.iterdir()] == ["network.json"]
    assert gone[-1] == "launcher.lock"
    assert reset() == 0
    assert list(home.iterdir()) == []


def test_network_that_may_not_be_moved_is_whole_and_leaves_nothing_beside_it(
    home: Path, network: Network, refuse_to_rename: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    refuse_to_rename(errno.EACCES)
    assert reset() == 1
    assert "Permission denied" in capsys.readouterr().err
    assert open_network(network.root) == network
    assert list(home.iterdir()) == [network.root.parent / "mine"]


def test_mount_that_is_empty_is_as_good_as_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_folder(folder: Path) -> None:
        raise OSError(errno.EBUSY, "busy", folder)

    monkeypatch.setattr(shutil, "rmtree", keep_folder)
    deletion._remove(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="busy"):
        deletion._remove(tmp_path)


def test_where_a_network_is_a_link_what_it_leads_to_goes_and_the_next_one_is_made_there(
    home: Path, network: Network
) -> None:
    (home / "elsewhere").mkdir()
    place = network.root.rename(home / "elsewhere" / "large")
    network.root.symlink_to(place)
    assert reset() == 0
    assert list((home / "elsewhere").iterdir()) == []
    assert network.root.is_symlink()
    assert reset() == 3
    create_network(network.root, network.options)
    assert (place / "network.json").exists()


def test_whoever_deletes_what_somebody_else_deletes_too_sees_to_it_that_all_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Python 3.13 an entry that is gone ends ``rmtree``."""
    doomed, rmtree, passes = tmp_path / "doomed", shutil.rmtree, []

    def lose(folder: Path) -> None:
        passes.append(folder)
        if len(passes) < 3:
            raise FileNotFoundError(errno.ENOENT, "gone", "some/file")
        rmtree(folder)

    monkeypatch.setattr(shutil, "rmtree", lose)
    (doomed / "data").mkdir(parents=True)
    deletion._remove(doomed)
    assert not doomed.exists()
    assert len(passes) == 3
    deletion._remove(doomed)


def test_network_that_is_being_deleted_is_not_called_running(
    home: Path, network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock_network(network.root, to_delete=True):
        holder = find_holder(network.root)
        assert holder is not None
        assert (holder.pid, holder.is_deleting) == (str(os.getpid()), True)
        with (
            pytest.raises(
                NetworkBusyError, match=f"is being deleted by process {os.getpid()}; try: the same"
            ),
            lock_network(network.root),
        ):
            pass
        assert reset() == 7
        assert f"is being deleted by process {os.getpid()}" in capsys.readouterr().err
        assert run(["node", "list", "--name", "mine"]) == 3
        assert "is not running" in capsys.readouterr().err
    assert find_holder(network.root) is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--block-time", "50ms"], "block_time_ms: got 50"),
        (["--balance", str(2**255)], "balance: got"),
        (["--balance", "a lot"], "amount: got"),
        (["--port-base", "8545", "--broker-port", "8545"], "broker_port: got 8545"),
    ],
)
def test_network_is_not_deleted_for_one_that_is_refused(
    home: Path, network: Network, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert run(["up", "--fresh", "--name", "mine", *words]) == 2
    assert told in capsys.readouterr().err
    assert open_network(network.root) == network
    assert list(home.iterdir()) == [home / "mine"]


def test_network_that_runs_is_not_replaced(
    home: Path, network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock_network(network.root):
        assert run(["up", "--fresh", "--name", "mine"]) == 7
    assert "network 'mine' is running" in capsys.readouterr().err
    assert open_network(network.root) == network
    assert list(home.iterdir()) == [home / "mine"]


def test_network_takes_the_place_of_the_one_that_was_there(home: Path, network: Network) -> None:
    def make_room() -> None:
        assert network.root.exists()
        assert deletion.delete_network(network.root)

    other = create_network(home / "mine", Options(name="mine", shards=2, seed=2), make_room=make_room)
    assert open_network(network.root) == other != network
    assert list(home.iterdir()) == [home / "mine"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("n\n", "the answer was no"), ("", "nobody is there to answer"), (None, "nobody is there to answer")],
)
def test_whoever_does_not_say_yes_keeps_the_network(
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str | None,
    reason: str,
) -> None:
    monkeypatch.setattr("sys.stdin", None if answer is None else io.StringIO(answer))
    assert run(["reset", "--name", "mine"]) == 1
    told = capsys.readouterr().err
    assert told.endswith(f"error: nothing is changed: {reason}\ntry: --yes, which does not ask\n")
    assert open_network(network.root).options == network.options


def test_nobody_is_asked_about_what_would_not_be_deleted_anyhow(
    home: Path, network: Network, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with lock_network(network.root):
        assert run(["reset", "--name", "mine"]) == 7
    told = capsys.readouterr().err
    assert told == "error: network 'mine' is running\ntry: shardyard down --name mine\n"
    (home / "other").mkdir()
    (home / "other" / "notes").touch()
    assert run(["reset", "--name", "other"]) == 1
    assert capsys.readouterr().err.startswith(
        f"error: {home / 'other'} is in use, but not by a network of ours"
    )
    assert open_network(network.root).options == network.options
