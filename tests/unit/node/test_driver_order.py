"""The driver's order: what leaves the process, and what the signer records, waits for the disk; nothing else does."""

import asyncio

from node.driver import Driver
from shardyard.consensus.votes import Vote, VoteKind
from shardyard.effects import BlockRecord, Broadcast, Notice, Persist, SetTimer, Sign, SignRequest
from shardyard.events import Signed, Started, TimerFired
from shardyard.ids import BEACON, ZERO_HASH, Hash32, Slot
from shardyard.messages import Votes

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
