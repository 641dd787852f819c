"""What is advised when a record is lost: what works for this node, and nothing that does not."""

import asyncio
import io
import json

import pytest

from node import runtime
from node.cli import validator
from node.cli.root import run
from node.config import Options
from node.network import create_network, get_local_validators, parse_node
from node.remedies import describe_ways_back
from node.runtime import open_node_data, open_signer
from shardyard.consensus.votes import Certificate, VoteKind, compute_vote_message
from shardyard.effects import CertificateRecord, SignRequest
from shardyard.ids import ZERO_HASH, Slot
from shardyard.quorum import encode_bitmap

ALONE = [("beacon-0", 1), ("beacon-0", 4), ("shard-0-0", 1)]
"""Nodes without which their chain has no quorum, and how many nodes a shard has."""
OTHERS = ("shard-0-1", 4)


class Place:
    """A node of a network that never ran, and the commands about it."""

    def __init__(self, home, node, nodes_per_shard, tmp_path, capsys):
        options = Options(name="mine", shards=1, nodes_per_shard=nodes_per_shard, seed=5)
        self.network = create_network(home / "mine", options)
        self.node = node
        self.chain, _ = parse_node(node)
        self.keys = get_local_validators(self.network, node)
        self.newest = tmp_path / "newest.json"
        self.older = tmp_path / "older.json"
        self._capsys = capsys

    def sign(self, slot):
        """Start the node's signer, sign in ``slot``, end it; return the votes and why it is silent."""

        async def live():
            domain = self.network.genesis.get_domain(self.chain)
            message = compute_vote_message(domain, VoteKind.SKIP, slot, ZERO_HASH)
            requests = [SignRequest(VoteKind.SKIP, Slot(slot), ZERO_HASH, key, message) for key in self.keys]
            with (
                open_node_data(self.network, self.node, self.chain) as data,
                open_signer(self.network, self.node, data) as signer,
            ):
                return len((await signer.sign(requests)).votes), signer.reason

        return asyncio.run(live())

    def call(self, command, *options, code):
        """Run ``validator`` and return what it says on both streams."""
        assert run(["validator", command, self.node, *options, "--name", "mine"]) == code
        told = self._capsys.readouterr()
        return told.out + told.err

    def list_record(self):
        assert run(["validator", "list", "--name", "mine", "--json"]) == 0
        rows = json.loads(self._capsys.readouterr().out)["items"]
        return next(row["record"] for row in rows if row["node"] == self.node)

    def list_for_people(self):
        """Return the cells about the record in the table, and what is said beside it."""
        assert run(["validator", "list", "--name", "mine"]) == 0
        told = self._capsys.readouterr()
        rows = [line.split() for line in told.out.splitlines()]
        return [row[6] for row in rows if row[0] == self.node], told.err

    def lose_record(self):
        """Sign, keep an export that is older than the record and one that is not, and lose the record."""
        for slot, file in ((3, self.older), (4, self.newest)):
            self.sign(slot)
            self.call("export", "-o", str(file), code=0)
        (self.network.get_data_dir(self.node) / "signer.log").unlink()

    def provoke(self, tmp_path):
        """Return all that is said of a lost record while nothing is done about it."""
        return {
            "signer": self.sign(5)[1],
            "list": self.list_record(),
            "export": self.call("export", "-o", str(tmp_path / "none.json"), code=1),
            "import": self.call("import", str(self.older), code=2),
        }


@pytest.fixture
def lose(home, tmp_path, monkeypatch, capsys):
    for module in (validator, runtime):
        monkeypatch.setattr(module, "get_lock_dir", lambda: tmp_path / "locks")

    def lose(node, nodes_per_shard):
        place = Place(home, node, nodes_per_shard, tmp_path, capsys)
        place.lose_record()
        return place

    return lose


@pytest.mark.parametrize(("node", "nodes_per_shard"), ALONE)
def test_where_the_chain_stands_without_the_keys_an_export_is_the_one_way_back(
    lose, tmp_path, node, nodes_per_shard
):
    place = lose(node, nodes_per_shard)
    for source, told in place.provoke(tmp_path).items():
        assert "resume" not in told, source
        assert "Rejoin" not in told, source
        assert "shardyard up --fresh --name mine" in told, source
        assert "export" in told.partition("try: ")[2], source
    # What is not advised would not work, with a slot or without.
    for options in ((), ("--above", "90")):
        told = place.call("resume", "--yes", *options, code=1)
        assert "all validators but these have 0 of" in told
        assert "try: shardyard validator import --name mine with the newest export" in told
        assert told.endswith("shardyard up --fresh --name mine\n")
    # What is advised works.
    told = place.call("import", str(place.newest), code=0)
    assert "is begun anew" in told
    assert "try: " not in told
    assert place.sign(5) == (len(place.keys), "")


def test_in_the_list_a_lost_record_is_one_word_and_its_way_back_is_said_once(lose):
    place = lose(*ALONE[2])
    cells, told = place.list_for_people()
    assert cells == ["lost"] * len(place.keys)
    reason, remedy = told.splitlines()
    assert reason.endswith("signer.log: missing")
    assert remedy.startswith("try: shardyard validator import shard-0-0 --name mine with the newest export")


def test_where_others_have_a_quorum_keys_without_an_export_are_resumed(lose, tmp_path):
    place = lose(*OTHERS)
    for source, told in place.provoke(tmp_path).items():
        assert "without one: shardyard validator resume shard-0-1 --name mine" in told, source
        assert "--fresh" not in told, source
    place.call("resume", "--yes", "--above", "90", code=0)
    assert place.sign(90) == (0, "")
    assert place.sign(91) == (len(place.keys), "")


@pytest.mark.parametrize("answers", [None, "", "n\n"])
def test_whoever_cannot_say_that_the_keys_are_nowhere_else_is_told_how_to(lose, monkeypatch, answers):
    place = lose(*OTHERS)
    monkeypatch.setattr("sys.stdin", None if answers is None else io.StringIO(answers))
    told = place.call("resume", "--above", "90", code=1)
    assert "error: nothing is changed: " in told
    assert told.endswith(
        "try: the same with --yes, which does not ask, once every other process with these keys is stopped for good\n"
    )
    assert place.list_record() != "sound"


def test_where_others_have_a_quorum_an_export_is_a_way_back_too(lose):
    place = lose(*OTHERS)
    assert f"shardyard validator import {place.node} --name mine" in describe_ways_back(
        place.network, place.node
    )
    place.call("import", str(place.newest), code=0)
    assert place.sign(5) == (len(place.keys), "")


def test_a_node_without_keys_has_nothing_to_bring_back(home):
    network = create_network(home / "mine", Options(name="mine", shards=1, followers=1, seed=5))
    assert describe_ways_back(network, "shard-0-1").startswith("nothing, for shard-0-1 has no keys")


@pytest.mark.parametrize(
    ("node", "nodes_per_shard", "way"),
    [(*ALONE[0], "shardyard up --fresh"), (*OTHERS, "shardyard validator resume shard-0-1")],
)
def test_a_record_that_the_log_is_ahead_of_gets_the_same_advice(lose, node, nodes_per_shard, way):
    place = lose(node, nodes_per_shard)
    place.call("import", str(place.newest), code=0)
    size = len(place.network.genesis.committees[place.chain])
    newer = Certificate(VoteKind.SKIP, Slot(9), ZERO_HASH, encode_bitmap(place.keys, size), bytes(96))
    with (
        open_node_data(place.network, node, place.chain) as data,
        open_signer(place.network, node, data) as signer,
    ):
        signer.begin_cover_check()(CertificateRecord(newer))
        assert "vote of slot 9" in signer.reason
        assert f"; without one: {way}" in signer.reason
