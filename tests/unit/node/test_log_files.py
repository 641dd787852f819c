"""Log files: kept small while they are written to, with what was before them at hand."""

import asyncio
import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from functools import partial

import pytest

from node.cli import logs as logs_command
from node.cli.root import run
from node.config import Options
from node.launcher import log_files
from node.launcher.log_files import get_older, keep_small, rotate
from node.network import create_network

LIMIT = 1000


@pytest.fixture
def log(tmp_path):
    return tmp_path / "node.log"


def test_small_and_missing_files_are_left_alone(log):
    assert not rotate(log, LIMIT)
    log.write_bytes(b"x" * LIMIT)
    assert not rotate(log, LIMIT)
    assert log.stat().st_size == LIMIT
    assert not get_older(log).exists()


def test_a_writer_goes_on_at_the_new_end_and_only_the_newest_two_files_stay(log):
    with log.open("ab", 0) as writer:
        for letter in (b"a", b"b", b"c"):
            writer.write(letter * (LIMIT + 1))
            assert rotate(log, LIMIT)
            assert log.stat().st_size == 0
            assert get_older(log).read_bytes() == letter * (LIMIT + 1)
        writer.write(b"after")
    assert log.read_bytes() == b"after"
    assert sorted(path.name for path in log.parent.iterdir()) == ["node.log", "node.log.1"]


def test_lines_of_another_process_come_in_order_and_once(log):
    program = (
        "import sys\nfor number in range(20_000):\n    sys.stdout.write(f'{number}\\n'); sys.stdout.flush()"
    )
    found = b""
    with log.open("ab") as output:
        writer = subprocess.Popen([sys.executable, "-c", program], stdout=output)
    while writer.poll() is None:
        if rotate(log, LIMIT):
            found += get_older(log).read_bytes()
    numbers = [int(line) for line in (found + log.read_bytes()).split()]
    assert numbers == sorted(set(numbers))
    assert (
        numbers[-1] == 19_999 or not log.stat().st_size
    )  # what comes between the copy and the emptying may go
    assert get_older(log).exists()


def test_what_cannot_be_kept_is_not_emptied(log, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log.write_bytes(b"x" * (LIMIT + 1))
    monkeypatch.setattr(shutil, "copyfileobj", fail)
    with pytest.raises(OSError, match="No space left"):
        rotate(log, LIMIT)
    assert [path.name for path in log.parent.iterdir()] == ["node.log"]
    assert log.stat().st_size == LIMIT + 1


def test_what_is_written_in_part_only_is_not_emptied(log):
    program = (
        "import pathlib, resource, sys\n"
        "from node.launcher.log_files import rotate\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, {LIMIT}))\n"
        f"rotate(pathlib.Path(sys.argv[1]), {LIMIT})\n"
    )
    log.write_bytes(b"x" * 2 * LIMIT)
    done = subprocess.run(
        [sys.executable, "-c", program, str(log)], check=False, capture_output=True, text=True
    )
    assert "File too large" in done.stderr
    assert [path.name for path in log.parent.iterdir()] == ["node.log"]
    assert log.stat().st_size == 2 * LIMIT


async def test_files_are_looked_after_and_trouble_is_told_once(log, monkeypatch, caplog, eventually_async):
    monkeypatch.setattr(log_files, "CHECK_S", 0.001)
    bad = log.with_name("bad.log")
    looks = 0

    def look(path):
        nonlocal looks
        looks += 1
        if path == bad:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rotate(path, LIMIT)

    monkeypatch.setattr(log_files, "rotate", look)
    log.write_bytes(b"x" * (LIMIT + 1))
    watching = asyncio.create_task(keep_small([bad, log]))
    await eventually_async(lambda: looks >= 10)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    assert log.stat().st_size == 0
    assert [record.getMessage() for record in caplog.records] == [
        f"{bad}: it grows and cannot be rotated: [Errno 28] No space left on device; try: make room on its disk"
    ]


def test_readers_find_the_lines_before_the_file_was_emptied(log, capsys):
    write = partial(logs_command._print_line, name="mine", as_json=False)
    log.write_bytes(b"".join(b"line %d\n" % number for number in range(5)))
    sizes = logs_command._print_tails([log], 3, write)
    with log.open("ab") as writer:
        writer.write(b"line 5\n")
    assert rotate(log, 1)
    with log.open("ab") as writer:
        writer.write(b"line 6\n")
    logs_command._print_new_lines(log, sizes, write)
    logs_command._print_new_lines(log, sizes, write)
    printed = [line.split("line ")[1] for line in capsys.readouterr().out.splitlines()]
    assert printed == ["2", "3", "4", "5", "6"]
    logs_command._print_tails([log], 2, write)
    printed = [line.split("line ")[1] for line in capsys.readouterr().out.splitlines()]
    assert printed == ["5", "6"]


def test_what_a_node_advises_is_for_its_network_and_json_is_as_it_was_written(home, capsys):
    made = create_network(home / "mine", Options(name="mine", shards=1, seed=1))
    words = "block 7: the log lacks its state; try: shardyard audit, then shardyard up --fresh"
    line = json.dumps({"time": "2026-01-02T03:04:05.678Z", "level": "error", "message": words})
    made.get_log_path("shard-0-0").write_text(line + "\n")
    assert run(["logs", "shard-0-0", "--name", "mine"]) == 0
    told = capsys.readouterr().out
    assert told.endswith("try: shardyard audit --name mine, then shardyard up --fresh --name mine\n")
    assert run(["logs", "shard-0-0", "--name", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"node": "shard-0-0", "line": line}
