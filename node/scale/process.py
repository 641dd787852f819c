"""A process of a scaled network: the real machine of its chain behind processors that take their time.

The driver's rules are those of a real process: what leaves waits behind the ``Persist`` it follows, a signature waits for its
record on disk, completions go before messages. Nothing crashes here and nothing lies; that is ``node.sim``'s matter.
"""

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from crosslink.beacon import BeaconMachine
from node.bench.projection import SERIAL_SHARE
from node.scale.costs import Costs
from node.scale.execution import CountedShard, Executed, encode_body
from node.scale.meter import EXECUTION, HANDLE, RECOVERY, SIGNING, Meter, MeteredCrypto
from node.scale.server import Finish, MicroClock, Processor, Work
from node.sim.mock_crypto import MockCrypto, sign_mock
from node.sim.scenario import GENESIS_MS
from shards.replica import ShardReplica
from shardyard import effects as fx
from shardyard import events as ev
from shardyard.blocks import Block, FinalityProof
from shardyard.consensus.signer import SignerState
from shardyard.consensus.simplex import SimplexEngine
from shardyard.consensus.votes import Vote
from shardyard.crosslinks import CrosslinkSubmission
from shardyard.genesis import Genesis
from shardyard.ids import BEACON, Hash32, NodeId, ShardId
from shardyard.messages import Message, SubmitCrosslink

CRYPTO = MockCrypto()


class MemoryLog:
    """What a process has on disk, as far as it is ever read again."""

    def __init__(self) -> None:
        self._blocks: dict[Hash32, Block] = {}
        self._finals: dict[int, tuple[Block, FinalityProof]] = {}
        self._submissions: dict[Hash32, CrosslinkSubmission] = {}

    def append(self, records: Sequence[fx.Record]) -> None:
        """Keep records."""
        for record in records:
            if isinstance(record, fx.BlockRecord):
                self._blocks[record.block.hash] = record.block
            elif isinstance(record, fx.FinalRecord):
                self._finals[record.height] = (self._blocks.pop(record.block_hash), record.proof)
            elif isinstance(record, fx.SubmissionRecord):
                self._submissions[record.submission.crosslink.hash] = record.submission

    def get_final(self, height: int) -> tuple[Block, FinalityProof] | None:
        """Return the final block at ``height`` with its proof."""
        return self._finals.get(height)

    def get_submission(self, crosslink: Hash32) -> CrosslinkSubmission | None:
        """Return the submission behind a crosslink."""
        return self._submissions.get(crosslink)


class Network(Protocol):
    """Where a process sends to, and who watches it."""

    def measure(self, message: Message) -> tuple[int, int]:
        """Return the bytes of a message as it is, and those that its transactions stand for."""
        ...

    def publish(self, sender: "ScaleProcess", message: Message, size: tuple[int, int]) -> None:
        """Send to everybody who subscribes."""
        ...

    def send(self, sender: "ScaleProcess", to: NodeId, message: Message, size: tuple[int, int]) -> None:
        """Send to one process."""
        ...

    def on_notice(self, process: "ScaleProcess", notice: fx.Notice) -> None:
        """The machine told something."""
        ...


class ScaleProcess:
    """One process."""

    def __init__(
        self,
        name: NodeId,
        chain: ShardId,
        keys: tuple[int, ...],
        genesis: Genesis,
        clock: MicroClock,
        network: Network,
        meter: Meter,
        costs: Costs,
        shard: CountedShard | None,
        cores: int,
    ) -> None:
        self.name = name
        self.chain = chain
        self._committee = genesis.committees[chain]
        self._clock = clock
        self._network = network
        self._meter = meter
        self._costs = costs
        self._shard = shard
        self.loop = Processor(clock)
        self.pool = Processor(clock) if cores > 1 else self.loop
        self._workers = max(1, cores - 1)
        self.crypto = MeteredCrypto(CRYPTO, costs)
        self._log = MemoryLog()
        self._signer = SignerState()
        self._outbox: deque[tuple[fx.Effect, tuple[int, int]]] = deque()
        """What waits for the disk, messages with their sizes."""
        self._is_syncing = False
        self._timers: dict[str, int] = {}
        self._timer_count = 0
        self._built: dict[int, Executed] = {}
        self.machine: ShardReplica | BeaconMachine
        if chain == BEACON:
            self.machine = BeaconMachine(
                genesis,
                self.crypto,
                keys,
                self._log,
                build_engine=SimplexEngine,
                submissions=self._log,
            )
        else:
            self.machine = ShardReplica(
                genesis, chain, self.crypto, keys, self._log, build_engine=SimplexEngine
            )

    def start(self) -> None:
        """Begin."""
        self._complete(ev.Started())

    def receive(self, event: ev.MessageReceived, size: int, hidden: int) -> None:
        """Take a message from the network, when the loop has time for it."""
        self.loop.offer(lambda: self._step(event, self._meter.price_arrival(size, hidden)))

    def _complete(self, event: ev.Event) -> None:
        """Take a completion or a timer."""
        self.loop.submit(lambda: self._step(event, {HANDLE: self._costs.handle}))

    def ask(self, event: ev.Event, now_ms: int) -> list[fx.Effect]:
        """Give the machine one event."""
        return self.machine.step(event, now_ms)

    def _step(self, event: ev.Event, work: Work) -> tuple[Work, Finish]:
        machine = self.machine
        offered = event.message if isinstance(event, ev.MessageReceived) else None
        is_new = (
            isinstance(offered, SubmitCrosslink)
            and isinstance(machine, BeaconMachine)
            and machine.get_submission(offered.submission.crosslink.hash) is None
        )
        effects = self.ask(event, GENESIS_MS + self._clock.now_us // 1000)
        parts = [self.crypto.take_work()]
        if isinstance(machine, BeaconMachine):
            if is_new and isinstance(offered, SubmitCrosslink):
                parts.append(self._meter.price_submission(offered.submission))
            parts.append(self._meter.price_beacon(effects, machine.engine.get_block))
        else:
            parts.append(self._meter.price_shard(event, effects))
        sizes: list[tuple[int, int]] = []
        for effect in effects:
            if isinstance(effect, fx.Broadcast | fx.Send):
                size = self._network.measure(effect.message)
                sizes.append(size)
                parts.append(self._meter.price_departure(*size))
        for part in parts:
            for operation, cost_us in part.items():
                work[operation] = work.get(operation, 0.0) + cost_us
        return work, partial(self._perform, effects, sizes)

    def _perform(self, effects: list[fx.Effect], sizes: list[tuple[int, int]]) -> None:
        size = iter(sizes)
        for effect in effects:
            match effect:
                case fx.SetTimer(name, delay_ms):
                    self._set_timer(name, delay_ms)
                case fx.CancelTimer(name):
                    self._timers.pop(name, None)
                case fx.Build():
                    self._start_build(effect)
                case fx.Execute():
                    self._start_execute(effect)
                case fx.Adopt(request, block_hash):
                    self._get_shard().keep(block_hash, self._built.pop(request).standing)
                case fx.Broadcast() | fx.Send():
                    self._outbox.append((effect, next(size)))
                case _:
                    self._outbox.append((effect, (0, 0)))
        self._drain()

    def _drain(self) -> None:
        """Perform the outbox up to the next barrier that is not on disk yet."""
        outbox = self._outbox
        while outbox and not self._is_syncing:
            effect, size = outbox.popleft()
            match effect:
                case fx.Broadcast(message):
                    self._network.publish(self, message, size)
                case fx.Send(to, message):
                    self._network.send(self, to, message, size)
                case fx.Persist(records):
                    self._log.append(records)
                    self._is_syncing = True
                    self._clock.schedule(round(self._costs.sync), self._finish_sync)
                case fx.Sign(requests):
                    self._sign(requests)
                case fx.Notice() as notice:
                    self._network.on_notice(self, notice)
                case fx.Finalise(block):
                    self._signer.prune(block.header.slot)
                case fx.Discard():
                    pass
                case other:
                    raise AssertionError(f"effect {other!r} does not belong into the outbox")

    def _finish_sync(self) -> None:
        self._is_syncing = False
        self._drain()

    def _set_timer(self, name: str, delay_ms: int) -> None:
        self._timer_count += 1
        mark = self._timers[name] = self._timer_count

        def fire() -> None:
            if self._timers.get(name) == mark:
                del self._timers[name]
                self._complete(ev.TimerFired(name))

        self._clock.schedule(delay_ms * 1000, fire)

    # Slow work

    def _sign(self, requests: tuple[fx.SignRequest, ...]) -> None:
        votes: list[Vote] = []
        for request in requests:
            if self._signer.check(request):
                self._signer.record(request)
                public_key = self._committee.validators[request.validator].public_key
                signature = sign_mock(public_key, request.message)
                votes.append(
                    Vote(request.kind, request.slot, request.block_hash, request.validator, signature)
                )
        signed = ev.Signed(tuple(votes))

        def finish() -> None:  # the record of a batch is synced before its signatures leave
            self._clock.schedule(round(self._costs.sync), lambda: self._complete(signed))

        self.pool.submit(lambda: ({SIGNING: len(votes) * self._costs.vote_sign}, finish))

    def _get_shard(self) -> CountedShard:
        assert self._shard is not None, "only shards execute"
        return self._shard

    def _start_build(self, effect: fx.Build) -> None:
        def job() -> tuple[Work, Finish]:
            given = self._get_shard().build(
                effect.env, effect.inbox, effect.max_body_bytes, self._clock.now_us
            )
            if given is None:
                return {}, lambda: self._complete(ev.Built(effect.request, b"", None))
            self._built = {effect.request: given}
            body = encode_body(given.summary.transaction_count)
            return self._price(given), lambda: self._complete(ev.Built(effect.request, body, given.summary))

        self.pool.submit(job)

    def _start_execute(self, effect: fx.Execute) -> None:
        block_hash = effect.block.hash

        def job() -> tuple[Work, Finish]:
            given = self._get_shard().execute(effect)
            if given is None:
                return {}, lambda: self._complete(ev.Executed(block_hash, None, "its parent is unknown"))

            def finish() -> None:
                self._get_shard().keep(block_hash, given.standing)
                self._complete(ev.Executed(block_hash, given.summary, ""))

            return self._price(given), finish

        self.pool.submit(job)

    def _price(self, given: Executed) -> Work:
        """Return what executing a block costs on the threads there are (Amdahl's law at ``SERIAL_SHARE``)."""
        costs, summary = self._costs, given.summary
        staying = summary.transaction_count - given.leaving
        execution = staying * costs.execute + given.leaving * costs.execute_cross
        execution += summary.delivery_count * costs.deliver
        serial = SERIAL_SHARE + (1 - SERIAL_SHARE) / self._workers
        return {
            RECOVERY: summary.transaction_count * costs.recover / self._workers,
            EXECUTION: execution * serial,
        }
