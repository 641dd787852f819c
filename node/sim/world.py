"""A whole network in one process: builds it from a scenario and a seed, runs it, and says what became of it."""

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from node.sim.bus import SimBus
from node.sim.byzantine.roles import TWIN
from node.sim.casting import Casting
from node.sim.clock import MAX_PENDING, Clock
from node.sim.executor import Execution
from node.sim.invariants import Checker, InvariantError
from node.sim.nemesis import Nemesis
from node.sim.node import SimNode
from node.sim.scenario import ACCOUNTS, RETURN_MS, Scenario, build_sim_genesis
from node.sim.trace import Listener, Trace
from node.sim.weights import Weights
from node.sim.workload import TransactionPool
from shardyard.consensus.view import ChainView
from shardyard.ids import BEACON, Hash32, NodeId, ShardId
from shardyard.messages import Message, Proposal, Votes

Publish = Callable[[SimNode, Message], None]
MIN_GROWTH: Final = 5


class Report(msgspec.Struct, frozen=True):
    """What happened in a run that broke nothing."""

    trace_hash: str
    events: int
    heights: dict[int, int]
    counters: dict[str, int]
    faults: dict[str, int]
    coverage: dict[str, int]
    bus: dict[str, int]
    acts: dict[str, int] = {}
    """What Byzantine nodes did."""
    consequences: dict[str, int] = {}
    """What faults led to: torn logs, processes that stopped, logs that were replaced."""


class World:
    """One run."""

    def __init__(self, seed: int, scenario: Scenario, listener: Listener | None = None) -> None:
        self.seed = seed
        self.scenario = scenario
        self.trace = Trace(listener)
        self._chance = random.Random(f"world {seed}")
        self.clock = Clock(random.Random(f"order {seed}"))
        self.genesis = build_sim_genesis(scenario.shards, scenario.validators)
        self.executions: dict[Hash32, Execution] = {}
        self.checker = Checker(self.genesis, self.executions)
        self.bus = SimBus(self.clock, random.Random(f"bus {seed}"), scenario.profile)
        self.pools = [TransactionPool(scenario.shards, shard) for shard in range(scenario.shards)]
        self.nodes: list[SimNode] = []
        for index in range(scenario.beacon_replicas):
            total = scenario.shards * scenario.validators
            self._add_node(f"beacon-{index}", BEACON, range(index, total, scenario.beacon_replicas))
        for shard in range(scenario.shards):
            for index in range(scenario.replicas):
                keys = range(index, scenario.validators, scenario.replicas)
                self._add_node(f"shard-{shard}-{index}", ShardId(shard), keys)
        self.weights = Weights(self.genesis)
        self.nemesis = Nemesis(
            scenario,
            self.clock,
            random.Random(f"nemesis {seed}"),
            self.bus,
            self.nodes,
            self.trace,
            self.weights,
            self.checker.accuse,
        )
        self._corrupt()
        for node in self.nodes:
            self.nemesis.supervise(node)

    def _add_node(self, name: str, chain: ShardId, keys: range, publish: Publish | None = None) -> SimNode:
        node = SimNode(
            NodeId(name),
            chain,
            tuple(keys),
            self.genesis,
            self.clock,
            random.Random(f"node {self.seed} {name} {len(self.nodes)}"),
            self.scenario.profile,
            self.trace,
            self.checker,
            publish or self.bus.publish,
            self.bus.send,
            None if chain == BEACON else self.pools[chain],
            self.executions,
            self.scenario.engine,
        )
        self.nodes.append(node)
        self.bus.join(node)
        self.checker.join(node)
        return node

    def _corrupt(self) -> None:
        """Hand out the Byzantine roles of the profile; a twin is a second process with the same keys."""
        casting = Casting(self.genesis, self.weights, self._chance, self.nodes, self.nemesis.act)
        for role, count in self.scenario.profile.roles.items():
            for _ in range(count):
                for chain in [BEACON, *(ShardId(shard) for shard in range(self.scenario.shards))]:
                    node = casting.cast(chain, role)
                    if node is not None:
                        self.nemesis.corrupt(node, role)
                        self.checker.accuse(chain, node.keys)
                        if role == TWIN:
                            self._add_twin(node)

    def _add_twin(self, node: SimNode) -> None:
        def speak(twin: SimNode, message: Message) -> None:
            if isinstance(message, Proposal | Votes):
                self.nemesis.act(twin, TWIN, f"spoke twice: {type(message).__name__.lower()}")
            self.bus.publish(twin, message)

        twin = self._add_node(node.name, node.chain, range(0), speak)
        twin.keys = node.keys
        twin.is_byzantine = True

    def run(self) -> Report:
        """Run the scenario to its end; raises ``InvariantError`` at the first broken promise."""
        scenario = self.scenario
        for node in self.nodes:
            self.clock.schedule(self._chance.randint(0, 500), self._start(node))
        self._schedule_load()
        self.nemesis.schedule(self.seed)
        self.clock.run_until(scenario.calm_ms)
        if len(self.clock) > MAX_PENDING:
            raise InvariantError(
                f"I14: {len(self.clock)} actions are waiting, expected at most {MAX_PENDING}"
            )
        self.nemesis.stop()
        self.clock.run_until(self.clock.now_ms + min(RETURN_MS, scenario.settle_ms // 2))
        before = self.checker.get_heights()
        self.clock.run_until(scenario.end_ms)
        quiet_blocks = (scenario.settle_ms - min(RETURN_MS, scenario.settle_ms // 2)) // 2_500
        self.checker.check_progress(before, min(MIN_GROWTH, max(1, quiet_blocks)))
        self.checker.check_delivered()
        self._check_included()
        return self._report()

    def _start(self, node: SimNode) -> Callable[[], None]:
        def act() -> None:
            if not node.is_up:
                node.start()

        return act

    def _schedule_load(self) -> None:
        """Offer transactions until the faults stop."""
        scenario = self.scenario
        for _ in range(int(scenario.tps * scenario.fault_ms / 1000)):
            pool = self._chance.choice(self.pools)
            index = self._chance.randrange(ACCOUNTS)
            self.clock.schedule(self._chance.randrange(scenario.fault_ms), partial(self._offer, pool, index))

    def _offer(self, pool: TransactionPool, index: int) -> None:
        if self.clock.now_ms < self.scenario.calm_ms:
            pool.offer(index)

    def _check_included(self) -> None:
        """I13: every transaction that was offered is in the final chain."""
        for pool in self.pools:
            node = next(node for node in self.nodes if node.chain == pool.shard and not node.is_byzantine)
            assert node.executor is not None, "shards execute"
            nonces = pool.get_nonces(node.executor.core, node.final_block.hash)
            if nonces != pool.offered:
                raise InvariantError(f"I13: shard {pool.shard}: offered {pool.offered}, included {nonces}")

    def _report(self) -> Report:
        engines: Counter[str] = Counter()
        for node in self.nodes:
            engine = node.machine.engine
            if isinstance(engine, ChainView):
                engines.update({f"refused {kind}": count for kind, count in engine.refused.items()})
            if node.executor is not None:
                engines["executed by list"] += node.executor.listed
        for chain, height in sorted(self.checker.get_heights().items()):
            self.trace.add(self.clock.now_ms, f"chain-{chain}", f"height {height}")
        return Report(
            trace_hash=self.trace.compute_hash(),
            events=self.trace.count,
            heights={int(chain): height for chain, height in self.checker.get_heights().items()},
            counters=dict(self.checker.counters + engines),
            faults=dict(self.nemesis.faults),
            coverage=dict(self.nemesis.coverage),
            bus=dict(self.bus.counters),
            acts=dict(self.nemesis.acts),
            consequences=dict(self.nemesis.consequences),
        )
