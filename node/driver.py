"""The driver: gives a machine its events and performs its effects, in order, for one chain in one process.

Two rules keep the machine honest. *Order*: what leaves the process (messages, finality, notices) waits in one FIFO outbox
behind the ``Persist`` it follows, so nothing is said that is not on disk; ``step`` itself never waits. *Lanes*: completions of
our own slow work are served before peers' messages, so a flood from outside cannot starve them (M1). The inbox of messages is
bounded, in number and bytes; what does not fit is dropped and counted, because the bus is only a hint and gaps are repaired.
While the outbox is full, messages are not taken from it.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from node.bus.endpoint import Bus
from node.signer import Signer
from shardyard import effects as fx
from shardyard.consensus.votes import Vote
from shardyard.errors import RemoteProtocolError
from shardyard.events import Event, MessageReceived, Started, TimerFired
from shardyard.ids import NodeId, ShardId, describe_shard
from shardyard.messages import MAX_MESSAGE_BYTES, Message, estimate_bytes

MAX_QUEUED_MESSAGES = 4096
MAX_QUEUED_BYTES = 8 * MAX_MESSAGE_BYTES
"""Memory of messages that wait, about: the largest may come from several peers at once."""
MAX_QUEUED_EFFECTS = 4096
"""Effects that may wait for the disk before peers' messages wait as well: what peers ask for must not fill the memory."""
MAX_MESSAGES_PER_TURN = 64
"""Messages handled before the loop gets to breathe (RPC runs in the same loop)."""

logger = logging.getLogger("shardyard.driver")


class Machine(Protocol):
    """What every machine offers: run to completion, no I/O (docs/protocol.md, M1)."""

    def step(self, event: Event, now_ms: int) -> Sequence[fx.Effect]:
        """Return the effects of ``event``."""
        ...


class Host(Protocol):
    """What a process does for its machine beside bus, log and signer. Shards execute here; the beacon only watches."""

    def start_build(self, effect: fx.Build) -> None:
        """Start to fill a block; answer with ``Driver.complete``."""
        ...

    def adopt(self, effect: fx.Adopt) -> None:
        """Name the state of a block that was built."""
        ...

    def start_execute(self, effect: fx.Execute) -> None:
        """Start to execute a block; answer with ``Driver.complete``."""
        ...

    async def finalise(self, effect: fx.Finalise) -> None:
        """Fold a final block in; runs in the outbox, after everything it rests on is on disk."""
        ...

    def discard(self, effect: fx.Discard) -> None:
        """Drop the state of a block."""
        ...

    def observe(self, notice: fx.Notice) -> None:
        """Show a notice to whoever watches."""
        ...


class RecordLog(Protocol):
    """The durable log of a chain."""

    def append_records(self, records: Sequence[fx.Record]) -> None:
        """Append without waiting for the disk."""
        ...

    async def sync(self) -> None:
        """Return when everything appended is on disk."""
        ...


class Driver:
    """Runs one machine. ``run`` returns only by cancellation or by an error that must stop the process."""

    def __init__(
        self,
        *,
        chain: ShardId,
        machine: Machine,
        bus: Bus,
        log: RecordLog,
        signer: Signer,
        get_time_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        on_records: Callable[[Sequence[fx.Record]], None] = lambda _: None,
        on_signed: Callable[[Sequence[Vote]], None] = lambda _: None,
    ) -> None:
        """``on_records`` sees every record on its way to the log, ``on_signed`` every vote that the signer gave."""
        self.chain = chain
        self.counters: Counter[str] = Counter()
        self._machine = machine
        self._bus = bus
        self._log = log
        self._signer = signer
        self._get_time_ms = get_time_ms
        self._on_records = on_records
        self._on_signed_votes = on_signed
        self._host: Host | None = None
        self._completions: deque[Event] = deque()
        self._messages: deque[tuple[MessageReceived, int]] = deque()
        """With what each takes in memory."""
        self._message_bytes = 0
        self._wakeup = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._outbox: asyncio.Queue[fx.Effect | Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._signing: set[asyncio.Task[None]] = set()

    def attach(self, host: Host) -> None:
        """Give the driver the host that executes for it."""
        self._host = host

    @property
    def _attached(self) -> Host:
        assert self._host is not None, "attach() a host before run()"
        return self._host

    def complete(self, event: Event) -> None:
        """Hand over the result of slow work; served before messages."""
        self._completions.append(event)
        self._wakeup.set()

    def receive(self, sender: NodeId, chain: ShardId, message: Message) -> None:
        """Hand over a peer's message; dropped and counted when the inbox is full."""
        size = estimate_bytes(message)
        if len(self._messages) >= MAX_QUEUED_MESSAGES or self._message_bytes + size > MAX_QUEUED_BYTES:
            self.counters["messages_dropped"] += 1
            return
        self._message_bytes += size
        self._messages.append((MessageReceived(sender, chain, message), size))
        self._wakeup.set()

    def enqueue(self, work: Callable[[], Awaitable[None]]) -> None:
        """Put ``work`` into the outbox, behind everything that is there."""
        self._outbox.put_nowait(work)

    async def run(self) -> None:
        """Drive the machine until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._drain_outbox(), name=f"{describe_shard(self.chain)}-outbox")
            group.create_task(self._step_events(), name=f"{describe_shard(self.chain)}-machine")

    async def _step_events(self) -> None:
        try:
            self._step(Started())
            while True:
                await self._wakeup.wait()
                self._wakeup.clear()
                for _ in range(MAX_MESSAGES_PER_TURN):
                    if self._completions:
                        self._step(self._completions.popleft())
                    elif self._messages and self._outbox.qsize() < MAX_QUEUED_EFFECTS:
                        event, size = self._messages.popleft()
                        self._message_bytes -= size
                        self._step(event)
                    else:
                        break
                else:
                    self._wakeup.set()
                await asyncio.sleep(0)
        finally:
            for timer in self._timers.values():
                timer.cancel()

    def _step(self, event: Event) -> None:
        try:
            effects = self._machine.step(event, self._get_time_ms())
        except RemoteProtocolError as error:
            # Machines refuse peers' mistakes themselves; one that slips through must not end the process.
            self.counters["remote_errors"] += 1
            logger.warning("%s: refused: %s", describe_shard(self.chain), error)
            return
        self.counters["events"] += 1
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: fx.Effect) -> None:
        match effect:
            case fx.SetTimer(name, delay_ms):
                self._set_timer(name, delay_ms)
            case fx.CancelTimer(name):
                if (timer := self._timers.pop(name, None)) is not None:
                    timer.cancel()
            case fx.Build():
                self._attached.start_build(effect)
            case fx.Adopt():
                self._attached.adopt(effect)
            case fx.Execute():
                self._attached.start_execute(effect)
            case _:
                self._outbox.put_nowait(effect)

    def _set_timer(self, name: str, delay_ms: int) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._timers[name] = loop.call_later(max(0, delay_ms) / 1000, self._fire, name)

    def _fire(self, name: str) -> None:
        self._timers.pop(name, None)
        self.complete(TimerFired(name))

    def _start_signing(self, effect: fx.Sign) -> None:
        # S5: a vote enters the signer's record only when what it rests on is in the log. Were it the other way round, a
        # crash could leave a FINAL on record for a block that nobody has: SKIP is forbidden then, and the chain is dead.
        task = asyncio.create_task(self._sign(effect), name=f"{describe_shard(self.chain)}-sign")
        self._signing.add(task)
        task.add_done_callback(self._on_signed)

    async def _sign(self, effect: fx.Sign) -> None:
        signed = await self._signer.sign(effect.requests)
        self._on_signed_votes(signed.votes)
        self.complete(signed)

    def _on_signed(self, task: "asyncio.Task[None]") -> None:
        self._signing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A signer that cannot write its record must not sign, and a node that cannot sign must stop.
            self.enqueue(_raiser(error))

    async def _drain_outbox(self) -> None:
        while True:
            item = await self._outbox.get()
            if self._messages:
                self._wakeup.set()  # they may have waited for room in here
            match item:
                case fx.Persist(records):
                    self._on_records(records)
                    self._log.append_records(records)
                    # Barriers that queued up meanwhile share one sync: the log is FIFO.
                    await self._log.sync()
                case fx.Broadcast(message):
                    with contextlib.suppress(ConnectionError):
                        await self._bus.publish(self.chain, message)
                case fx.Send(to, message):
                    with contextlib.suppress(ConnectionError):
                        await self._bus.send(to, self.chain, message)
                case fx.Sign():
                    self._start_signing(item)
                case fx.Finalise():
                    await self._attached.finalise(item)
                case fx.Discard():
                    self._attached.discard(item)
                case fx.Notice():
                    self._attached.observe(item)
                case _ if callable(item):
                    await item()
                case _:
                    raise AssertionError(f"effect {item!r} does not belong into the outbox")


def _raiser(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def fail() -> None:
        raise error

    return fail
