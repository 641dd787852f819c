"""What the bench of faults makes of the evidence: it is the liar's, on every honest node, and nobody else's."""

import pytest

from node.bench.faults import judge_evidence, parse_accused
from node.runtime import describe_evidence
from shardyard.effects import Notice
from shardyard.ids import ShardId

LIARS = {"shard-0": "shard-0-1"}


def build_evidence(*accused):
    return {f"shard-0-{number}": found for number, found in enumerate(accused)}


@pytest.mark.parametrize(
    ("accused", "honest", "wrong"),
    [
        (({1}, set(), {1}, {1}), 3, 0),
        (({1}, {1}, {1}, {1}), 3, 0),
        (({1}, set(), set(), {1}), 2, 0),  # a union over the shard would hide who has none
        (({2}, set(), {2}, {2}), 0, 3),  # one accused, and the wrong one
        (({1}, {3}, {1}, {1, 0}), 3, 2),
    ],
)
def test_evidence_is_compared_with_the_liar_node_by_node(accused, honest, wrong):
    first, second = judge_evidence(build_evidence(*accused), LIARS)
    assert (first.got, first.limit) == (honest, 3)
    assert (second.got, second.limit) == (wrong, 0)


def test_accused_is_read_from_the_words_that_nodes_use():
    data = {"validator": 12, "first": "notarize", "second": "skip"}
    assert parse_accused(describe_evidence(Notice("evidence", ShardId(0), data))) == 12
