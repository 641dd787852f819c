"""The driver's order: what leaves the process, and what the signer records, waits for the disk; nothing else does.

And its bounds: what peers say may wait, but not without end.
"""

import asyncio
import sys

import msgspec
import pytest

from node.driver import Driver
from shardyard.blocks import Block
from shardyard.codec import encode
from shardyard.consensus.votes import Vote, VoteKind
from shardyard.crosslinks import Bundle, CrosslinkSubmission
from shardyard.effects import BlockRecord, Broadcast, Notice, Persist, SetTimer, Sign, SignRequest
from shardyard.events import Signed, Started, TimerFired
from shardyard.ids import BEACON, ZERO_HASH, Hash32, NodeId, ShardId, Slot
from shardyard.messages import (
    BlockRequest,
    BundleAnnouncement,
    FinalBlock,
    Proposal,
    RangeResponse,
    SubmitCrosslink,
    Votes,
    estimate_bytes,
)

REQUEST = SignRequest(VoteKind.FINAL, Slot(1), Hash32(b"h" * 32), 0, b"m" * 32)


class Disk:
    """A log whose sync is done when the test says so."""

    def __init__(self, story):
        self.story = story
        self.is_synced = asyncio.Event()

    def append_records(self, records):
        self.story.append("append")

    async def sync(self):
        await self.is_synced.wait()
        self.story.append("synced")


class Signer:
    def __init__(self, story):
        self.story = story

    async def sign(self, requests):
        self.story.append("sign")
        return Signed(
            tuple(Vote(item.kind, item.slot, item.block_hash, item.validator, bytes(96)) for item in requests)
        )


class Bus:
    def __init__(self, story):
        self.story = story

    async def publish(self, chain, message):
        self.story.append("publish")

    async def send(self, to, chain, message):
        self.story.append("send")


class Host:
    def __init__(self, story):
        self.story = story

    def observe(self, notice):
        self.story.append(f"notice {notice.kind}")


class Machine:
    """Persists, votes and sets a timer at once when it starts."""

    def __init__(self, story):
        self.story = story

    def step(self, event, now_ms):
        del now_ms
        match event:
            case Started():
                return [
                    Persist((BlockRecord,)),
                    Broadcast(Votes(())),
                    Sign((REQUEST,)),
                    SetTimer("tick", 1),
                    Notice("told", BEACON, {}),
                ]
            case Signed():
                return [Notice("signed", BEACON, {})]
            case TimerFired():
                self.story.append("tick")
        return []


async def test_s5_the_signer_is_asked_only_when_the_disk_has_what_the_vote_rests_on(eventually_async):
    story = []
    disk = Disk(story)
    driver = Driver(chain=BEACON, machine=Machine(story), bus=Bus(story), log=disk, signer=Signer(story))
    driver.attach(Host(story))
    running = asyncio.create_task(driver.run())
    try:
        await eventually_async(lambda: "tick" in story)
        assert story == ["append", "tick"], "timers and steps go on while the disk is busy; nothing leaves"
        disk.is_synced.set()
        await eventually_async(lambda: "notice signed" in story)
        assert story.index("synced") < story.index("publish") < story.index("sign")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert REQUEST.block_hash != ZERO_HASH


def fill(size):
    return BundleAnnouncement(Bundle(ZERO_HASH, ShardId(0), ShardId(1), (bytes(size),) * 2))


async def test_what_peers_say_waits_up_to_a_number_of_messages_and_of_bytes(monkeypatch, eventually_async):
    monkeypatch.setattr("node.driver.MAX_QUEUED_MESSAGES", 10)
    monkeypatch.setattr("node.driver.MAX_QUEUED_BYTES", 100_000)
    story, taken = [], []
    machine = Machine(story)
    driver = Driver(chain=BEACON, machine=machine, bus=Bus(story), log=Disk(story), signer=Signer(story))
    driver.attach(Host(story))
    for _ in range(5):
        driver.receive(NodeId("a"), BEACON, fill(20_000))
    assert driver.counters["messages_dropped"] == 3  # of 40 KB each, two fit
    for _ in range(9):
        driver.receive(NodeId("a"), BEACON, Votes(()))
    assert driver.counters["messages_dropped"] == 4
    monkeypatch.setattr(machine, "step", lambda event, now_ms: taken.append((event, now_ms)) or [])
    running = asyncio.create_task(driver.run())
    try:
        await eventually_async(lambda: len(taken) == 11)  # with ``Started``
        driver.receive(NodeId("a"), BEACON, fill(49_000))
        await eventually_async(lambda: len(taken) == 12)
        assert driver.counters["messages_dropped"] == 4
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


BLOCK = Block(None, None, bytes(70_000), b"", bytes(5000))
OUTBOX = (bytes(9000), bytes(11_000))
VOTES = tuple(Vote(VoteKind.NOTAR, Slot(slot), ZERO_HASH, 0, bytes(96)) for slot in range(100))


@pytest.mark.parametrize(
    "message",
    [
        Votes(VOTES),
        Proposal(BLOCK, bytes(50_000)),
        FinalBlock(BLOCK, None),
        BlockRequest(ShardId(0), (ZERO_HASH,) * 1000),
        RangeResponse(ShardId(0), (BLOCK, BLOCK), None),
        SubmitCrosslink(CrosslinkSubmission(None, (), (OUTBOX, (), OUTBOX), None)),
        BundleAnnouncement(Bundle(ZERO_HASH, ShardId(0), ShardId(1), (b"ab",) * 1000)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_whatever_a_message_carries_counts(message):
    """Not by its bytes on the wire alone: many small things take many times as much when they are decoded."""

    def weigh(part):
        parts = msgspec.structs.astuple(part) if isinstance(part, msgspec.Struct) else part
        held = sum(map(weigh, parts)) if isinstance(parts, tuple) else 0
        return sys.getsizeof(part) + held

    assert len(encode(message)) < estimate_bytes(message)
    assert 0.6 < estimate_bytes(message) / weigh(message) < 1.5
