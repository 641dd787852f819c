"""The page of a run: everything that it shows is what happened, and it needs no other file."""

import json
import re

import pytest

from node.cli.root import run as run_command
from node.sim.node import SimNode
from node.sim.recipe import Recipe
from node.sim.recording import MARK, TEMPLATE, Recorder, write_page
from node.sim.run import run_recipe
from node.sim.scenario import FaultProfile, Scenario

RECIPE = Recipe(3, minutes=0.5, tps=4.0)


@pytest.fixture(scope="module")
def recorded():
    recorder = Recorder()
    result = run_recipe(RECIPE, listener=recorder)
    assert result.is_ok, result.violation
    return recorder, result


def test_listening_changes_nothing(recorded):
    assert recorded[1].report == run_recipe(RECIPE).report


def test_every_final_block_of_every_chain_is_shown_once(recorded):
    recorder, result = recorded
    built = recorder.build(result)
    heights = {}
    for item in built["finals"]:
        heights.setdefault(item.chain, []).append(item.height)
    expected = {
        "beacon" if chain > 1 << 16 else f"shard-{chain}": height
        for chain, height in result.report.heights.items()
    }
    assert {chain: max(found) for chain, found in heights.items()} == expected
    assert all(found == list(range(1, len(found) + 1)) for found in heights.values())


def test_messages_fly_from_the_block_that_emitted_them_to_the_one_that_took_them(recorded):
    recorder, result = recorded
    flights = recorder.build(result)["flights"]
    counters = result.report.counters
    assert len(flights) == counters["emitted"] > 10
    assert sum(flight.delivered_ms >= 0 for flight in flights) == counters["delivered"]
    assert all(flight.emitted_ms < flight.delivered_ms for flight in flights if flight.delivered_ms >= 0)


def test_steps_are_in_order_and_faults_belong_to_nobody(recorded):
    recorder, result = recorded
    built = recorder.build(result)
    instants = [step[0] for step in built["steps"]]
    assert instants == sorted(instants)
    assert all((step[1] == -1) == (built["kinds"][step[2]] == "fault") for step in built["steps"])
    assert {step[1] for step in built["steps"]} == set(range(-1, len(built["nodes"])))


def test_whoever_is_down_is_shown_to_be_down_whatever_took_it_down(monkeypatch):
    profile = FaultProfile(crashes=2, io_errors=3, bit_flips=3, lost_records=3, old_records=3)
    down = []
    original = SimNode.crash

    def crash(self):
        down.append((self._clock.now_ms, self.name))
        return original(self)

    monkeypatch.setattr(SimNode, "crash", crash)
    recorder = Recorder()
    scenario = Scenario(duration_ms=60_000, settle_ms=30_000, profile=profile)
    result = run_recipe(Recipe(3), scenario=scenario, listener=recorder)
    assert result.is_ok, result.violation
    assert {"bit flip", "lost record", "old record"} & result.report.faults.keys()
    built = recorder.build(result)
    shown = sorted((start, built["nodes"][node]) for node, start, _ in built["down"])
    assert shown == sorted(down)


def test_the_page_is_one_small_file_with_the_recording_in_it(recorded, tmp_path):
    recorder, result = recorded
    path = tmp_path / "run.html"
    size = write_page(recorder, result, path)
    text = path.read_text(encoding="utf-8")
    assert size == len(text.encode()) < 3_000_000
    assert MARK not in text
    assert not re.search(r"https?://|\bsrc=|@import|url\(", text), "nothing is fetched"
    (line,) = re.findall(r"^const run = (.*);$", text, re.MULTILINE)
    assert json.loads(line)["command"] == RECIPE.command
    assert text.count("</script>") == TEMPLATE.read_text(encoding="utf-8").count("</script>") == 1


def test_what_a_run_says_cannot_leave_its_script(recorded, tmp_path):
    recorder, result = recorded
    recorder.on_word(10**6, "nemesis", "</script><b>")
    path = tmp_path / "run.html"
    write_page(recorder, result, path)
    assert path.read_text(encoding="utf-8").count("</script>") == 1


def test_a_page_that_cannot_be_written_is_refused_before_the_run(tmp_path, capsys):
    assert run_command(["sim", "run", "--seed", "1", "--minutes", "0.5", "--html", str(tmp_path)]) == 2
    assert "is a directory" in capsys.readouterr().err
