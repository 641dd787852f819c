"""What node processes have in common: whose data they take and when, and in which order they end."""

import asyncio

import pytest

from node import runtime
from node.admission import Admission
from node.config import Options
from node.network import create_network
from node.runtime import open_node_data, run_unless_ended, run_until_ended, take_node_data
from node.storage.data_dir import DataDirBusyError
from shardyard.ids import BEACON


@pytest.fixture
def network(tmp_path):
    return create_network(tmp_path / "net", Options(name="net"))


async def test_a_process_that_is_about_to_leave_is_waited_for(network, caplog, eventually_async):
    caplog.set_level("DEBUG")
    leaving = open_node_data(network, "beacon-0", BEACON)
    taking = asyncio.create_task(take_node_data(network, "beacon-0", BEACON, asyncio.Event()))
    await eventually_async(lambda: caplog.text.count("has it open") > 2)
    assert not taking.done()
    leaving.close()
    with await asyncio.wait_for(taking, 5) as data:
        assert data.path == network.get_data_dir("beacon-0")


async def test_one_that_stays_is_named(network, monkeypatch):
    monkeypatch.setattr(runtime, "LEAVE_S", 0.1)
    with open_node_data(network, "beacon-0", BEACON), pytest.raises(DataDirBusyError, match="has it open"):
        await take_node_data(network, "beacon-0", BEACON, asyncio.Event())


async def test_who_is_told_to_end_waits_for_nobody(network):
    ended = asyncio.Event()
    ended.set()
    with open_node_data(network, "beacon-0", BEACON), pytest.raises(DataDirBusyError):
        await asyncio.wait_for(take_node_data(network, "beacon-0", BEACON, ended), 1)


async def test_what_was_asked_is_answered_while_everything_still_runs():
    ended, told = asyncio.Event(), []

    async def part():
        try:
            await asyncio.Event().wait()
        finally:
            told.append("part ended")

    async def close():
        told.append("closed")

    running = asyncio.create_task(run_until_ended(ended, part(), close=close))
    await asyncio.sleep(0)
    ended.set()
    await asyncio.wait_for(running, 5)
    assert told == ["closed", "part ended"]


async def test_a_part_that_fails_ends_all_and_its_error_is_raised():
    async def fail():
        raise OSError("the disk is gone")

    async def part():
        await asyncio.Event().wait()

    with pytest.raises(OSError, match="the disk is gone"):
        await asyncio.wait_for(run_until_ended(asyncio.Event(), part(), fail()), 5)


async def test_work_before_the_run_ends_with_the_process():
    ended, told = asyncio.Event(), []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            told.append("work ended")

    working = asyncio.create_task(run_unless_ended(ended, work()))
    await asyncio.sleep(0)
    ended.set()
    await asyncio.wait_for(working, 5)
    assert told == ["work ended"]


async def test_work_before_the_run_is_done_or_fails_by_itself():
    done = []

    async def work(error=None):
        done.append(error)
        if error:
            raise error

    await asyncio.wait_for(run_unless_ended(asyncio.Event(), work()), 5)
    with pytest.raises(OSError, match="the disk is gone"):
        await asyncio.wait_for(run_unless_ended(asyncio.Event(), work(OSError("the disk is gone"))), 5)
    assert len(done) == 2


async def test_who_asks_after_admission_has_ended_is_told_so_at_once():
    admission = Admission(core=None, mempool=None, journal=None, on_accepted=lambda *_: None)
    running = asyncio.create_task(admission.run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    (answer,) = await asyncio.wait_for(admission.submit([b"\x02"]), 5)
    assert "stopping" in answer.message
