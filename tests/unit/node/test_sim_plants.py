"""The table of planted bugs: each can be planted in today's source, and every rule that is implemented has one."""

from pathlib import Path

import pytest

from node.sim.mutants import PLANTS

ROOT = Path(__file__).resolve().parents[3]
RULES = {
    "S1", "S2", "S3", "S4", "S5", "D1", "D2", "E1", "A1", "A2", "A3",
    "L1", "L2", "L3", "L4", "L5", "L6", "L7", "L9", "L10", "L11",
    "X0", "X1", "X2", "X3", "X4", "X5", "X6", "X7", "X8", "X9", "X10", "X11", "X13", "X14", "B6", "P4",
}  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_plant_changes_one_place_of_a_module_that_still_compiles(plant):
    path = ROOT / (plant.module.replace(".", "/") + ".py")
    source = path.read_text(encoding="utf-8")
    assert source.count(plant.old) == 1
    compile(source.replace(plant.old, plant.new), str(path), "exec")


def test_every_rule_has_a_plant():
    assert len({plant.name for plant in PLANTS}) == len(PLANTS) >= 40
    assert RULES - {plant.rule for plant in PLANTS} == set()
