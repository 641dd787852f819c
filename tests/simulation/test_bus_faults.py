"""Networks over real distances, with busy links, and with a bus that fails in parts."""

from collections import Counter

import pytest

from node.sim.run import describe_result, run
from node.sim.scenario import FaultProfile, Scenario


def run_scenario(seed=1, **profile):
    result = run(
        seed, scenario=Scenario(duration_ms=60_000, settle_ms=30_000, profile=FaultProfile(**profile))
    )
    assert result.is_ok, describe_result(result)
    return result.report


@pytest.mark.parametrize("regions", ["lan", "continent", "world"])
def test_every_distance_finalises_a_block_per_second(regions):
    report = run_scenario(regions=regions, jitter_ms=2, latency_ms=(0, 0))
    assert min(report.heights.values()) >= 57


def test_a_link_of_a_megabit_is_enough_for_a_quiet_network():
    assert min(run_scenario(regions="world", bandwidth=125_000, latency_ms=(0, 0)).heights.values()) >= 55


def test_flaps_lost_sessions_and_overflows_only_delay():
    faults: Counter[str] = Counter()
    overflown = 0
    for seed in range(4):
        report = run_scenario(seed, flaps=6, lost_sessions=4, overflows=6, outages=2, latency_ms=(1, 200))
        faults.update(report.faults)
        assert report.bus["lost"] > 300
        overflown += report.bus.get("overflown", 0)
    assert min(faults["flap"], faults["overflow"]) >= 16
    assert faults["lost session"] >= 12
    assert overflown > 20
