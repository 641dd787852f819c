"""What a check ends with, and how it asks: a verdict, its figures, and who answered."""

import asyncio
from typing import Any, Final

import msgspec

from node.control import ControlError, ask
from node.network import Network, parse_node
from shardyard.ids import ShardId

ASK_TIMEOUT_S: Final = 5.0
MAX_FINDINGS: Final = 20


class Verdict(msgspec.Struct, frozen=True):
    """The result of one check. ``findings`` say what breaks the promise; the first of many are kept."""

    check: str
    held: bool
    words: str
    figures: dict[str, Any]
    findings: tuple[str, ...] = ()


def build_verdict(check: str, words: str, figures: dict[str, Any], findings: list[str]) -> Verdict:
    """Return the verdict that holds when there are no findings."""
    return Verdict(check, not findings, words, figures, tuple(findings[:MAX_FINDINGS]))


class Witnesses:
    """The nodes of a running network, asked all at once; those that do not answer are remembered."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.silent: dict[str, str] = {}
        """Why a node did not answer, by its name, as of the last time it was asked."""

    async def ask(self, node: str, method: str, **params: Any) -> Any:
        """Return the answer of ``node``, None when there is none."""
        try:
            found = await ask(self.network.get_control_path(node), method, timeout_s=ASK_TIMEOUT_S, **params)
        except ControlError as error:
            self.silent[node] = str(error)
            return None
        self.silent.pop(node, None)
        return found

    async def ask_all(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the answers by node; those that do not answer are missing."""
        nodes = self.network.nodes
        answers = await asyncio.gather(*(self.ask(node, method, **params) for node in nodes))
        return {node: found for node, found in zip(nodes, answers, strict=True) if found is not None}

    def list_nodes(self, chain: ShardId) -> list[str]:
        """Return the nodes of a chain."""
        return [node for node in self.network.nodes if parse_node(node)[0] == chain]

    def describe_silent(self) -> str:
        """Return who did not answer, for the end of a sentence; empty when all did."""
        return f"; no answer from {', '.join(sorted(self.silent))}" if self.silent else ""
