"""Who makes the faults: draws instants and victims from the seed, and puts everything right again at the end.

Every class of fault has its number and its severity in the profile. Byzantine nodes are honest machines whose outputs are
changed, or whose keys a second process uses as well: nothing here knows the machines from inside.
"""

import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import msgspec

from node.sim.bus import SimBus
from node.sim.clock import Clock
from node.sim.node import SimNode
from node.sim.scenario import Scenario
from node.sim.strikes import Strike, draw_strikes
from node.sim.trace import Trace
from shardyard import effects as fx
from shardyard.consensus.votes import VoteKind
from shardyard.ids import Slot
from shardyard.messages import Proposal, Votes

GARBLE_CHANCE = 0.3
TAMPER_CHANCE = 0.8
GROUP_CHANCE = 0.2
"""How often a crash takes all processes of a chain."""
DOOM_CHANCE = 0.7
"""How often a crash comes between effects, where it hurts, instead of at an idle instant."""
MAX_DOOM = 40


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
    ) -> None:
        self._scenario = scenario
        self._clock = clock
        self._chance = chance
        self._bus = bus
        self._nodes = nodes
        self._trace = trace
        self._is_over = False
        self._blows = {
            "crash": self._crash,
            "partition": self._cut,
            "freeze": self._freeze,
            "clock jump": self._jump,
            "outage": self._black_out,
            "slow disk": self._slow_down,
        }
        self.faults: Counter[str] = Counter()
        self.coverage: Counter[str] = Counter()
        """Faults of one node by what it had done last: a phase that no fault ever hits proves nothing."""

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
        self._bus.cuts.clear()
        self._bus.is_out = False
        self._bus.drop = 0.0
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

    def _tell(self, fault: str, text: str, victim: SimNode | None = None) -> None:
        self.faults[fault] += 1
        if victim is not None:
            self.coverage[f"{fault} after {victim.last_kind}"] += 1
        self._trace.add(self._clock.now_ms, "nemesis", fault, text.encode())
        self._trace.tell(self._clock.now_ms, "nemesis", text)

    # Faults of processes

    def _crash(self, chance: random.Random) -> None:
        """One node, or now and then all of a kind; at once, or between two of the next effects."""
        victims = [chance.choice(self._nodes)]
        if chance.random() < GROUP_CHANCE:
            victims = [node for node in self._nodes if node.chain == victims[0].chain]
        for node in victims:
            if chance.random() < DOOM_CHANCE:
                node.doom = (chance.randint(1, MAX_DOOM), self._guard(partial(self._kill, chance, node)))
            else:
                self._kill(chance, node)

    def _kill(self, chance: random.Random, node: SimNode) -> None:
        if node.is_up:
            lost = node.crash()
            self._tell("crash", f"{node.name} crashes, {lost} records lost", node)
            if lost:
                self.faults["torn"] += 1
            self._later(chance, self._scenario.profile.down_ms, partial(self._restart, node))

    def _restart(self, node: SimNode) -> None:
        if not node.is_up:
            self._trace.tell(self._clock.now_ms, "nemesis", f"{node.name} starts again")
            node.start()

    def _freeze(self, chance: random.Random) -> None:
        node = chance.choice(self._nodes)
        if node.is_up and not node.is_frozen:
            node.freeze()
            self._tell("freeze", f"{node.name} is stopped", node)
            self._later(chance, self._scenario.profile.freeze_ms, node.thaw)

    def _jump(self, chance: random.Random) -> None:
        node = chance.choice(self._nodes)
        node.clock_offset_ms = chance.randint(-1, 1) * chance.randint(0, self._scenario.profile.jump_ms)
        self._tell("clock", f"the clock of {node.name} is off by {node.clock_offset_ms} ms")

    def _slow_down(self, chance: random.Random) -> None:
        node = chance.choice(self._nodes)
        before = self._scenario.profile.disk_ms
        node.disk_ms = (200, 1_500)
        self._tell("slow disk", f"the disk of {node.name} is slow", node)

        def recover() -> None:
            node.disk_ms = before

        self._later(chance, self._scenario.profile.cut_ms, recover)

    # Faults of the bus

    def _cut(self, chance: random.Random) -> None:
        names = sorted({node.name for node in self._nodes})
        side = {name for name in names if chance.random() < 0.5}
        one_way = chance.random() < 0.3
        cut = {
            (one, other)
            for one in names
            for other in names
            if one != other and ((one in side) != (other in side)) and (not one_way or one in side)
        }
        self._bus.cuts |= cut
        self._tell("partition", f"cut between {sorted(side)} and the rest{', one way' if one_way else ''}")

        def heal() -> None:
            self._bus.cuts -= cut

        self._later(chance, self._scenario.profile.cut_ms, heal)

    def _black_out(self, chance: random.Random) -> None:
        self._bus.is_out = True
        self._tell("outage", "the broker is down")

        def heal() -> None:
            self._bus.is_out = False

        self._later(chance, (200, 8_000), heal)

    # Byzantine nodes

    def corrupt(self, node: SimNode, kind: str) -> None:
        """Make ``node`` misbehave in one way."""
        node.is_byzantine = True
        self._tell(kind, f"{node.name} is Byzantine: {kind}")
        if kind == "withholder":
            node.tamper = _withhold
        elif kind == "garbler":
            node.tamper = self._garble
        elif kind == "tamperer":
            node.tamper = self._change_list

    def _garble(self, effect: fx.Effect) -> fx.Effect:
        """Send votes with wrong slots, wrong signatures and wrong kinds now and then."""
        if not (isinstance(effect, fx.Broadcast) and isinstance(effect.message, Votes)):
            return effect
        if self._chance.random() > GARBLE_CHANCE:
            return effect
        self.faults["garbled"] += 1
        votes = []
        for vote in effect.message.votes:
            match self._chance.randrange(4):
                case 0:
                    changed = msgspec.structs.replace(
                        vote, slot=Slot(vote.slot + self._chance.choice([-1, 1, 1 << 20]))
                    )
                case 1:
                    changed = msgspec.structs.replace(vote, signature=bytes(96))
                case 2:
                    changed = msgspec.structs.replace(vote, kind=self._chance.choice(list(VoteKind)))
                case _:
                    changed = msgspec.structs.replace(vote, validator=vote.validator + 1)
            votes.append(changed)
        return fx.Broadcast(Votes(tuple(votes)))

    def _change_list(self, effect: fx.Effect) -> fx.Effect:
        """Send most proposals with another access list than the block's: one byte changed, cut, another one, or none."""
        if not (isinstance(effect, fx.Broadcast) and isinstance(effect.message, Proposal)):
            return effect
        good = effect.message.access_list
        if not good or self._chance.random() > TAMPER_CHANCE:
            return effect
        self.faults["tampered"] += 1
        place = self._chance.randrange(len(good))
        bad = self._chance.choice(
            [
                good[:place] + bytes((good[place] ^ 1 << self._chance.randrange(8),)) + good[place + 1 :],
                good[:place],
                b"\xc0",
                b"",
            ]
        )
        return fx.Broadcast(msgspec.structs.replace(effect.message, access_list=bad))


def _withhold(effect: fx.Effect) -> fx.Effect | None:
    """Keep proposals back."""
    is_proposal = isinstance(effect, fx.Broadcast) and isinstance(effect.message, Proposal)
    return None if is_proposal else effect
