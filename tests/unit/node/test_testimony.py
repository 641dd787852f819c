"""What a node says of its final blocks when its history begins at a snapshot, and how the checks read it."""

import pytest

from node import testimony
from node.checks import verdict
from node.checks.finality import check_finality
from node.checks.forks import check_no_forks
from node.config import Options
from node.control import ControlError
from node.network import create_network, parse_node
from node.testimony import MAX_HASHES, list_chain_methods
from shardyard.ids import BEACON
from tests.unit.node.certified_chain import CertifiedChain


class Held:
    """The final blocks of ``chain`` from height ``base`` on, as an engine holds them."""

    slot = 9

    def __init__(self, chain, base=0):
        self.chain, self.base, self.reads = chain, base, 0

    @property
    def final_block(self):
        return self.chain.blocks[-1]

    def get_final_block(self, height):
        self.reads += 1
        is_held = height == 0 or self.base <= height < len(self.chain.blocks)
        return self.chain.blocks[height] if is_held else None

    def final_proof(self, height):
        return self.chain.prove(height) if max(1, self.base) <= height < len(self.chain.blocks) else None


@pytest.fixture
def network(home):
    return create_network(home / "mine", Options(name="mine", shards=1, nodes_per_shard=4, seed=5))


@pytest.fixture
def chain(network):
    found = CertifiedChain(network)
    for _ in range(9):
        found.extend()
    return found


ACCUSED = "validator 1: notarize and notarize in one slot"


@pytest.fixture
def answering(network, chain, monkeypatch):
    """Nodes of shard 0 by the engine that answers for them; the others are silent."""
    engines = {"shard-0-0": Held(chain), "shard-0-1": Held(chain), "shard-0-2": Held(chain, base=6)}
    by_path = {network.get_control_path(node): list_chain_methods(held) for node, held in engines.items()}

    async def answer_status(_):
        return {"evidence": {ACCUSED: 2}}

    by_path[network.get_control_path("shard-0-0")]["status"] = answer_status

    async def ask(path, method, *, timeout_s, **params):
        if method not in by_path.get(path, {}):
            raise ControlError("nobody there")
        return await by_path[path][method](params)

    monkeypatch.setattr(verdict, "ask", ask)
    return engines


async def test_answer_begins_where_the_history_does(chain):
    methods = list_chain_methods(Held(chain, base=6))
    answer = await methods["finals"]({"first": 2, "count": MAX_HASHES})
    assert answer["first"] == 6
    assert answer["hashes"] == [block.hash.hex() for block in chain.blocks[6:]]
    answer = await methods["proofs"]({"first": 2, "count": 6})
    assert (answer["first"], len(answer["proofs"])) == (6, 2)


async def test_answer_about_what_is_before_the_snapshot_is_empty_and_says_where_to_ask(chain):
    methods = list_chain_methods(Held(chain, base=6))
    for method, content in (("finals", "hashes"), ("proofs", "proofs")):
        answer = await methods[method]({"first": 3})
        assert (answer["height"], answer["first"], answer[content]) == (9, 6, [])
    assert (await methods["finals"]({"first": 10}))["hashes"] == []


@pytest.mark.parametrize("base", range(1, 10))
async def test_beginning_is_found_wherever_it_is_and_remembered(chain, base):
    held = Held(chain, base)
    methods = list_chain_methods(held)
    assert (await methods["finals"]({"first": 1}))["first"] == base
    held.reads = 0
    assert (await methods["finals"]({"first": 1}))["first"] == base
    assert held.reads <= 3


async def test_replica_that_came_by_a_snapshot_forks_nothing(answering, network):
    verdict = await check_no_forks(network, 0)
    (row,) = (row for row in verdict.figures["chains"] if row["chain"] == "shard-0")
    assert not [finding for finding in verdict.findings if "final blocks" in finding]
    assert row["compared"] == 9
    assert "; evidence against validator 1 of shard-0, held by shard-0-0; no answer from" in verdict.words


async def test_replica_on_another_chain_since_its_snapshot_is_a_fork(answering, network):
    other = CertifiedChain(network)
    for height in range(9):
        other.extend(skipped=1 if height == 7 else 0)
    answering["shard-0-2"].chain = other
    verdict = await check_no_forks(network, 0)
    assert any("shard-0: 2 heights with several final blocks, first at 8" in one for one in verdict.findings)


async def test_replica_that_came_by_a_snapshot_proves_what_it_has(answering, network):
    verdict = await check_finality(network, 8)
    rows = {row["node"]: row for row in verdict.figures["nodes"]}
    assert (rows["shard-0-0"]["first"], rows["shard-0-0"]["proven"]) == (2, 8)
    assert (rows["shard-0-2"]["first"], rows["shard-0-2"]["proven"]) == (6, 4)
    assert not [finding for finding in verdict.findings if "shard-0" in finding]
    assert all(parse_node(row["node"])[0] != BEACON for row in verdict.figures["nodes"])


class Jumping(Held):
    """Told its height in one answer, then came by a snapshot that is far above."""

    looks = 0

    @property
    def final_block(self):
        self.looks += 1
        if self.looks <= 2:  # where its history begins, and the height itself
            return self.chain.blocks[4]
        self.base = 8
        return super().final_block


async def test_replica_that_jumps_between_two_questions_is_asked_where_its_history_begins(answering, network):
    answering["shard-0-1"].__class__ = Jumping
    verdict = await check_finality(network, 2)
    rows = {row["node"]: row for row in verdict.figures["nodes"]}
    assert (rows["shard-0-1"]["first"], rows["shard-0-1"]["proven"]) == (8, 2)
    assert not [finding for finding in verdict.findings if "shard-0" in finding]


async def test_node_that_proves_nothing_is_named(answering, network, monkeypatch):
    monkeypatch.setattr(answering["shard-0-1"], "final_proof", lambda _: None)
    verdict = await check_finality(network, 2)
    assert "shard-0-1: it proves none of its 9 final blocks" in verdict.findings


async def test_node_that_does_not_prove_its_last_blocks_is_named(answering, network, monkeypatch):
    prove = answering["shard-0-1"].final_proof
    monkeypatch.setattr(answering["shard-0-1"], "final_proof", lambda at: prove(at) if at < 8 else None)
    verdict = await check_finality(network, 4)
    assert "shard-0-1: it proves its final blocks up to 7 only, of 9" in verdict.findings


async def test_proofs_that_an_answer_has_no_room_for_are_asked_for_again(answering, network, monkeypatch):
    monkeypatch.setattr(testimony, "MAX_PROOF_BYTES", 1)
    verdict = await check_finality(network, 8)
    rows = {row["node"]: row for row in verdict.figures["nodes"]}
    assert (rows["shard-0-0"]["first"], rows["shard-0-0"]["proven"], rows["shard-0-0"]["last"]) == (2, 8, 9)
    assert (rows["shard-0-2"]["first"], rows["shard-0-2"]["proven"], rows["shard-0-2"]["last"]) == (6, 4, 9)
    assert not [finding for finding in verdict.findings if "shard-0" in finding]


async def test_proofs_below_what_was_asked_for_are_refused(answering, network, monkeypatch):
    ask = verdict.ask

    async def ask_low(path, method, *, timeout_s, **params):
        if method == "proofs" and path == network.get_control_path("shard-0-1"):
            params["first"] = 1
        return await ask(path, method, timeout_s=timeout_s, **params)

    monkeypatch.setattr(verdict, "ask", ask_low)
    found = await check_finality(network, 2)
    assert "shard-0-1: got proofs from height 1 on, expected none below 8" in found.findings
