"""Faults as one process has them: what its launcher told it, read at its start and changed while it runs.

The launcher leaves everybody's faults in one file beside the control sockets, so that a process which is started again
has them before it hears its first message; changes come over the control socket. The file goes when the network goes
down, so no fault outlives the run it was made in.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from node.bus.byzantine import ByzantineBus, Liar
from node.bus.endpoint import EnvelopeBus
from node.bus.faults import NodeFaults
from node.control import ControlError
from node.network import Network, get_local_validators, parse_node
from node.storage.frames import DISK_PACE

FAULTS_FILE = "faults.json"


class FaultFile(msgspec.Struct, frozen=True):
    """The faults of a running network: by process, and which processes are stopped by a signal."""

    nodes: dict[str, NodeFaults]
    paused: dict[str, int] = {}
    """Process ids by name: who finds this file after a crash of the launcher must let them go on."""


def get_faults_path(network: Network) -> Path:
    """Return where the launcher leaves the faults of ``network``."""
    return network.run_dir / FAULTS_FILE


def read_fault_file(network: Network) -> FaultFile:
    """Return the faults of ``network``; none when there is no file, or none that can be read."""
    try:
        return msgspec.json.decode(get_faults_path(network).read_bytes(), type=FaultFile)
    except (OSError, msgspec.MsgspecError):
        return FaultFile({})


class Injection:
    """Makes the faults of one process; ``bus`` is what its driver speaks through."""

    def __init__(self, network: Network, node: str, bus: EnvelopeBus) -> None:
        chain, _ = parse_node(node)
        validators = get_local_validators(network, node)
        peers = [peer for peer in network.nodes if parse_node(peer)[0] == chain and peer != node]
        self._links = bus.links
        self._liar = Liar(
            network.genesis.get_domain(chain), network.read_validator_secrets(chain, validators), peers
        )
        self.bus = ByzantineBus(bus, self._liar)
        self._faults = NodeFaults()
        self.apply(read_fault_file(network).nodes.get(node, NodeFaults()))

    def apply(self, faults: NodeFaults) -> None:
        """Have ``faults`` from now on, and no others."""
        self._faults = faults
        self._links.set(faults.links)
        self._liar.set(faults.byzantine)
        DISK_PACE.delay_s = faults.disk_delay_ms / 1000

    async def answer(self, params: dict[str, Any]) -> dict[str, Any]:
        """Take the faults that a launcher sends; raises ``ControlError`` for what are none."""
        try:
            self.apply(msgspec.convert(params.get("faults"), NodeFaults))
        except msgspec.ValidationError as error:
            raise ControlError(f"faults: {error}") from error
        return self.describe()

    def describe(self) -> dict[str, Any]:
        """Return what ``shardyard node show`` shows of the faults here: how many, and what came of them."""
        return {
            "count": self._faults.count,
            "lost": self._links.lost,
            "delayed": self._links.delayed,
            "lies": dict(self._liar.told),
        }


def write_fault_file(network: Network, faults: FaultFile) -> None:
    """Put ``faults`` in place so that a reader sees the old ones or the new ones."""
    path = get_faults_path(network)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(msgspec.to_builtins(faults)) + "\n")
    partial.replace(path)
