"""Planting: a changed passage is in the process that planted it and nowhere else, and a plant that does not fit is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from node.sim.mutants import PLANTS, get_plant
from node.sim.plants import Passage, Plant, PlantError, apply_plant, install_plant, read_module

ROOT = Path(__file__).resolve().parents[3]
PLANT = Plant("test", "Q", "shardyard.quorum", "2 * total_stake", "1 * total_stake", "half is enough", True)


def run_python(code):
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    )


def test_a_passage_is_replaced_when_it_stands_there_once():
    assert apply_plant(PLANT, "shardyard.quorum", "q = 2 * total_stake\n") == "q = 1 * total_stake\n"
    assert apply_plant(PLANT, "shardyard.codec", "q = 2 * total_stake\n") == "q = 2 * total_stake\n"


@pytest.mark.parametrize("source", ["nothing", "2 * total_stake 2 * total_stake"])
def test_a_passage_that_is_absent_or_doubled_is_refused(source):
    with pytest.raises(PlantError, match=r"expected exactly one to change; try: "):
        apply_plant(PLANT, "shardyard.quorum", source)


def test_a_plant_that_changes_nothing_is_refused():
    same = Plant("test", "Q", "shardyard.quorum", "quorum", "quorum", "nothing", True)
    with pytest.raises(PlantError):
        apply_plant(same, "shardyard.quorum", "quorum")


def test_a_module_that_is_imported_already_cannot_be_planted():
    with pytest.raises(PlantError, match="imported already"):
        install_plant(Plant("test", "Q", "node.sim.plants", "install_plant", "implant", "another name", True))


@pytest.mark.parametrize("module", ["node.sim.nowhere", "nowhere.at_all", "shardyard._native"])
def test_a_module_without_source_is_named(module):
    with pytest.raises(PlantError, match=module):
        read_module(module)


def test_a_planted_bug_is_in_its_process_and_not_on_disk():
    program = """
from node.sim.mutants import get_plant
from node.sim.plants import install_plant
install_plant(get_plant("q-two-thirds-suffice"))
from shardyard.quorum import is_quorum
print(is_quorum(2, 3))
"""
    assert run_python(program).stdout == "True\n"
    clean = program.replace('install_plant(get_plant("q-two-thirds-suffice"))', "")
    assert run_python(clean).stdout == "False\n"


def test_names_and_rules_find_plants_and_strangers_get_the_nearest():
    assert get_plant("driver-skips-an-fsync").rule == "S5"
    assert get_plant("s3").rule == "S3"
    with pytest.raises(PlantError, match="try: --plant driver-skips-an-fsync"):
        get_plant("driver-skips-a-fsync")
    with pytest.raises(PlantError, match="--plant list"):
        get_plant("zzzzzz")


@pytest.mark.parametrize("plant", [item for item in PLANTS if item.also], ids=lambda plant: plant.name)
def test_every_passage_of_a_plant_fits_todays_source(plant):
    for passage in plant.passages:
        assert isinstance(passage, Passage)
        compile(apply_plant(plant, passage.module, read_module(passage.module)), passage.module, "exec")
