"""The ledger: every finished run is in it once, whatever it was interrupted by; and what it adds up to."""

import json

import msgspec
import pytest

from node.sim.coverage import ENOUGH, EXEMPT, build_table, is_exempt
from node.sim.faults import PEACE
from node.sim.ledger import Ledger, LedgerError, add_up, build_entry
from node.sim.phases import PHASES
from node.sim.recipe import Recipe
from node.sim.run import Result
from node.sim.scenario import Scenario
from node.sim.world import Report


def build_result(seed, violation="", faults=None, minutes=2.0):
    report = Report(
        trace_hash=f"{seed:032x}",
        events=10,
        heights={0: 5},
        counters={"delivered": 3, "final_blocks": 7},
        faults={"crash": 2, "freeze": 1} if faults is None else faults,
        coverage={"crash while VOTING": 2},
        bus={},
    )
    return Result(
        recipe=Recipe(seed, minutes=minutes),
        scenario=Scenario(),
        violation=violation,
        cpu_s=0.5,
        simulated_s=60.0 * minutes,
        report=None if violation else report,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "below" / "ledger.jsonl"


def test_what_is_appended_is_there_when_it_is_opened_again(path):
    ledger = Ledger(path)
    for seed in range(3):
        ledger.append(build_result(seed))
    again = Ledger(path)
    assert again.entries == ledger.entries
    assert Recipe(1) in again
    assert Recipe(1, minutes=10.0) not in again, "two minutes are not ten"
    assert Recipe(3) not in again


@pytest.mark.parametrize("kept", [0, 1, 20, -1])
def test_a_line_that_is_cut_costs_only_itself(path, kept):
    ledger = Ledger(path)
    for seed in range(3):
        ledger.append(build_result(seed))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:kept])
    torn = Ledger(path)
    assert set(torn.entries) == {Recipe(0), Recipe(1)} | ({Recipe(2)} if kept == -1 else set())
    assert torn.torn == (kept in {1, 20})
    torn.append(build_result(5))
    again = Ledger(path)
    assert Recipe(5) in again, "the next line begins anew"
    assert Recipe(1) in again


def test_lines_of_other_sources_and_garbage_are_counted_and_not_believed(path):
    ledger = Ledger(path)
    entry = ledger.append(build_result(0))
    other = msgspec.structs.replace(entry, sources="0" * 16)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(other) + b"\n" + b"[1, 2]\nnonsense\n" + b"\xff\xfe\n")
    again = Ledger(path)
    assert list(again.entries) == [Recipe(0)]
    assert again.others == {"0" * 16: 1}
    assert again.torn == 3


def test_a_violation_is_not_forgotten_for_a_later_run_that_held(path):
    ledger = Ledger(path)
    ledger.append(build_result(4, violation="I5: two chains"))
    ledger.append(build_result(4))
    assert [entry.violation for entry in add_up(Ledger(path).entries.values()).violations] == [
        "I5: two chains"
    ]


def test_two_hunts_write_to_one_ledger(path):
    first, second = Ledger(path), Ledger(path)
    first.append(build_result(0))
    second.append(build_result(1))
    first.append(build_result(2))
    assert set(Ledger(path).entries) == {Recipe(0), Recipe(1), Recipe(2)}


def test_a_ledger_that_is_a_folder_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(LedgerError, match="try: --ledger"):
        Ledger(tmp_path)
    ledger = Ledger(tmp_path / "file" / "ledger")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerError, match="try: --ledger"):
        ledger.append(build_result(0))


def test_totals_add_up_and_name_the_poorest_run():
    entries = [
        build_entry(build_result(0)),
        build_entry(build_result(1, faults={"crash": 1})),
        build_entry(build_result(2, violation="I7: stands still", minutes=10.0)),
    ]
    totals = add_up(entries)
    assert totals.seeds == {2.0: 2, 10.0: 1}
    assert totals.faults == {"crash": 3, "freeze": 1}
    assert (totals.fewest_faults, totals.fewest_classes) == (1, 1)
    assert (totals.delivered, totals.blocks) == (6, 14)
    assert totals.speed == pytest.approx(840 / 1.5)
    assert [entry.recipe.seed for entry in totals.violations] == [2]


def test_holes_are_the_pairs_that_were_hit_too_rarely():
    table = build_table(
        {
            "crash while skipping": ENOUGH,
            "crash while building": ENOUGH - 1,
            "slow disk while skipping": 3,
            "not a pair": 7,
        }
    )
    assert table.faults[:2] == ("crash", "slow disk")
    assert table.phases[:2] == ("skipping", "building")
    assert table.holes[0] == ("crash", "building", ENOUGH - 1)
    assert ("slow disk", "skipping", 3) in table.holes
    assert ("slow disk", "building", 0) in table.holes


def test_what_never_hit_anything_is_on_the_axes_too():
    """Otherwise the coverage would be the better the less has happened."""
    table = build_table({f"crash while {phase}": ENOUGH for phase in PHASES[1:]})
    assert set(table.phases) == set(map(str, PHASES))
    assert set(table.faults) == {*PEACE.strikes, *PEACE.roles}
    assert ("crash", PHASES[0], 0) in table.holes
    assert ("twin", PHASES[0], 0) in table.holes
    exempt = sum(len(phases) for phases, _ in EXEMPT.values())
    assert len(table.holes) == len(table.faults) * len(PHASES) - (len(PHASES) - 1) - exempt
    assert not any(is_exempt(fault, phase) for fault, phase, _ in table.holes)


def test_a_line_of_the_ledger_is_plain_json(path):
    Ledger(path).append(build_result(0))
    line = json.loads(path.read_text())
    assert line["recipe"]["seed"] == 0
    assert line["faults"] == {"crash": 2, "freeze": 1}
