"""A simulated process: one machine with its driver, disk, signer, timers and, on shards, its executor.

The driver here keeps the rules of the real one: what leaves the process waits in one FIFO outbox behind the ``Persist`` it
follows, ``step`` never waits, completions come before messages. A crash loses everything but what is synced of the log and
of the signer's record, and a torn piece of what was being written. A disk that fails ends the process.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from crosslink.beacon import BeaconMachine
from node.executor import StateRecord
from node.sim.byzantine.role import Role
from node.sim.clock import Clock
from node.sim.disk import SignerDisk, SimDisk
from node.sim.executor import Execution, SimExecutor
from node.sim.mock_crypto import MockCrypto, sign_mock
from node.sim.phases import Phase, find_phase
from node.sim.scenario import GENESIS_MS, FaultProfile
from node.sim.trace import Trace
from node.sim.workload import TransactionPool
from node.storage.frames import CorruptFileError
from node.storage.signer_record import SignerRecordError
from shards.replica import ShardReplica
from shardyard import effects as fx
from shardyard.blocks import Block
from shardyard.codec import decode
from shardyard.consensus.registry import get_engine
from shardyard.consensus.signer import SignerEntry, SignerState
from shardyard.consensus.votes import Vote
from shardyard.crosslinks import BeaconBody
from shardyard.events import Event, MessageReceived, Signed, Started, TimerFired
from shardyard.genesis import Genesis
from shardyard.ids import BEACON, Hash32, NodeId, ShardId
from shardyard.messages import Message
from shardyard.rejoins import NONCE_BYTES, Rejoin, compute_rejoin_message

CRYPTO: Final = MockCrypto()
SIGN_MS: Final = (1, 4)
MAX_QUEUED: Final = 4096
"""Messages a frozen process finds in its inbox; the rest is lost, as on the real bus."""


class Observer(Protocol):
    """Who watches a node: the checker of invariants."""

    def on_record(self, node: "SimNode", record: fx.Record) -> None:
        """A record is on disk."""
        ...

    def on_notice(self, node: "SimNode", notice: fx.Notice) -> None:
        """The machine told something."""
        ...


class Doom(msgspec.Struct):
    """A fault that strikes before the first effect of a phase, or when it has waited for ``patience`` effects."""

    aim: Phase
    patience: int
    strike: Callable[[], None]


class SimNode:
    """One process of the network."""

    def __init__(
        self,
        name: NodeId,
        chain: ShardId,
        keys: tuple[int, ...],
        genesis: Genesis,
        clock: Clock,
        chance: random.Random,
        profile: FaultProfile,
        trace: Trace,
        observer: Observer,
        publish: Callable[["SimNode", Message], None],
        send: Callable[["SimNode", NodeId, Message], None],
        pool: TransactionPool | None,
        executions: dict[Hash32, Execution],
        engine: str,
    ) -> None:
        self.name = name
        self.chain = chain
        self.keys = keys
        self.disk = SimDisk(genesis.network)
        self.record = SignerDisk(genesis.network)
        self.signer = SignerState()
        self.is_record_lost = False
        """Its signer's record is missing, damaged or old: it follows and signs nothing."""
        self.nonce = b""
        """Of its Rejoins while the record is lost; another one in every life."""
        self._rejoined: set[int] = set()
        self.refusal = ""
        """Why it did not start: its log is damaged."""
        self.on_failure: Callable[[SimNode], object] = SimNode.crash
        """Who ends it when its disk fails."""
        self.is_up = False
        self.is_frozen = False
        self.is_byzantine = False
        self.clock_offset_ms = 0
        self._last_step: tuple[Event, Sequence[fx.Effect]] = (Started(), ())
        """The last step that did anything: what a fault interrupts."""
        self._next: object = None
        """The effect that comes next, while a fault is about to strike before it."""
        self.disk_ms = profile.disk_ms
        self.doom: Doom | None = None
        """A fault that waits for its moment between two effects."""
        self.roles: tuple[Role, ...] = ()
        """How it misbehaves, if it is Byzantine."""
        self.machine: ShardReplica | BeaconMachine
        self.executor: SimExecutor | None = None
        self._label = name
        self._build_engine = get_engine(engine)
        self._genesis = genesis
        self._committee = genesis.committees[chain]
        self._clock = clock
        self._chance = chance
        self._trace = trace
        self._observer = observer
        self._publish = publish
        self._send = send
        self._pool = pool
        self._executions = executions
        self.life = 0
        """How often it was started and has crashed."""
        self._outbox: deque[fx.Effect | StateRecord] = deque()
        self._is_syncing = False
        self._timers: dict[str, int] = {}
        self._timer_count = 0
        self._thawed: deque[Event] = deque()
        self._held: deque[Callable[[], None]] = deque()
        """Syncs of log and signer's record that ended while it was frozen: it learns of them when it goes on."""

    # Life

    def start(self) -> None:
        """Start the process, or start it again from its disk; with a damaged log it does not start."""
        try:
            records, states = self.disk.read()
        except CorruptFileError as error:
            self.refusal = str(error)
            return
        self.refusal = ""
        self._open_signer()
        self.life += 1
        self._outbox.clear()
        self._is_syncing = False
        self._timers.clear()
        self._thawed.clear()
        self._held.clear()
        self.is_up, self.is_frozen = True, False
        if self.chain == BEACON:
            self.machine = BeaconMachine(
                self._genesis,
                CRYPTO,
                self.keys,
                self.disk,
                build_engine=self._build_engine,
                submissions=self.disk,
                rejoins=self._build_rejoins(),
            )
            self.machine.recover(records)
        else:
            self.machine = ShardReplica(
                self._genesis, self.chain, CRYPTO, self.keys, self.disk, build_engine=self._build_engine
            )
            self.machine.recover(records)
            self._start_executor(self.machine.recovered_height, states)
        for record in records:  # a crash may keep what was written and not yet known to be synced
            self._observer.on_record(self, record)
        self.step(Started())

    def _open_signer(self) -> None:
        self.signer, self.is_record_lost = SignerState(), False
        try:
            self.signer = self.record.read()
        except SignerRecordError as error:
            self.is_record_lost = True
            self.nonce = self._chance.randbytes(NONCE_BYTES)
            self._rejoined = set()
            self._trace.tell(self._clock.now_ms, self._label, f"signs nothing: {error}")

    def _start_executor(self, height: int, states: dict[Hash32, StateRecord]) -> None:
        assert self._pool is not None, "shards have a pool of transactions"
        if self.executor is not None:
            self.executor.stop()
        life = self.life

        def complete(event: Event) -> None:
            if self.is_up and self.life == life:
                self._take(event)

        self.executor = SimExecutor(
            self._genesis, self.chain, self._pool, self._clock, complete, self._write_state, self._executions
        )
        needed = []
        for number in range(1, height + 1):
            found = self.disk.get_final(number)
            assert found is not None, f"{self.name} recovered to {height}, but its log lacks block {number}"
            header = found[0].header
            needed.append((states[header.hash], header.shard_content.state_root))
        self.executor.restore(needed)

    def _build_rejoins(self) -> tuple[Rejoin, ...]:
        if not self.is_record_lost:
            return ()
        domain = self._genesis.get_domain(self.chain)
        return tuple(
            Rejoin(
                key,
                self.nonce,
                sign_mock(
                    self._committee.validators[key].public_key,
                    compute_rejoin_message(domain, key, self.nonce),
                ),
            )
            for key in self.keys
        )

    def _rejoin(self, block: Block) -> None:
        """Sign again above the final ``block`` that has this process's nonce, as ``node.signer`` does."""
        body = decode(block.body, BeaconBody, max_bytes=self._genesis.preset.max_body_bytes)
        self._rejoined |= {rejoin.validator for rejoin in body.rejoins if rejoin.nonce == self.nonce}
        if self._rejoined.issuperset(self.keys):
            self.signer = SignerState(block.header.slot)
            self.record.begin_anew(block.header.slot)
            self.is_record_lost = False

    def crash(self) -> int:
        """Kill the process and its power; return how many records are lost."""
        self.is_up = False
        self.life += 1
        self._outbox.clear()
        self.record.crash(self._chance)
        if self.executor is not None:
            self.executor.stop()
        return self.disk.crash(self._chance)

    def freeze(self) -> None:
        """Stop the process without killing it (SIGSTOP)."""
        self.is_frozen = True

    def thaw(self) -> None:
        """Let it go on: everything that piled up comes at once."""
        self.is_frozen = False
        while self._held and self.is_up and not self.is_frozen:
            self._held.popleft()()
        if self.is_up:
            self._drain()
        while self._thawed and self.is_up and not self.is_frozen:
            self.step(self._thawed.popleft())

    def receive(self, event: MessageReceived) -> None:
        """Take a message from the bus."""
        if not self.is_up or (self.is_frozen and len(self._thawed) >= MAX_QUEUED):
            return
        self._take(event)

    def _take(self, event: Event) -> None:
        if self.is_frozen:
            self._thawed.append(event)
        else:
            self.step(event)

    # Driver

    def step(self, event: Event) -> None:
        """Give the machine one event and perform what it asks."""
        clock, trace = self._clock, self._trace
        kind = type(event.message).__name__ if isinstance(event, MessageReceived) else type(event).__name__
        # What it signs names the blocks that it holds for right, so runs of one trace agree in more than their instants.
        signed = b"".join(vote.signature for vote in event.votes) if isinstance(event, Signed) else b""
        trace.add(clock.now_ms, self._label, kind, signed)
        effects = self.machine.step(event, GENESIS_MS + clock.now_ms + self.clock_offset_ms)
        if self.roles:
            effects = self._play_roles(event, effects)
        if effects:
            self._last_step = (event, effects)
        trace.step(clock.now_ms, self._label, event, effects)
        life = self.life
        for effect in effects:
            if self.doom is not None:
                self._meet_doom(effect)
            if self.life != life:
                return
            self._perform(effect)
        if self._outbox and not self._is_syncing:
            self._drain()

    def _play_roles(self, event: Event, effects: list[fx.Effect]) -> list[fx.Effect]:
        for role in self.roles:
            role.hear(event)
        return self._say(self.roles, effects)

    @staticmethod
    def _say(roles: Sequence[Role], effects: list[fx.Effect]) -> list[fx.Effect]:
        for role in roles:
            effects = [said for effect in effects for said in role.say(effect)]
        return effects

    def say_later(self, name: str, delay_ms: int, effect: fx.Effect) -> None:
        """Perform an effect of this life's after ``delay_ms``: what the role ``name`` holds back from those after it."""
        after = [role.name for role in self.roles].index(name) + 1
        life = self.life

        def act() -> None:
            if self.is_up and self.life == life and not self.is_frozen:
                self._outbox += self._say(self.roles[after:], [effect])
                self._drain()

        self._clock.schedule(delay_ms, act)

    def _meet_doom(self, effect: object) -> None:
        """Let the fault that waits strike before ``effect``, if it is time."""
        if self.doom is not None and self.is_up:
            self._next = effect
            self.doom.patience -= 1
            if self.doom.patience <= 0 or self.phase is self.doom.aim:
                strike, self.doom = self.doom.strike, None
                strike()
            self._next = None

    @property
    def phase(self) -> Phase:
        """What it is doing."""
        event, effects = self._last_step
        return find_phase(event, effects, self._next)

    def _perform(self, effect: fx.Effect) -> None:
        match effect:
            case fx.SetTimer(name, delay_ms):
                self._set_timer(name, delay_ms)
            case fx.CancelTimer(name):
                self._timers.pop(name, None)
            case fx.Build():
                self._executor.start_build(effect)
            case fx.Execute():
                self._executor.start_execute(effect)
            case fx.Adopt():
                self._executor.adopt(effect)
            case _:
                self._outbox.append(effect)

    @property
    def _executor(self) -> SimExecutor:
        assert self.executor is not None, "only shards execute"
        return self.executor

    def _write_state(self, state: StateRecord) -> None:
        self._outbox.append(state)
        self._drain()

    def _drain(self) -> None:
        """Perform the outbox up to the next barrier that is not on disk yet."""
        life, outbox = self.life, self._outbox
        while outbox and not self._is_syncing and not self.is_frozen:
            if self.doom is not None:
                self._meet_doom(outbox[0])
                if self.life != life or self.is_frozen:
                    return
            match outbox.popleft():
                case fx.Broadcast(message):
                    self._publish(self, message)
                case fx.Persist(records):
                    for record in records:
                        self.disk.append(record)
                    self._start_sync(records)
                case fx.Notice() as notice:
                    self._observer.on_notice(self, notice)
                case fx.Sign(requests):
                    self._sign(requests)  # behind its Persist (S5)
                case StateRecord() as state:
                    self.disk.append_state(state)
                case fx.Send(to, message):
                    self._send(self, to, message)
                case fx.Finalise(block):
                    if self.executor is not None:
                        self.executor.finalise(block.hash)
                    self.signer.prune(block.header.slot)
                    if self.chain == BEACON and self.is_record_lost:
                        self._rejoin(block)
                case fx.Discard(block_hash):
                    self._executor.discard(block_hash)
                case other:
                    raise AssertionError(f"effect {other!r} does not belong into the outbox")

    def _start_sync(self, records: tuple[fx.Record, ...]) -> None:
        low, high = self.disk_ms
        delay = low + int(self._chance.random() * (high - low + 1))
        if delay == 0:
            self._finish_sync(records)
            return
        self._is_syncing = True
        life = self.life

        def finish() -> None:
            if self.is_up and self.life == life:
                if self.is_frozen:
                    self._held.append(finish)
                    return
                self._is_syncing = False
                self._finish_sync(records)
                self._drain()

        self._clock.schedule(delay, finish)

    def _finish_sync(self, records: tuple[fx.Record, ...]) -> None:
        if self.disk.meet_fault():
            self.on_failure(self)
            return
        self.disk.sync()
        for record in records:
            if isinstance(record, fx.FinalRecord):
                self._trace.add(self._clock.now_ms, self._label, "final", record.block_hash)
            self._observer.on_record(self, record)

    def _sign(self, requests: tuple[fx.SignRequest, ...]) -> None:
        votes: list[Vote] = []
        entries: list[SignerEntry] = []
        for request in requests:
            if not self.is_record_lost and self.signer.check(request):
                entries.append(self.signer.record(request))
                public_key = self._committee.validators[request.validator].public_key
                signature = sign_mock(public_key, request.message)
                votes.append(
                    Vote(request.kind, request.slot, request.block_hash, request.validator, signature)
                )
        if entries:
            self.record.append(tuple(entries))
        life = self.life

        def finish() -> None:
            if self.is_up and self.life == life:
                if self.is_frozen:
                    self._held.append(finish)
                    return
                if self.record.meet_fault():
                    self.on_failure(self)
                    return
                self.record.sync()
                self._take(Signed(tuple(votes)))

        self._clock.schedule(self._chance.randint(*SIGN_MS), finish)

    def _set_timer(self, name: str, delay_ms: int) -> None:
        self._timer_count += 1
        mark = self._timers[name] = self._timer_count
        life = self.life

        def fire() -> None:
            if self.is_up and self.life == life and self._timers.get(name) == mark:
                del self._timers[name]
                self._take(TimerFired(name))

        self._clock.schedule(delay_ms, fire)

    # What the checker reads

    @property
    def final_block(self) -> Block:
        """The engine's final block."""
        return self.machine.engine.final_block
