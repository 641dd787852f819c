"""The data directory: one process, one network, and the two ways out when it is another's."""

import os
import subprocess
import sys

import pytest

from node.storage import data_dir as module
from node.storage.data_dir import DataDirBusyError, LowDiskError, build_stamp, open_data_dir, verify_space
from shardyard.errors import ConfigError
from shardyard.ids import BEACON, Hash32, NodeId, ShardId

STAMP = build_stamp(Hash32(b"n" * 32), NodeId("shard-0-0"), ShardId(0))


def test_a_directory_is_created_private_and_opens_again(tmp_path):
    path = tmp_path / "data" / "shard-0-0"
    with open_data_dir(path, STAMP):
        assert path.stat().st_mode & 0o777 == 0o700
        assert all(entry.stat().st_mode & 0o077 == 0 for entry in path.iterdir())
    with open_data_dir(path, STAMP) as directory:
        assert directory.owner == b"n" * 32
        assert directory.signer_path.exists()


@pytest.mark.parametrize(
    "other",
    [
        build_stamp(Hash32(b"m" * 32), NodeId("shard-0-0"), ShardId(0)),
        build_stamp(Hash32(b"n" * 32), NodeId("shard-0-1"), ShardId(0)),
        build_stamp(Hash32(b"n" * 32), NodeId("shard-0-0"), BEACON),
    ],
)
def test_the_directory_of_another_is_refused_with_both_ways_out(tmp_path, other):
    with open_data_dir(tmp_path / "d", STAMP):
        pass
    with pytest.raises(ConfigError, match=r"--fresh.*--name"):
        open_data_dir(tmp_path / "d", other)


def test_a_directory_with_data_and_no_stamp_is_refused(tmp_path):
    (tmp_path / "d" / "blocks").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no stamp"):
        open_data_dir(tmp_path / "d", STAMP)


def test_a_damaged_stamp_is_refused(tmp_path):
    with open_data_dir(tmp_path / "d", STAMP):
        pass
    (tmp_path / "d" / "stamp.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged stamp"):
        open_data_dir(tmp_path / "d", STAMP)


def test_a_creation_that_was_cut_short_is_finished(tmp_path):
    with open_data_dir(tmp_path / "d", STAMP):
        pass
    (tmp_path / "d" / "stamp.json").rename(tmp_path / "d" / ".stamp.json")
    with open_data_dir(tmp_path / "d", STAMP) as directory:
        assert directory.stamp == STAMP


def test_a_second_process_is_refused(tmp_path):
    with open_data_dir(tmp_path / "d", STAMP), pytest.raises(DataDirBusyError, match=str(os.getpid())):
        open_data_dir(tmp_path / "d", STAMP)
    with open_data_dir(tmp_path / "d", STAMP):
        pass


def test_the_lock_ends_with_its_process(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from node.storage.data_dir import *; "
        "from shardyard.ids import *; "
        "open_data_dir(Path(sys.argv[1]), build_stamp(Hash32(b'n' * 32), NodeId('shard-0-0'), ShardId(0))); "
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "d")], check=False)
    with open_data_dir(tmp_path / "d", STAMP):
        pass


def test_incarnations_grow_even_when_the_clock_goes_back(tmp_path, monkeypatch):
    with open_data_dir(tmp_path / "d", STAMP) as directory:
        first = directory.take_incarnation()
        monkeypatch.setattr(module.time, "time_ns", lambda: 5)
        second = directory.take_incarnation()
        third = directory.take_incarnation()
    assert first < second < third


def test_too_little_space_is_refused(tmp_path):
    verify_space(tmp_path, at_least=1)
    with pytest.raises(LowDiskError):
        verify_space(tmp_path, at_least=1 << 62)
