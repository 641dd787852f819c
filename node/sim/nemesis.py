"""Who makes the faults: draws instants and victims from the seed, and puts everything right again at the end.

Every class of fault has its number and its severity in the profile. What Byzantine nodes do is in ``byzantine``. Counted is
what happens: no strike at a node that is down, no cut between nobody, no role before its first act; what a fault leads to (a torn
log, a process that stops, a log that is replaced) counts apart from it.
"""

import random
from collections import Counter
from collections.abc import Callable
from functools import partial

from node.sim.bus import SimBus
from node.sim.bus_faults import BusFaults
from node.sim.clock import Clock
from node.sim.disk_faults import DiskFaults
from node.sim.node import Doom, SimNode
from node.sim.phases import AIMS, Phase
from node.sim.scenario import Scenario
from node.sim.strikes import Strike, draw_strikes
from node.sim.trace import Trace
from node.sim.weights import Weights
from shardyard.ids import ShardId

GROUP_CHANCE = 0.2
"""How often a crash takes all processes of a chain."""
DOOM_CHANCE = 0.7
"""How often a crash comes between effects, where it hurts, instead of at an idle instant."""
MAX_PATIENCE = 400
"""Effects for which a fault waits at most until its victim is in the phase that it aims at: some seconds."""


class Nemesis:
    """Strikes until it is told to stop."""

    def __init__(
        self,
        scenario: Scenario,
        clock: Clock,
        chance: random.Random,
        bus: SimBus,
        nodes: list[SimNode],
        trace: Trace,
        weights: Weights,
        accuse: Callable[[ShardId, tuple[int, ...]], None],
    ) -> None:
        self._scenario = scenario
        self._clock = clock
        self._chance = chance
        self._bus = bus
        self._nodes = nodes
        self._trace = trace
        self._is_over = False
        self._slow: Counter[SimNode] = Counter()
        """How many faults slow the disk of a node down."""
        self._disks = DiskFaults(
            nodes,
            weights,
            chance,
            tell=self._tell,
            note=self._note,
            later=self._later,
            ambush=self._ambush,
            restart=self._restart,
            accuse=accuse,
        )
        self._between = BusFaults(bus, nodes, tell=self._tell, later=self._later, ambush=self._ambush)
        down_ms = scenario.profile.down_ms
        self._blows: dict[str, Callable[[random.Random], None]] = {
            "crash": self._crash,
            "partition": self._cut,
            "freeze": self._freeze,
            "clock jump": self._jump,
            "outage": self._black_out,
            "flap": self._between.flap,
            "lost session": partial(self._between.lose_session, gone_ms=scenario.profile.cut_ms),
            "overflow": partial(self._between.overflow, slow_ms=scenario.profile.cut_ms),
            "slow disk": self._slow_down,
            "full disk": partial(self._disks.fill, full_ms=scenario.profile.cut_ms),
            "io error": self._disks.fail_sync,
            "bit flip": partial(self._disks.flip_bit, down_ms=down_ms),
            "lost record": partial(self._disks.lose_record, down_ms=down_ms),
            "old record": partial(self._disks.restore_record, down_ms=down_ms),
        }
        self.faults: Counter[str] = Counter()
        """Of every class, the roles of Byzantine nodes included: those that have acted, once for each node."""
        self.consequences: Counter[str] = Counter()
        """What faults led to."""
        self._actors: set[tuple[int, str]] = set()
        self.acts: Counter[str] = Counter()
        """What Byzantine nodes did."""
        self.coverage: Counter[str] = Counter()
        """Faults by the phase in which they hit a node: a phase that no fault ever hits proves nothing."""

    def schedule(self, seed: int) -> None:
        """Put all strikes of the run on the clock; those left out do nothing, and so change nothing before their instant."""
        scenario = self._scenario
        for strike in draw_strikes(seed, scenario.profile, scenario.fault_ms):
            self._clock.schedule(strike.at_ms, self._guard(partial(self._strike, strike)))

    def _strike(self, strike: Strike) -> None:
        if self._scenario.has_strike(strike.index):
            self._trace.tell(self._clock.now_ms, "nemesis", f"strike {strike.index}: {strike.kind}")
            self._blows[strike.kind](strike.build_chance())

    def stop(self) -> None:
        """The faults are over: heal, thaw, restart."""
        self._is_over = True
        self._bus.heal()
        self._disks.heal()
        self._slow.clear()
        for node in self._nodes:
            node.disk_ms = (0, 4)
            node.doom = None
            if not node.is_up:
                self._restart(node)
            elif node.is_frozen:
                node.thaw()

    def _guard(self, action: Callable[[], None]) -> Callable[[], None]:
        def act() -> None:
            if not self._is_over:
                action()

        return act

    def _later(self, chance: random.Random, bounds: tuple[int, int], action: Callable[[], None]) -> None:
        self._clock.schedule(chance.randint(*bounds), self._guard(action))

    def _ambush(self, chance: random.Random, node: SimNode, strike: Callable[[], None]) -> None:
        """Strike at ``node`` at once, or, where it hurts more, between two of its next effects; not while it is down."""

        def act() -> None:
            if node.is_up:
                strike()

        self._await(chance, node, act)

    def _await(self, chance: random.Random, node: SimNode, strike: Callable[[], None]) -> None:
        """Strike at once, or, where it hurts more, between two of the next effects of ``node``."""
        if node.doom is None and chance.random() < DOOM_CHANCE:
            aim = chance.choice(AIMS) if node.is_up else Phase.STARTING
            node.doom = Doom(aim, chance.randint(1, MAX_PATIENCE), self._guard(strike))
        else:
            strike()

    def _tell(self, fault: str, text: str, victim: SimNode | None = None) -> None:
        """Count a fault, for ``victim`` in the phase that it hits; without a victim it hits everybody."""
        self.faults[fault] += 1
        for node in self._nodes if victim is None else (victim,):
            if node.is_up or victim is not None:
                self.coverage[f"{fault} while {node.phase}"] += 1
        self._trace.add(self._clock.now_ms, "nemesis", fault, text.encode())
        self._trace.tell(self._clock.now_ms, "nemesis", text)

    def _note(self, consequence: str, text: str) -> None:
        """Count what a fault has led to."""
        self.consequences[consequence] += 1
        self._trace.add(self._clock.now_ms, "nemesis", consequence, text.encode())
        self._trace.tell(self._clock.now_ms, "nemesis", text)

    # Faults of processes

    def _crash(self, chance: random.Random) -> None:
        """One node, or now and then all of a kind; at once, or between two of the next effects."""
        victims = [chance.choice(self._nodes)]
        if chance.random() < GROUP_CHANCE:
            victims = [node for node in self._nodes if node.chain == victims[0].chain]
        for node in victims:
            self._ambush(chance, node, partial(self._kill, chance, node))

    def _kill(self, chance: random.Random, node: SimNode) -> None:
        if node.is_up:
            lost = node.crash()
            self._tell("crash", f"{node.name} crashes, {lost} records lost", node)
            if lost:
                self.consequences["torn"] += 1
            self._later(chance, self._scenario.profile.down_ms, partial(self._restart, node))

    def _restart(self, node: SimNode) -> None:
        if not node.is_up:
            self._trace.tell(self._clock.now_ms, "nemesis", f"{node.name} starts again")
            node.start()
            if node.refusal:
                self._disks.replace_log(node)

    def _freeze(self, chance: random.Random) -> None:
        node = chance.choice(self._nodes)
        self._ambush(chance, node, partial(self._stop, chance, node))

    def _stop(self, chance: random.Random, node: SimNode) -> None:
        if node.is_up and not node.is_frozen:
            node.freeze()
            self._tell("freeze", f"{node.name} is stopped", node)
            self._later(chance, self._scenario.profile.freeze_ms, partial(self._go_on, node, node.life))

    def _go_on(self, node: SimNode, life: int) -> None:
        # The stop of a process that was killed meanwhile is over; another may have begun.
        if node.life == life:
            node.thaw()

    def _jump(self, chance: random.Random) -> None:
        node = chance.choice(self._nodes)
        self._ambush(chance, node, partial(self._put_off, chance, node))

    def _put_off(self, chance: random.Random, node: SimNode) -> None:
        offset_ms = chance.randint(-1, 1) * chance.randint(0, self._scenario.profile.jump_ms)
        if offset_ms == node.clock_offset_ms:
            return
        node.clock_offset_ms = offset_ms
        self._tell("clock jump", f"the clock of {node.name} is off by {node.clock_offset_ms} ms", node)

    def _slow_down(self, chance: random.Random) -> None:
        node = chance.choice(self._nodes)
        self._ambush(chance, node, partial(self._weigh_down, chance, node))

    def _weigh_down(self, chance: random.Random, node: SimNode) -> None:
        self._slow[node] += 1
        node.disk_ms = (200, 1_500)
        self._tell("slow disk", f"the disk of {node.name} is slow", node)

        def recover() -> None:
            self._slow[node] -= 1
            if not self._slow[node]:
                node.disk_ms = self._scenario.profile.disk_ms

        self._later(chance, self._scenario.profile.cut_ms, recover)

    # Faults of the bus

    def _cut(self, chance: random.Random) -> None:
        self._await(chance, chance.choice(self._nodes), partial(self._divide, chance))

    def _divide(self, chance: random.Random) -> None:
        names = sorted({node.name for node in self._nodes})
        side = {name for name in names if chance.random() < 0.5}
        one_way = chance.random() < 0.3
        cut = {
            (one, other)
            for one in names
            for other in names
            if one != other and ((one in side) != (other in side)) and (not one_way or one in side)
        }
        if not cut:
            return  # everybody is on one side
        self._bus.cut(cut)
        self._tell("partition", f"cut between {sorted(side)} and the rest{', one way' if one_way else ''}")

        self._later(chance, self._scenario.profile.cut_ms, lambda: self._bus.mend(cut))

    def _black_out(self, chance: random.Random) -> None:
        self._await(chance, chance.choice(self._nodes), partial(self._kill_broker, chance))

    def _kill_broker(self, chance: random.Random) -> None:
        self._bus.go_down()
        self._tell("outage", "the broker is down")

        self._later(chance, (200, 8_000), self._bus.come_up)

    def supervise(self, node: SimNode) -> None:
        """Start ``node`` again whenever it ends by itself."""
        node.on_failure = self._disks.fail_stop

    # Byzantine nodes

    def corrupt(self, node: SimNode, role: str) -> None:
        """Tell that ``node`` plays a Byzantine role; it counts from its first act on."""
        self._trace.tell(self._clock.now_ms, "nemesis", f"{node.name} is Byzantine: {role}")

    def act(self, node: SimNode, role: str, act: str) -> None:
        """Note what a Byzantine node did, and what the others of its chain were doing then."""
        self.acts[act] += 1
        actor = (self._nodes.index(node), role)
        if actor not in self._actors:
            self._actors.add(actor)
            self.faults[role] += 1
        for other in self._nodes:
            if other.chain == node.chain and other is not node and other.is_up:
                self.coverage[f"{role} while {other.phase}"] += 1
        self._trace.add(self._clock.now_ms, node.name, act)
