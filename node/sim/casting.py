"""Who plays which role: one node of every chain for each role that the fault profile asks for.

All Byzantine nodes of a chain together weigh less than a third of its committee. Where another one would be too much,
somebody who is Byzantine already takes the role as well; where no process holds less than a third, nobody plays.
"""

import random
from collections.abc import Callable, Iterable
from functools import partial

from node.sim.byzantine.garbage import Spool
from node.sim.byzantine.role import Seat
from node.sim.byzantine.roles import TWIN, build_role
from node.sim.node import SimNode
from node.sim.weights import Weights
from shardyard.genesis import Genesis
from shardyard.ids import ShardId

Tell = Callable[[SimNode, str, str], None]


class Casting:
    """Hands out roles."""

    def __init__(
        self, genesis: Genesis, weights: Weights, chance: random.Random, nodes: list[SimNode], tell: Tell
    ) -> None:
        """``tell`` counts what a Byzantine node does, by its role and act."""
        self._genesis = genesis
        self._weights = weights
        self._chance = chance
        self._nodes = nodes
        self._tell = tell
        self._spool = Spool()

    def cast(self, chain: ShardId, role: str) -> SimNode | None:
        """Give ``role`` to a node of ``chain`` and return it; None when nobody may play it."""
        node = self._choose(chain, role)
        if node is None:
            return None
        self._weights.fail(chain, node.keys)
        node.is_byzantine = True
        if role != TWIN:
            node.roles = (*node.roles, build_role(role, self._build_seat(node, role), self._spool))
        return node

    def _choose(self, chain: ShardId, role: str) -> SimNode | None:
        members = [node for node in self._nodes if node.chain == chain and node.keys]
        honest = [
            node for node in members if not node.is_byzantine and self._weights.can_fail(chain, node.keys)
        ]
        idle = [
            node
            for node in members
            if node.is_byzantine and role not in {played.name for played in node.roles}
        ]
        choices = honest or idle
        return self._chance.choice(choices) if choices else None

    def _build_seat(self, node: SimNode, role: str) -> Seat:
        names: Iterable[SimNode] = (other for other in self._nodes if other.chain == node.chain)
        return Seat(
            name=node.name,
            chain=node.chain,
            keys=node.keys,
            domain=self._genesis.get_domain(node.chain),
            committee=self._genesis.committees[node.chain],
            peers=tuple(sorted({other.name for other in names} - {node.name})),
            chance=random.Random(self._chance.getrandbits(64)),
            later=partial(node.say_later, role),
            tell=lambda act: self._tell(node, role, act),
        )
