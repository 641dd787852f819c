"""The book of faults: what was asked for, what may be asked for, and what follows for each process.

Everything here is a function of the faults that hold at the moment; ``node.launcher.laboratory`` makes them true. A fault
is named by its number, lasts until it is healed or its time is over, and never longer than the network runs.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from node.bus.faults import CERTAIN, MAX_DELAY_MS, ByzantineRule, LinkRule, Mode, NodeFaults
from node.config import get_name_flag
from node.network import Network, get_local_validators, parse_node
from shardyard.errors import ConfigError
from shardyard.ids import NodeId, ShardId, describe_shard
from shardyard.quorum import is_quorum

BROKER: Final = "broker"
MAX_FAULTS: Final = 256
MAX_NAMED: Final = 8
DEFAULT_LATE_MS: Final = 3000
MAX_FOR_MS: Final = 7 * 24 * 3600 * 1000
"""A week; what shall last longer is healed by hand."""


class FaultError(ConfigError):
    """A fault that cannot be: the text says why, and what to try."""


class Kind(StrEnum):
    """What can be done to a running network."""

    PARTITION = "partition"
    DELAY = "delay"
    LOSS = "loss"
    KILL = "kill"
    PAUSE = "pause"
    BYZANTINE = "byzantine"
    FULL_DISK = "full-disk"
    SLOW_DISK = "slow-disk"


LINK_KINDS: Final = frozenset({Kind.PARTITION, Kind.DELAY, Kind.LOSS})
WITH_BROKER: Final = frozenset({Kind.KILL, Kind.PAUSE})
"""The broker is no end of a link and keeps nothing on disk; as a process it can go."""


class FaultRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fault as it is asked for. Times in milliseconds, loss in thousandths of all messages."""

    kind: Kind
    nodes: tuple[str, ...]
    others: tuple[str, ...] = ()
    """The other end of the links; none means everybody else, for late and lossy links also each other."""
    is_one_way: bool = False
    """Only what ``nodes`` say to ``others`` is hit."""
    lost: int = 0
    delay_ms: int = 0
    jitter_ms: int = 0
    mode: Mode | None = None
    validators: tuple[int, ...] = ()
    """Positions in the committee; none means all that the node runs."""
    for_ms: int = 0
    """0 lasts until it is healed."""


class Fault(msgspec.Struct, frozen=True):
    """A fault that holds; times are Unix seconds."""

    id: int
    request: FaultRequest
    started_at: float
    ends_at: float | None = None

    @property
    def kind(self) -> Kind:
        """What is done."""
        return self.request.kind

    def describe(self) -> str:
        """Return it in words."""
        asked, nodes = self.request, describe_nodes(self.request.nodes)
        others = describe_nodes(asked.others)
        link = f"{nodes} {'→' if asked.is_one_way else '↔'} {others}" if others else nodes
        late = f"{asked.delay_ms} ms" + (f" + 0..{asked.jitter_ms} ms" if asked.jitter_ms else "")
        match asked.kind:
            case Kind.PARTITION | Kind.KILL | Kind.PAUSE | Kind.FULL_DISK:
                return link
            case Kind.DELAY:
                return f"{link}: {late}"
            case Kind.LOSS:
                return f"{link}: {asked.lost / 10:g} % of messages"
            case Kind.SLOW_DISK:
                return f"{nodes}: {late} each write"
            case Kind.BYZANTINE:
                which = ", ".join(map(str, asked.validators))
                return f"{nodes}: {asked.mode} by validators {which}"


def describe_nodes(nodes: Sequence[str]) -> str:
    """Return names for people: all of a few, the first of many."""
    if len(nodes) <= MAX_NAMED:
        return ", ".join(nodes)
    return f"{', '.join(nodes[: MAX_NAMED - 1])} and {len(nodes) - MAX_NAMED + 1} more"


def parse_side(text: str, nodes: Sequence[str]) -> tuple[str, ...]:
    """Return the processes that ``text`` names: node ids, chains and patterns with ``*``, joined by commas.

    Raises ``FaultError`` for a name that fits none of ``nodes``.
    """
    found: list[str] = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        pattern = "*" if word == "all" else word
        fitting = [
            node
            for node in nodes
            if fnmatchcase(node, pattern) or fnmatchcase(node.rpartition("-")[0], pattern)
        ]
        if not fitting:
            raise FaultError(
                f"node: got {word!r}, expected one of {', '.join(nodes)}, a chain such as "
                "shard-0 or beacon, a pattern such as shard-*-1, or all"
            )
        found += [node for node in fitting if node not in found]
    if not found:
        raise FaultError(f"nodes: got {text!r}, expected names joined by commas")
    return tuple(found)


def complete_request(network: Network, request: FaultRequest, faults: Iterable[Fault]) -> FaultRequest:
    """Return ``request`` with its defaults filled in; raises ``FaultError`` when it makes no sense here."""
    known = [*network.nodes, *([BROKER] if request.kind in WITH_BROKER else [])]
    for node in (*request.nodes, *request.others):
        if node not in known:
            raise FaultError(f"node: got {node!r}, expected one of {', '.join(known)}")
    if not request.nodes:
        raise FaultError(f"{request.kind}: got no node, expected at least one of {', '.join(known)}")
    for name, ms in (("delay", request.delay_ms), ("jitter", request.jitter_ms)):
        if not 0 <= ms <= MAX_DELAY_MS:
            raise FaultError(f"{name}: got {ms} ms, expected 0 to {MAX_DELAY_MS}")
    if not 0 <= request.for_ms <= MAX_FOR_MS:
        raise FaultError(
            f"duration: got {request.for_ms} ms, expected 1 to {MAX_FOR_MS}, or 0 for until it is healed"
        )
    if request.kind in LINK_KINDS:
        return _complete_link(network, request)
    if request.kind is Kind.BYZANTINE:
        return _complete_byzantine(network, request, faults)
    if request.kind is Kind.SLOW_DISK and not request.delay_ms:
        raise FaultError(
            "slow-disk: got no time, expected by how much each write takes longer, such as 200ms"
        )
    return request


def _complete_link(network: Network, request: FaultRequest) -> FaultRequest:
    both = set(request.nodes) & set(request.others)
    if both and request.kind is Kind.PARTITION:
        raise FaultError(
            f"partition: {', '.join(sorted(both))} stands on both sides, expected sides that share no node"
        )
    if request.kind is Kind.LOSS and not 0 < request.lost <= CERTAIN:
        raise FaultError(f"loss: got {request.lost / 10:g} %, expected more than 0 and at most 100")
    if request.kind is Kind.DELAY and not request.delay_ms + request.jitter_ms:
        raise FaultError("delay: got no time, expected for example 200ms")
    if request.others:
        return request
    rest = tuple(node for node in network.nodes if node not in request.nodes)
    if not rest and request.kind is Kind.PARTITION:
        raise FaultError("partition: one side has all nodes, expected some on the other")
    # What is late or lossy is so among the named nodes as well; a partition leaves each side whole.
    return msgspec.structs.replace(
        request, others=rest if request.kind is Kind.PARTITION else tuple(network.nodes)
    )


def _complete_byzantine(network: Network, request: FaultRequest, faults: Iterable[Fault]) -> FaultRequest:
    if len(request.nodes) != 1:
        raise FaultError(f"byzantine: got {', '.join(request.nodes)}, expected one node")
    if request.mode is None:
        raise FaultError(f"mode: got none, expected one of {', '.join(Mode)}")
    if request.delay_ms and request.mode is not Mode.LATE:
        raise FaultError(f"by: got {request.delay_ms} ms for {request.mode}, expected it with late alone")
    (node,) = request.nodes
    chain, _ = parse_node(node)
    local = get_local_validators(network, node)
    if not local:
        raise FaultError(f"{node} runs no validator, expected one that votes")
    if all(parse_node(other)[0] != chain or other == node for other in network.nodes):
        raise FaultError(
            f"{node} runs every validator of {describe_shard(chain)}: no other process would hear it lie; "
            "try: a network with --nodes-per-shard 4"
        )
    validators = request.validators or local
    if strangers := set(validators) - set(local):
        raise FaultError(
            f"validators: got {sorted(strangers)}, expected some of {list(local)}, which {node} runs"
        )
    for fault in faults:
        other = fault.request
        both = set(other.validators) & set(validators)
        if other.kind is Kind.BYZANTINE and other.nodes == request.nodes and both:
            raise FaultError(
                f"validator {min(both)} of {node} is Byzantine already; "
                f"try: shardyard fault heal {fault.id}{get_name_flag(network.options.name)}"
            )
    delay_ms = request.delay_ms or (DEFAULT_LATE_MS if request.mode is Mode.LATE else 0)
    return msgspec.structs.replace(request, validators=tuple(sorted(validators)), delay_ms=delay_ms)


def compute_node_faults(faults: Iterable[Fault], node: str) -> NodeFaults:
    """Return what ``faults`` mean for the process ``node`` itself."""
    links: list[LinkRule] = []
    byzantine: list[ByzantineRule] = []
    disk_delay_ms = 0
    for fault in faults:
        asked = fault.request
        if asked.kind in LINK_KINDS:
            if senders := _list_senders(asked, node):
                lost = CERTAIN if asked.kind is Kind.PARTITION else asked.lost
                links.append(
                    LinkRule(senders=senders, lost=lost, delay_ms=asked.delay_ms, jitter_ms=asked.jitter_ms)
                )
        elif node in asked.nodes and asked.kind is Kind.BYZANTINE and asked.mode is not None:
            byzantine.append(
                ByzantineRule(mode=asked.mode, validators=asked.validators, delay_ms=asked.delay_ms)
            )
        elif node in asked.nodes and asked.kind is Kind.SLOW_DISK:
            disk_delay_ms += asked.delay_ms
    return NodeFaults(links=tuple(links), byzantine=tuple(byzantine), disk_delay_ms=disk_delay_ms)


def _list_senders(asked: FaultRequest, node: str) -> tuple[NodeId, ...]:
    """Return from whom ``node`` hears over a link that ``asked`` names."""
    senders: set[str] = set()
    if node in asked.others:
        senders |= set(asked.nodes)
    if node in asked.nodes and not asked.is_one_way:
        senders |= set(asked.others)
    return tuple(NodeId(sender) for sender in sorted(senders - {node}))


def list_warnings(network: Network, faults: Sequence[Fault]) -> list[str]:
    """Return what ``faults`` cost in stake: a chain with a third of it Byzantine, or without a quorum that runs."""
    found: list[str] = []
    for chain, committee in network.genesis.committees.items():
        liars = {
            validator
            for fault in faults
            if fault.kind is Kind.BYZANTINE and parse_node(fault.request.nodes[0])[0] == chain
            for validator in fault.request.validators
        }
        away = set(_list_away(network, faults, chain))
        lying = sum(committee.stakes[validator] for validator in liars)
        gone = sum(committee.stakes[validator] for validator in away | liars)
        name, total, size = describe_shard(chain), committee.total_stake, len(committee)
        if 3 * lying >= total:
            found.append(
                f"{name}: {len(liars)} of {size} validators are Byzantine, a third of the stake or more: "
                "it may halt, or fork with evidence"
            )
        elif gone and not is_quorum(total - gone, total):
            found.append(
                f"{name}: {size - len(away | liars)} of {size} validators are there and honest, fewer than a quorum: "
                "it may make no final block until it heals"
            )
    return found


def _list_away(network: Network, faults: Iterable[Fault], chain: ShardId) -> Iterable[int]:
    for fault in faults:
        if fault.kind in {Kind.KILL, Kind.PAUSE, Kind.FULL_DISK}:
            for node in fault.request.nodes:
                if node != BROKER and parse_node(node)[0] == chain:
                    yield from get_local_validators(network, node)


class FaultBook:
    """The faults that hold, by number."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._faults: dict[int, Fault] = {}
        self._last_id = 0

    @property
    def faults(self) -> list[Fault]:
        """All of them, oldest first."""
        return list(self._faults.values())

    def add(self, request: FaultRequest) -> Fault:
        """Note a fault that holds from now on; raises ``FaultError``."""
        if len(self._faults) >= MAX_FAULTS:
            raise FaultError(
                f"got {MAX_FAULTS} faults already; try: shardyard fault heal{get_name_flag(self._network.options.name)}"
            )
        asked = complete_request(self._network, request, self._faults.values())
        self._last_id += 1
        now = time.time()
        ends_at = now + asked.for_ms / 1000 if asked.for_ms else None
        fault = Fault(self._last_id, asked, now, ends_at)
        self._faults[fault.id] = fault
        return fault

    def get(self, fault_id: int) -> Fault:
        """Return a fault; raises ``FaultError`` when there is none of that number."""
        try:
            return self._faults[fault_id]
        except KeyError:
            known = ", ".join(map(str, self._faults)) or "none, no fault holds"
            raise FaultError(f"fault: got {fault_id}, expected one of {known}") from None

    def remove(self, fault_id: int) -> Fault | None:
        """Strike a fault out."""
        return self._faults.pop(fault_id, None)

    def release(self, node: str) -> list[int]:
        """Take ``node`` out of all pauses, for it sleeps no more; return the numbers of those that have no node left."""
        left: list[int] = []
        for fault in self.faults:
            nodes = tuple(one for one in fault.request.nodes if one != node)
            if fault.kind is not Kind.PAUSE or nodes == fault.request.nodes:
                continue
            if not nodes:
                left.append(fault.id)
                continue
            request = msgspec.structs.replace(fault.request, nodes=nodes)
            self._faults[fault.id] = msgspec.structs.replace(fault, request=request)
        return left

    def find(self, node: str, kinds: Collection[Kind]) -> Fault | None:
        """Return the first fault of one of ``kinds`` that names ``node``."""
        return next(
            (fault for fault in self._faults.values() if fault.kind in kinds and node in fault.request.nodes),
            None,
        )
