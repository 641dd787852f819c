"""The doctor: a node that answers and does not do its part is not well."""

from types import SimpleNamespace

import pytest

from node.cli.doctor import Finding, _check_status

SESSION = SimpleNamespace(name="mine", name_flag=" --name mine")
SIGNER = {"state": "signing", "keys": 2, "silent": 0, "floors": {}, "reason": "-"}
LOST = "signer.log: missing; try: shardyard validator resume shard-0-1 --name mine"


def examine(**signer):
    status = {"bus": {"connected": True, "refused": {}}, "loop_lag_ms": 3.0, "signer": SIGNER | signer}
    return list(_check_status(SESSION, "shard-0-1", status))


@pytest.mark.parametrize(
    "signer",
    [
        {},
        {"keys": 0, "state": "following only"},
        {"state": "watching for other processes with these keys"},
    ],
)
def test_a_node_that_signs_or_has_no_keys_is_well(signer):
    assert [finding.state for finding in examine(**signer)] == ["ok"]


def test_keys_that_sign_nothing_are_found_with_the_way_back():
    found = examine(state="following only", silent=2, reason=LOST)
    assert found == [
        Finding(
            "shard-0-1 keys",
            "warning",
            "2 of its 2 keys sign nothing: signer.log: missing",
            "shardyard validator resume shard-0-1 --name mine",
        )
    ]


def test_keys_of_which_no_way_back_is_told_are_found_in_the_list():
    (found,) = examine(silent=1, reason="an import left it silent")
    assert found.detail == "1 of its 2 keys sign nothing: an import left it silent"
    assert found.remedy == "shardyard validator list --name mine"
