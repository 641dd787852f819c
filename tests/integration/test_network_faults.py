"""The laboratory on a real network: what each fault does to a shard of four processes and one follower, and how it heals.

The longer story, with its figures, is `scripts/bench faults`.
"""

import asyncio
import os
import signal

import pytest

from node.control import ControlError, ask
from node.launcher.lock import is_held
from node.network import open_network

pytestmark = pytest.mark.network
HEAL_S = 60
"""Generous: what is claimed of the time is measured by the bench, on a machine that does nothing else."""
NODES = [f"shard-0-{number}" for number in range(5)]
FOLLOWER = NODES[4]


@pytest.fixture(scope="module")
def lab(start_network):
    return start_network(
        "lab", "--shards", "1", "--nodes-per-shard", "4", "--followers", "1", "--block-time", "300ms"
    )


@pytest.fixture(autouse=True)
def healed(lab, eventually):
    """Every test leaves a network that goes on."""
    yield
    lab.call("fault", "heal")
    height = max(get_heights(lab).values())
    eventually(lambda: len(get_heights(lab, above=height)) == len(NODES), HEAL_S)


def ask_node(lab, node, method, **params):
    path = open_network(lab.home / lab.name).get_control_path(node)
    try:
        return asyncio.run(ask(path, method, **params))
    except ControlError:
        return None


def get_heights(lab, above=0):
    """Final heights of the nodes that answer and are ``above``."""
    found = {node: ask_node(lab, node, "finals", first=1) for node in NODES}
    return {node: one["height"] for node, one in found.items() if one and one["height"] > above}


def begin(lab, *words):
    return lab.read("fault", *words)["fault"]["id"]


def test_every_check_holds_while_nothing_is_wrong(lab, eventually):
    lab.call("tx", "send", "--to", "1", "--value", "1ether")
    for words in ("liveness", "finality", "conservation", "no-forks", "finality --logs", "no-forks --logs"):
        verdict = lab.read("check", *words.split())
        assert verdict["held"], verdict
        assert verdict["figures"]
    assert lab.read("check", "finality")["figures"]["certificates"] > 0


def test_two_of_four_down_halt_the_shard_until_one_returns(lab, eventually):
    first, second = begin(lab, "kill", NODES[3]), begin(lab, "kill", NODES[2])
    told = lab.call("fault", "list")
    assert f"{first}      kill  {NODES[3]}" in told.stdout
    assert "shard-0: 2 of 4 validators are there and honest, fewer than a quorum" in told.stderr
    verdict = lab.read("check", "liveness", "--within", "3s", code=6)
    assert verdict["findings"][0].startswith("shard-0: ")
    assert lab.read("check", "no-forks")["figures"]["silent"] == sorted(NODES[2:4])
    lab.refuse("node", "start", NODES[2], code=1)
    lab.refuse("fault", "pause", NODES[2], code=1)
    lab.call("fault", "heal", str(second))
    height = max(get_heights(lab).values())
    eventually(lambda: get_heights(lab, above=height), HEAL_S)
    assert [one["id"] for one in lab.read("status")["faults"]["faults"]] == [first]


def test_partition_halts_both_halves_and_heals_to_one_chain(lab, eventually):
    begin(lab, "partition", "shard-0-0,shard-0-1", "shard-0-2,shard-0-3")
    lab.read("check", "liveness", "--within", "3s", code=6)
    lab.call("fault", "heal")
    height = max(get_heights(lab).values())
    eventually(lambda: len(get_heights(lab, above=height)) == len(NODES), HEAL_S)
    lab.call("check", "no-forks", "--blocks", "0")


def test_fault_ends_by_itself_after_its_time(lab, eventually):
    begin(lab, "delay", "all", "--by", "50ms", "--jitter", "20ms", "--for", "1s")
    assert ask_node(lab, NODES[0], "status")["faults"]["count"] == 1
    eventually(lambda: lab.read("fault", "list")["faults"] == [], HEAL_S)
    found = ask_node(lab, NODES[0], "status")["faults"]
    assert found["count"] == 0
    assert found["delayed"] > 0


def test_process_that_starts_again_still_has_its_fault(lab, eventually):
    begin(lab, "partition", NODES[1])
    restarts = {node["node"]: node["restarts"] for node in lab.read("node", "list")["items"]}
    lab.call("node", "kill", NODES[1])

    def is_back():
        nodes = {node["node"]: node for node in lab.read("node", "list")["items"]}
        found = ask_node(lab, NODES[1], "status")
        return nodes[NODES[1]]["restarts"] > restarts[NODES[1]] and found and found["faults"]

    assert eventually(is_back, HEAL_S)["count"] == 1


@pytest.mark.parametrize("mode", ["silent", "equivocate", "withhold", "garble", "late", "bad-proposer"])
def test_one_byzantine_validator_of_four_neither_halts_nor_forks(lab, mode, eventually):
    begin(lab, "byzantine", NODES[1], mode)
    height = max(get_heights(lab).values())
    eventually(lambda: get_heights(lab, above=height + 4), HEAL_S)
    eventually(lambda: ask_node(lab, NODES[1], "status")["faults"]["lies"].get(mode), HEAL_S)
    assert lab.call("check", "no-forks")
    if mode == "equivocate":
        accused = {
            words for node in NODES if node != NODES[1] for words in ask_node(lab, node, "status")["evidence"]
        }
        assert {words.partition(":")[0] for words in accused} == {"validator 1"}


def test_full_disk_stops_one_node_and_nobody_else(lab, eventually):
    begin(lab, "full-disk", NODES[2])
    height = max(get_heights(lab).values())
    eventually(lambda: NODES[2] not in get_heights(lab) and get_heights(lab, above=height + 2), HEAL_S)
    lab.call("fault", "heal")
    height = max(get_heights(lab).values())
    eventually(lambda: NODES[2] in get_heights(lab, above=height), HEAL_S)


def test_follower_verifies_serves_and_signs_nothing(lab, eventually):
    roles = {node["node"]: node["validators"] for node in lab.read("status")["nodes"]}
    assert roles == {"broker": [], "beacon-0": [0, 1, 2, 3], FOLLOWER: []} | {
        node: [number] for number, node in enumerate(NODES[:4])
    }
    height = max(get_heights(lab).values())
    lab.call("node", "kill", FOLLOWER)
    eventually(lambda: FOLLOWER in get_heights(lab, above=height), HEAL_S)
    proven = {row["node"]: row["proven"] for row in lab.read("check", "finality")["figures"]["nodes"]}
    assert proven[FOLLOWER] > 0
    record = lab.home / lab.name / "data" / FOLLOWER / "signer.log"
    assert record.stat().st_size == 64  # a header, and no entry
    lab.refuse("fault", "byzantine", FOLLOWER, "silent", code=2)


def test_proof_of_finality_stands_alone(lab, tmp_path):
    for words in (("latest", "--shard", "0"), ("2", "--beacon")):
        path = tmp_path / f"{words[0]}.proof"
        found = lab.read("block", "prove", words[0], str(path), *words[1:])
        verdict = lab.read(
            "check", "finality", str(path), "--genesis", str(lab.home / lab.name / "genesis.bin")
        )
        assert verdict["figures"]["hash"] == found["hash"]
    path.write_bytes(path.read_bytes()[:-700])
    lab.refuse("check", "finality", str(path), code=2)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("fault partition shard-0-9", 2, "node: got 'shard-0-9', expected one of beacon-0"),
        ("fault partition shard-0-0 shard-0-0,shard-0-1", 2, "shard-0-0 stands on both sides"),
        ("fault delay shard-0-0 --by soon", 2, "duration: got 'soon'"),
        ("fault loss shard-0-0 --percent 0", 2, "percent: got 0, expected 0.1 to 100"),
        ("fault byzantine beacon-0 silent", 2, "no other process would hear it lie"),
        ("fault byzantine shard-0-0 rude", 2, "'rude' is not one of"),
        ("fault heal 999", 2, "fault: got 999, expected one of none"),
        ("fault heal two", 2, "fault: got 'two', expected its number"),
        ("fault resume shard-0-0", 1, "none of shard-0-0 is paused"),
        ("check liveness --within 0s", 2, "within: got 0 s"),
        ("check finality --network 0x12", 2, "are for a PROOF"),
        ("block prove 99999999 nowhere", 1, "has no proof here"),
    ],
)
def test_mistake_has_its_exit_code_and_a_way_out(lab, words, code, message):
    told, _ = lab.refuse(*words.split(), code=code)
    assert message in told


def test_no_fault_outlives_the_network_however_it_ends(lab, eventually):
    root = lab.home / lab.name
    begin(lab, "pause", f"{NODES[0]},broker")
    lab.call("down")
    lab.call("up", "-d")
    assert lab.read("fault", "list")["faults"] == []
    begin(lab, "pause", f"{NODES[0]},broker")
    os.kill(lab.endpoints["launcher_pid"], signal.SIGKILL)
    eventually(lambda: not is_held(root), HEAL_S)
    lab.refuse("check", "liveness", code=3)
    lab.call("up", "-d")
    assert lab.read("fault", "list")["faults"] == []
