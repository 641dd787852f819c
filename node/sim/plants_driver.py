"""Planted bugs in how machines are driven, and mistakes of the engine that the signer would have stopped.

What is on disk, what a restart brings back, what is delivered twice. Where a rule is kept at two places, both are changed.
"""

from node.sim.plants import Passage, Plant

DRIVER = "node.sim.node"
JUSTIFY = "shardyard.consensus.justify"
SIGNER = "shardyard.consensus.signer"

DRIVER_PLANTS: tuple[Plant, ...] = (
    Plant(
        "driver-skips-an-fsync",
        "S5",
        DRIVER,
        "        self.disk.sync()\n        for record in records:\n",
        "        for record in records:\n",
        "the driver says that records are on disk and never syncs them",
        is_safety=True,
    ),
    Plant(
        "driver-signs-before-the-disk",
        "S5",
        DRIVER,
        "            case fx.Execute():\n                self._executor.start_execute(effect)\n",
        "            case fx.Execute():\n                self._executor.start_execute(effect)\n"
        "            case fx.Sign(requests):\n                self._sign(requests)\n",
        "the signer is asked before the log has what the vote rests on",
        is_safety=True,
    ),
    Plant(
        "driver-forgets-what-was-signed",
        "S4",
        DRIVER,
        "            self.signer = self.record.read()\n",
        "            self.signer = self.record.read() and SignerState()\n",
        "a restart begins with an empty record of what was signed",
        is_safety=True,
        profile="crashy",
    ),
    Plant(
        "x5-delivered-twice",
        "X5",
        "shards.inbox",
        "        first = position - self._pruned\n        if first < 0:\n",
        "        first = max(0, position - self._pruned - 1)\n        if first < 0:\n",
        "the last receipt that a block took is due once more in the next",
        is_safety=True,
    ),
    Plant(
        "s2-late-timer",
        "S2",
        "shardyard.consensus.simplex",
        "            self._voter.skip(self._slot)\n",
        "            self._voter.skip(Slot(self._slot - 1))\n            self._voter.skip(self._slot)\n",
        "a slot's timer also skips the slot before, finalized or not, and the signer lets it",
        is_safety=True,
        also=(
            Passage(
                SIGNER, 'return "S2: a block was finalized in this slot" if entry.final else ""', 'return ""'
            ),
        ),
    ),
    Plant(
        "s4-slot-used-again",
        "S4",
        "shardyard.consensus.proposer",
        "        if self._tree.get_at_slot(self._slot):\n",
        "        if False:\n",
        "a leader that starts again proposes once more in the slot, and the signer lets it",
        is_safety=True,
        also=(
            Passage(
                SIGNER,
                'return "" if entry.proposed in {b"", wanted} else "S4: another block was proposed in this slot"',
                'return ""',
            ),
        ),
    ),
    Plant(
        "a1-nobody-asks-why",
        "A1",
        "shardyard.consensus.proposer",
        "            if self._certificates.get_skip(slot) is None:\n                return None\n",
        "",
        "a leader passes over a notarized slot that it cannot justify to pass over, and nobody checks its justification",
        is_safety=True,
        also=(
            Passage(
                JUSTIFY,
                "    if len(justification.skips) != header.slot - header.parent_slot - 1:\n",
                "    if len(justification.skips) > header.slot:\n",
            ),
            Passage(
                JUSTIFY,
                "        if skip.kind is not VoteKind.SKIP or skip.slot != header.parent_slot + offset:\n",
                "        if skip.kind is not VoteKind.SKIP or offset < 0:\n",
            ),
        ),
    ),
)
