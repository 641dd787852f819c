"""How long a process that was killed is away: until it votes again as its peers count it, and until finality moves on.

A node votes again with the first vote of its new life that a peer, when it came, had neither heard before nor left behind
its last final block (``node.ballots``); the only process of a chain counts its votes itself. Clocks: all processes of one
machine share the wall clock, so the moments that nodes noted are exact however rarely they are asked. Time runs from just
before the signal is sent; the launcher tells when it started the process anew. A launcher that dies takes everything
with it: then every node has to vote again.

Finality is back when every chain has a final block, on some node, that no node had when the signal was sent.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from node.bench.devnet import LAUNCHER, Devnet
from node.control import ControlError
from node.network import get_local_validators, parse_node
from shardyard.ids import ShardId

BROKER: Final = "broker"
POLL_S: Final = 0.1
GIVE_UP_S: Final = 30.0
NEVER: Final = -1.0


class Revival(msgspec.Struct, frozen=True):
    """What became of one killed process, in seconds; -1 for never within ``GIVE_UP_S``, or not at all."""

    victim: str
    nodes: int
    """Nodes that had to vote again: 1, or all for a launcher, or none for the broker."""
    respawned_s: float
    """From the signal to the start of the new process, the last one of several."""
    voting_s: float
    """From the signal to the first vote that counts, of the last one of several."""
    voting_after_respawn_s: float


class Round(msgspec.Struct, frozen=True):
    """Processes that were killed together."""

    at_s: float
    """When, from the start of the leg."""
    resumed_s: float
    """From the signal until finality is back on every chain; -1 for never within ``GIVE_UP_S``."""
    revivals: tuple[Revival, ...]

    @property
    def victims(self) -> list[str]:
        """Who was killed."""
        return [one.victim for one in self.revivals]

    @property
    def missing(self) -> int:
        """Processes that did not come back, and one when finality did not."""
        silent = sum(one.nodes > 0 and one.voting_s < 0 for one in self.revivals)
        return silent + (self.resumed_s < 0)


class Away:
    """One node that must vote again."""

    def __init__(self, node: str, old_pid: int, validators: Sequence[int]) -> None:
        self.node = node
        self.chain, _ = parse_node(node)
        self.old_pid = old_pid
        self.validators = [str(validator) for validator in validators]
        self.respawned_ms = 0
        self.signed: list[Any] = []
        self.voting_ms = 0

    def match(self, taken: dict[str, list[Any]]) -> None:
        """Look for votes of this life among those that a peer took after the kill."""
        own = {(kind, slot): at_ms for kind, slot, at_ms in self.signed}
        for validator in self.validators:
            for kind, slot, at_ms in taken.get(validator, []):
                # A vote of the old life that came late may be signed again; what was taken before that does not count.
                is_new = at_ms >= own.get((kind, slot), at_ms + 1)
                if is_new and not 0 < self.voting_ms <= at_ms:
                    self.voting_ms = at_ms


async def kill_together(devnet: Devnet, victims: Sequence[str], started: float) -> Round:
    """Kill ``victims`` at once; return when they vote and finality is back, or given up."""
    pids = await devnet.get_pids()
    before = await read_heights(devnet, devnet.network.nodes)
    killed, killed_ms = time.monotonic(), time.time_ns() // 1_000_000
    await asyncio.gather(*(devnet.kill(victim) for victim in victims))
    nodes = devnet.network.nodes if LAUNCHER in victims else [name for name in victims if name != BROKER]
    away = [Away(node, pids.get(node, 0), get_local_validators(devnet.network, node)) for node in nodes]
    resumed = NEVER
    while time.monotonic() < killed + GIVE_UP_S:
        await asyncio.sleep(POLL_S)
        if resumed < 0:
            heights = await read_heights(devnet, devnet.network.nodes)
            if all(heights.get(chain, 0) > height for chain, height in before.items()):
                resumed = time.monotonic() - killed
        await _follow(devnet, away)
        if resumed >= 0 and all(one.voting_ms for one in away):
            break
    revivals = [_sum_up(victim, away, killed_ms) for victim in victims]
    return Round(round(killed - started, 2), round(resumed, 3), tuple(revivals))


async def _follow(devnet: Devnet, away: Sequence[Away]) -> None:
    """Ask the new processes what they signed, and their peers what they took of it."""
    waiting = [one for one in away if not one.voting_ms]
    if any(not one.respawned_ms for one in waiting):
        await _note_respawns(devnet, waiting)
    answers = await asyncio.gather(*(_ask(devnet, one.node, "ballots") for one in waiting))
    for one, answer in zip(waiting, answers, strict=True):
        if answer is not None and answer["pid"] != one.old_pid:
            one.signed = answer["signed"]
    waiting = [one for one in waiting if one.signed]
    peers = {one.node: _list_peers(devnet, one) for one in waiting}
    asked = sorted({peer for found in peers.values() for peer in found})
    told = dict(
        zip(asked, await asyncio.gather(*(_ask(devnet, peer, "ballots") for peer in asked)), strict=True)
    )
    for one in waiting:
        for peer in peers[one.node]:
            if (answer := told[peer]) is not None:
                one.match(answer["taken"])
        if not peers[one.node]:  # nobody else votes on this chain
            one.voting_ms = one.signed[0][2]


async def _note_respawns(devnet: Devnet, waiting: Sequence[Away]) -> None:
    nodes = await _ask(devnet, LAUNCHER, "nodes")
    now_ms = time.time_ns() // 1_000_000
    running = {found["node"]: found for found in nodes or () if found["pid"]}
    for one in waiting:
        found = running.get(one.node)
        if found is not None and found["pid"] != one.old_pid and not one.respawned_ms:
            one.respawned_ms = now_ms - round(1000 * found["age_s"])


def _list_peers(devnet: Devnet, one: Away) -> list[str]:
    return [node for node in devnet.network.nodes if node != one.node and parse_node(node)[0] == one.chain]


def _sum_up(victim: str, away: Sequence[Away], killed_ms: int) -> Revival:
    own = list(away) if victim == LAUNCHER else [one for one in away if one.node == victim]

    def last(moments: list[int]) -> float:
        return round((max(moments) - killed_ms) / 1000, 3) if moments and all(moments) else NEVER

    voting = [one.voting_ms for one in own]
    is_complete = bool(own) and all(one.voting_ms and one.respawned_ms for one in own)
    after = max(one.voting_ms - one.respawned_ms for one in own) / 1000 if is_complete else NEVER
    return Revival(victim, len(own), last([one.respawned_ms for one in own]), last(voting), after)


async def read_heights(devnet: Devnet, nodes: Sequence[str]) -> dict[ShardId, int]:
    """Return the highest final height of every chain of ``nodes``, over those that answer."""
    answers = await asyncio.gather(*(_ask(devnet, node, "finals", first=1, count=1) for node in nodes))
    heights: dict[ShardId, int] = {}
    for node, answer in zip(nodes, answers, strict=True):
        if answer is not None:
            chain, _ = parse_node(node)
            heights[chain] = max(heights.get(chain, 0), int(answer["height"]))
    return heights


async def _ask(devnet: Devnet, process: str, method: str, **params: object) -> Any:
    try:
        return await devnet.ask(process, method, **params)
    except ControlError:
        return None  # down, or not there yet
