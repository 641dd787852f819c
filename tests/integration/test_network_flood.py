"""A flood over the public JSON-RPC of real processes: everything answered is final, once."""

from node.bench.e2e import E2eOptions, measure_e2e


async def test_a_flood_is_final_and_nothing_is_lost_or_doubled(tmp_path):
    options = E2eOptions(shards=2, cross=0.2, seconds=4.0, rate=1500.0, connections=2, batch=50, accounts=40)
    report = await measure_e2e(tmp_path, options)
    (leg,) = report.details["legs"]
    assert report.held, report.targets
    assert leg["accepted"] >= 3000
    assert leg["refused"] == 0
    assert leg["final_tps"] > 0
    assert leg["latency"]["p95"] > 0
