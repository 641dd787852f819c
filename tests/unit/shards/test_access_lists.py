"""Claims about access lists beside proposals (B5, B6): who attaches one, who believes it, and what a wrong one does."""

import msgspec
import pytest

from shards.access_lists import MAX_HELD, MAX_STRIKES, AccessListShelf
from shardyard import effects as fx
from shardyard._native import keccak256
from shardyard.blocks import ShardBody
from shardyard.consensus.engine import BlockAbandoned
from shardyard.consensus.instant import InstantEngine
from shardyard.consensus.votes import VoteKind, compute_vote_message
from shardyard.errors import DecodeError, InvalidAccessListError, TooLargeError
from shardyard.messages import MAX_MESSAGE_BYTES, Proposal, Votes, decode_message, encode_message
from shardyard.preset import PRESETS
from tests.unit.shards.network import Network
from tests.unit.shards.test_replica import add_replica, propose, reach, tell
from tests.unit.shards.world import CRYPTO, build_genesis, build_shard_header

replace = msgspec.structs.replace
LIST = b"the list that the header commits to"


@pytest.fixture
def network():
    return Network(build_genesis())


def start_four(network):
    nodes = [add_replica(network, f"shard-0-{index}", (index,)) for index in range(4)]
    for node in nodes:
        node.start()
    return nodes


def record_proposals(network):
    """Return a list that grows by what is proposed from now on."""
    seen, broadcast = [], network.broadcast

    def listen(sender, message):
        if isinstance(message, Proposal):
            seen.append((sender.name, message))
        broadcast(sender, message)

    network.broadcast = listen
    return seen


def propose_listed(network, access_list=LIST, parent=None):
    """A signed block that commits to ``access_list`` and, for the rest, to nothing that execution gives."""
    commitment = keccak256(access_list)
    return propose(network, lambda content: replace(content, access_list_hash=commitment), parent)


def propose_executable(network, node):
    """A signed block of slot 1 that ``node`` finds valid, and its list."""
    genesis = network.genesis
    parent = genesis.build_shard_block(0)
    _, env = build_shard_header(genesis, parent, step_ms=100)
    summary, _, _, access_list = node.executor._run(env, ShardBody(b"", ()), ())
    block, _ = build_shard_header(genesis, parent, summary=summary, step_ms=100)
    return propose(network, lambda _: block.header.content), access_list


def listen_alone(network, **options):
    """A replica that hears only the test; what it wants executed is put aside and never answered."""
    node = add_replica(network, keys=(0,), **options)
    wanted, perform = [], node.perform
    node.perform = lambda effect: wanted.append(effect) if isinstance(effect, fx.Execute) else perform(effect)
    node.start()
    return node, wanted


def hear(network, node, *proposals):
    for sender, block, access_list in proposals:
        tell(network, node, Proposal(block, access_list), chain=0, sender=sender)


def get_refusals(node):
    return [(data["sender"], data["error"]) for data in node.get_notices("refused")]


# --- the message ---


def test_a_proposal_carries_its_list_and_has_one_encoding(network):
    block = propose_listed(network)
    for proposal in (Proposal(block), Proposal(block, LIST)):
        assert decode_message(encode_message(proposal)) == proposal
    without = encode_message(Proposal(block))
    assert without[-2:] == b"\xc4\x00"
    with pytest.raises(DecodeError):
        decode_message(bytes((without[0] - 1,)) + without[1:-2])  # as if there were no such field


@pytest.mark.parametrize("preset", PRESETS.values())
def test_a_whole_body_and_a_whole_list_fit_into_one_message(preset):
    justification_and_proof = 2 * 1024 * 1024
    size = preset.max_body_bytes + preset.max_access_list_bytes + justification_and_proof
    assert size <= MAX_MESSAGE_BYTES


# --- who sends one ---


def test_b5_a_list_leaves_with_its_proposal_and_all_others_execute_by_it(network):
    nodes = start_four(network)
    seen = record_proposals(network)
    reach(network, 6, *nodes)
    assert seen
    for _, proposal in seen:
        assert keccak256(proposal.access_list) == proposal.block.header.shard_content.access_list_hash
    for node in nodes:
        final = {data["hash"] for data in node.get_notices("block.final")}
        by_others = {proposal.block.hash for name, proposal in seen if name != node.name} & final
        assert by_others
        assert by_others <= set(node.executor.replayed)
        assert get_refusals(node) == []


def test_b5_a_process_with_the_whole_committee_sends_none(network):
    node = add_replica(network)
    node.start()
    seen = record_proposals(network)
    reach(network, 4, node)
    assert seen
    assert not any(proposal.access_list for _, proposal in seen)
    assert not any(found.access_list for found in node.machine._candidates._by_hash.values())


def test_b5_a_list_that_is_too_long_stays_at_home(network):
    preset = replace(network.genesis.preset, max_access_list_bytes=len(b"list ") + 31)
    network = Network(replace(network.genesis, preset=preset))
    nodes = start_four(network)
    seen = record_proposals(network)
    reach(network, 4, *nodes)
    assert seen
    assert not any(proposal.access_list for _, proposal in seen)
    assert not any(node.executor.replayed for node in nodes)


def test_b5_a_list_is_forgotten_once_it_has_left(network):
    nodes = start_four(network)
    left, broadcast = [], network.broadcast

    def listen(sender, message):
        if isinstance(message, Proposal):
            left.append(sender.machine._candidates.get(message.block.hash).access_list)
        broadcast(sender, message)

    network.broadcast = listen
    reach(network, 4, *nodes)
    assert set(left) == {b""}


# --- who believes it ---


def test_b6_a_list_that_is_the_headers_goes_to_the_executor(network):
    node, wanted = listen_alone(network)
    block = propose_listed(network)
    hear(network, node, ("shard-0-1", block, LIST))
    assert [(effect.block.hash, effect.access_list) for effect in wanted] == [(block.hash, LIST)]
    assert (len(node.machine._access_lists), get_refusals(node)) == (0, [])


def test_b6_without_a_list_a_block_is_executed_all_the_same(network):
    node, wanted = listen_alone(network)
    hear(network, node, ("shard-0-1", propose_listed(network), b""))
    assert [effect.access_list for effect in wanted] == [b""]
    assert get_refusals(node) == []


@pytest.mark.parametrize("spoil", [lambda good: good + b"!", lambda good: good[:-1], lambda _: b"\xc0"])
def test_b6_a_wrong_list_is_refused_by_its_senders_name_and_the_block_gets_its_vote(network, spoil):
    node = add_replica(network, keys=(0,))
    node.start()
    block, access_list = propose_executable(network, node)
    sent = []
    network.broadcast = lambda _, message: sent.append(message)
    hear(network, node, ("shard-0-2", block, spoil(access_list)))
    network.run_for(20)
    assert get_refusals(node) == [("shard-0-2", "InvalidAccessListError")]
    votes = [vote for message in sent if isinstance(message, Votes) for vote in message.votes]
    assert [(vote.kind, vote.block_hash) for vote in votes] == [(VoteKind.NOTAR, block.hash)]
    assert (node.executor.replayed, node.get_notices("block.invalid")) == ([], [])


def test_b6_a_list_that_is_too_long_is_refused_before_it_is_hashed(network, monkeypatch):
    access_list = bytes(network.genesis.preset.max_access_list_bytes + 1)
    block = propose_listed(network, access_list)
    monkeypatch.setattr("shards.access_lists.keccak256", lambda _: pytest.fail("hashed"))
    node, wanted = listen_alone(network)
    hear(network, node, ("shard-0-3", block, access_list))
    assert get_refusals(node) == [("shard-0-3", "TooLargeError")]
    assert [effect.access_list for effect in wanted] == [b""]


def test_b6_the_list_of_a_block_that_is_refused_is_neither_hashed_nor_kept(network, monkeypatch):
    block = replace(propose_listed(network), signature=bytes(96))
    monkeypatch.setattr("shards.access_lists.keccak256", lambda _: pytest.fail("hashed"))
    node, wanted = listen_alone(network)
    hear(network, node, ("stranger", block, LIST), ("stranger", block, b"other"))
    assert (wanted, len(node.machine._access_lists)) == ([], 0)


def test_b6_a_list_waits_with_its_block_for_the_parent(network):
    """The engine asks for validation only when the parent is valid (L2); a good list may also come after a wrong one."""
    node = add_replica(network, keys=(0,))
    node.start()
    first, _ = propose_executable(network, node)
    child = propose_listed(network, parent=first)
    wanted, perform = [], node.perform

    def watch(effect):
        if isinstance(effect, fx.Execute):
            wanted.append((effect.block.hash, effect.access_list))
        perform(effect)

    node.perform = watch
    hear(network, node, ("shard-0-1", first, b""), ("shard-0-2", child, b"wrong"), ("shard-0-3", child, LIST))
    assert get_refusals(node) == [("shard-0-2", "InvalidAccessListError")]
    assert (wanted, len(node.machine._access_lists)) == ([(first.hash, b"")], 1)
    network.run_for(20)
    assert wanted == [(first.hash, b""), (child.hash, LIST)]
    assert len(node.machine._access_lists) == 0


def test_b6_a_list_that_comes_when_its_block_is_under_way_is_not_looked_at(network, monkeypatch):
    node, wanted = listen_alone(network)
    block = propose_listed(network)
    hear(network, node, ("shard-0-1", block, b""))
    monkeypatch.setattr("shards.access_lists.keccak256", lambda _: pytest.fail("hashed"))
    hear(network, node, ("shard-0-1", block, LIST), ("shard-0-2", block, b"wrong"))
    assert (len(wanted), len(node.machine._access_lists), get_refusals(node)) == (1, 0, [])


def test_b6_a_list_goes_with_a_block_that_is_refused_before_it_is_executed(network):
    node, wanted = listen_alone(network)
    lie = propose(network, lambda content: replace(content, gas_limit=1, access_list_hash=keccak256(LIST)))
    hear(network, node, ("shard-0-1", lie, LIST))
    assert [data["hash"] for data in node.get_notices("block.invalid")][:1] == [lie.hash]
    assert (wanted, len(node.machine._access_lists)) == ([], 0)


def test_b6_lists_of_blocks_that_were_overtaken_or_abandoned_are_dropped(network):
    nodes = start_four(network)
    reach(network, 1, *nodes)
    shelf = nodes[0].machine._access_lists
    overtaken, abandoned = (build_header(network, height, LIST) for height in (2, 1000))
    shelf.offer("peer", overtaken, LIST)
    shelf.offer("peer", abandoned, LIST)
    reach(network, 3, *nodes)
    assert len(shelf) == 1
    nodes[0].machine._run([BlockAbandoned(abandoned.hash)], network.now_ms)
    assert len(shelf) == 0


def test_b6_the_list_of_an_orphan_goes_with_its_slot_whatever_height_it_claims(network):
    """The leader of slot 1 names a parent that nobody has; no block tells the host that such a one is gone."""
    nodes = start_four(network)
    block = propose_listed(network)
    header = replace(block.header, parent=b"nobody's" * 4, height=1 << 40)
    message = compute_vote_message(network.genesis.get_domain(0), VoteKind.PROPOSE, header.slot, header.hash)
    key = network.genesis.committees[0].validators[header.proposer].public_key
    hear(
        network,
        nodes[0],
        ("shard-0-1", replace(block, header=header, signature=CRYPTO.sign(key, message)), LIST),
    )
    shelf = nodes[0].machine._access_lists
    assert len(shelf) == 1
    reach(network, 3, *nodes)
    assert len(shelf) == 0


def test_an_engine_that_takes_no_proposals_keeps_no_lists(network):
    node, wanted = listen_alone(network, engine=InstantEngine)
    hear(network, node, ("shard-0-1", propose_listed(network), LIST))
    assert (wanted, len(node.machine._access_lists)) == ([], 0)


# --- the shelf ---


def build_header(network, slot, access_list):
    header = propose_listed(network, access_list).header
    return replace(header, slot=slot, height=slot)


def test_the_shelf_is_bounded_and_the_farthest_slots_give_way(network):
    shelf, lists = AccessListShelf(10), {slot: bytes((slot,)) * 10 for slot in (9, 3, 7, 5, 4, 8)}
    headers = {slot: build_header(network, slot, data) for slot, data in lists.items()}
    for slot, data in lists.items():
        shelf.offer("peer", headers[slot], data)
        assert len(shelf) <= MAX_HELD
    assert [slot for slot in sorted(lists) if shelf.take(headers[slot].hash) == lists[slot]] == [3, 4, 5, 7]
    assert len(shelf) == 0


def test_the_shelf_forgets_what_is_final(network):
    shelf = AccessListShelf(10)
    for slot in (1, 2, 3):
        shelf.offer("peer", build_header(network, slot, b"x"), b"x")
    shelf.prune(2)
    assert len(shelf) == 1
    assert shelf.take(build_header(network, 3, b"x").hash) == b"x"


def test_who_sends_wrong_lists_again_and_again_is_not_listened_to_any_more(network):
    shelf, header = AccessListShelf(100), build_header(network, 1, LIST)
    for attempt in range(MAX_STRIKES):
        error, data = (TooLargeError, bytes(101)) if attempt % 2 else (InvalidAccessListError, b"wrong")
        with pytest.raises(error):
            shelf.offer("liar", header, data)
    shelf.offer("liar", header, LIST)
    assert len(shelf) == 0
    shelf.offer("peer", header, LIST)
    assert len(shelf) == 1
