"""The bench of hostile blocks: each is judged by its time and by its processor time, and one that is over fails it."""

from node.bench.hostile import LIMIT, HostileRun, Row, judge


def make_row(block: str, wall: float, cpu: float) -> Row:
    return Row(block, 1000, 1000, 1000 * wall, 1000 * cpu, wall, cpu)


def test_each_block_is_judged_twice_and_all_have_to_hold() -> None:
    fair = make_row("fair", LIMIT, LIMIT)
    late, greedy = make_row("late", LIMIT + 0.1, 1.0), make_row("greedy", 0.6, LIMIT + 0.3)
    report = judge(HostileRun(2000, 15, 2, (fair,)))
    assert report.held
    assert len(report.targets) == 2
    report = judge(HostileRun(2000, 15, 2, (fair, late, greedy)))
    assert not report.held
    assert [target.name for target in report.targets if not target.held] == [
        "late: time over in order",
        "greedy: processor over in order",
    ]
    assert report.summary == "at worst 1.30x the time (late), 1.50x the processor (greedy)"
