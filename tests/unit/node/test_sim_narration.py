"""What is told of a run: the lines that were asked for, and the same story in every process."""

import os
import subprocess
import sys

import pytest

from node.sim.narration import Filter, Line
from node.sim.sources import ROOT

STORY = """
from node.sim.narration import Epilogue, Line
epilogue = Epilogue(3)
for chain in ("beacon", "shard-0", "shard-1", "shard-2"):
    for index in range(2):
        epilogue.on_word(5, f"{chain}-{index}", "says something")
print(*epilogue.tell("I2: shard 0 and shard 1 and the beacon disagree"), sep="\\n")
"""


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("shard-1", ["shard-1-0", "shard-1-10"]),
        ("shard-1-1", []),
        ("shard-1-10", ["shard-1-10"]),
        ("beacon", ["beacon-0"]),
    ],
)
def test_of_a_chain_or_a_node_nobody_else_is_shown(asked, shown):
    everybody = ["beacon-0", "shard-1-0", "shard-1-10", "shard-10-0", "nemesis"]
    wanted = Filter(nodes=(asked,))
    found = [who for who in everybody if wanted.admits(Line(0, who, "starts"))]
    assert found == [*shown, "nemesis"], "faults are shown whatever node they hit"


def test_a_story_is_told_in_one_order_under_every_hash_seed():
    told = {
        subprocess.run(
            [sys.executable, "-c", STORY],
            env=os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in range(6)
    }
    assert len(told) == 1
