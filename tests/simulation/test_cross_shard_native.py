"""Two shards with the native core and a beacon, in one process: signed transactions in, balances on the other shard out."""

import msgspec
import pytest
import rlp

from crosslink.beacon import BeaconMachine
from node.artifacts import load_artifact
from node.block_stats import decode_stats
from node.dev_accounts import DEV_ACCOUNTS, DEV_BALANCE
from node.executor import MIN_REPLAY_ITEMS
from shards.replica import ShardReplica
from shardyard import _native
from shardyard.consensus.engine import NoBlockSource
from shardyard.consensus.simplex import SimplexEngine
from shardyard.ids import BEACON
from shardyard.messages import Proposal
from tests.unit.shards.native import (
    NativeExecutor,
    build_native_genesis,
    sign_message,
    sign_shard_transfer,
    sign_transaction,
)
from tests.unit.shards.network import Network
from tests.unit.shards.world import CRYPTO

ETHER = 10**18
STRANGER = bytes.fromhex("00000000000000000000000000000000deadbeef")


@pytest.fixture
def network():
    genesis, alloc_json = build_native_genesis()
    network = Network(genesis)
    network.alloc_json = alloc_json
    keys = tuple(range(len(genesis.validators)))
    network.add(
        "beacon-0",
        BEACON,
        lambda: BeaconMachine(genesis, CRYPTO, keys, NoBlockSource(), build_engine=SimplexEngine),
    )
    for shard in range(2):
        add_shard(network, f"shard-{shard}-0", shard, range(4))
    for node in network.nodes.values():
        node.start()
    return network


def add_shard(network, name, shard, keys, threads=1):
    executor = NativeExecutor(network.genesis, shard, network.alloc_json, threads)

    def build():
        machine = ShardReplica(
            network.genesis, shard, CRYPTO, tuple(keys), NoBlockSource(), build_engine=SimplexEngine
        )
        executor.get_ancestors = machine.get_ancestors
        return machine

    return network.add(name, shard, build, executor)


def check_supply(network):
    table = network.nodes["beacon-0"].machine.get_supply()
    assert table.total == table.genesis


def test_a_transfer_through_the_gateway_credits_an_account_on_the_other_shard(network):
    source, target = network.nodes["shard-0-0"], network.nodes["shard-1-0"]
    source.executor.submit(*(sign_shard_transfer(0, nonce, 1, STRANGER, ETHER) for nonce in range(3)))
    network.run_until(lambda: target.executor.get_balance(STRANGER) == 3 * ETHER)
    network.run_until(lambda: network.nodes["beacon-0"].machine.get_supply().in_flight == (0, 0))
    check_supply(network)
    assert source.executor.get_balance(DEV_ACCOUNTS[0].address) < DEV_BALANCE - 3 * ETHER
    assert len(source.executor.pool) == 0
    assert not any(node.get_notices("refused") for node in network.nodes.values())


def test_a_follower_executes_to_the_same_state(network):
    source = network.nodes["shard-0-0"]
    recipient = STRANGER
    for nonce in range(5):
        source.executor.submit(
            sign_transaction(0, DEV_ACCOUNTS[1], nonce, recipient, b"", value=ETHER, gas=21_000)
        )
        network.run_for(150)
    late = add_shard(network, "shard-0-1", 0, ())
    late.start()
    network.run_until(lambda: late.executor.get_balance(recipient) == 5 * ETHER)
    height = late.machine.heads.latest_height
    finals = [[data["hash"] for data in node.get_notices("block.final")][:height] for node in (source, late)]
    assert finals[0] == finals[1]


def test_a_restart_replays_diffs_to_the_same_state_and_loses_no_transfer(network):
    source, target = network.nodes["shard-0-0"], network.nodes["shard-1-0"]
    source.executor.submit(*(sign_shard_transfer(0, nonce, 1, STRANGER, ETHER) for nonce in range(2)))
    for node, pause_ms in ((source, 130), (target, 170), (source, 210), (target, 90)):
        network.run_for(pause_ms)
        node.stop()
        network.run_for(100)
        node.start()
    network.run_until(lambda: target.executor.get_balance(STRANGER) == 2 * ETHER)
    network.run_for(2000)
    assert target.executor.get_balance(STRANGER) == 2 * ETHER
    check_supply(network)


def read_counter(executor, contract, slot):
    return int.from_bytes(executor.core.storage(executor.base, contract, slot.to_bytes(32, "big")), "big")


def settle(network):
    """Run until a message is in flight, and then until none is."""
    beacon = network.nodes["beacon-0"].machine
    network.run_until(lambda: any(beacon.get_supply().in_flight))
    network.run_until(lambda: not any(beacon.get_supply().in_flight))
    check_supply(network)


def test_a_message_runs_a_contract_on_the_other_shard_and_its_result_comes_home(network):
    source, target = network.nodes["shard-0-0"], network.nodes["shard-1-0"]
    deployer = DEV_ACCOUNTS[9]
    contract = _native.keccak256(rlp.encode([bytes(deployer.address), 0]))[12:]
    code = load_artifact("counter").init_code
    target.executor.submit(sign_transaction(1, deployer, 0, None, code, value=0, gas=3_000_000))
    network.run_until(lambda: target.executor.core.account(target.executor.base, contract) is not None)
    source.executor.submit(sign_message(0, 0, 1, contract, ETHER))
    settle(network)
    assert [read_counter(target.executor, contract, slot) for slot in (0, 1)] == [1, 1]
    assert target.executor.get_balance(contract) > ETHER * 9 // 10  # the message's value, its gas paid apart
    spent = DEV_BALANCE - source.executor.get_balance(DEV_ACCOUNTS[0].address)
    assert spent < ETHER + ETHER // 100  # what was not used came back


def test_a_message_to_nobody_bounces_and_its_value_comes_home(network):
    source = network.nodes["shard-0-0"]
    source.executor.submit(sign_message(0, 0, 1, STRANGER, ETHER))
    settle(network)
    assert DEV_BALANCE - source.executor.get_balance(DEV_ACCOUNTS[0].address) < ETHER // 100
    assert network.nodes["shard-1-0"].executor.get_balance(STRANGER) == 0


# --- blocks executed by their access list ---

SENDERS = DEV_ACCOUNTS[:3]
ROUND = 30


@pytest.fixture
def committee():
    """Shard 0 as four processes with a key and two executor threads each, and nobody else."""
    genesis, alloc_json = build_native_genesis()
    network = Network(genesis)
    network.alloc_json = alloc_json
    nodes = [add_shard(network, f"shard-0-{index}", 0, (index,), threads=2) for index in range(4)]
    for node in nodes:
        node.start()
    return network, nodes


def offer_round(nodes, number):
    """Offer every process the same transactions, more than a block that is executed in order has."""
    raws = [
        sign_transaction(0, sender, number * ROUND + nonce, STRANGER, b"", value=1, gas=21_000)
        for sender in SENDERS
        for nonce in range(ROUND)
    ]
    for node in nodes:
        node.executor.submit(*raws)


def run_rounds(network, nodes, count):
    for number in range(count):
        offer_round(nodes, number)
        expected = {(number + 1) * ROUND * len(SENDERS)}
        network.run_until(lambda want=expected: {n.executor.get_balance(STRANGER) for n in nodes} == want)


def list_full_blocks(node):
    """Return the hashes of the blocks with so many transactions that several threads run them."""
    results = node.executor.results.items()
    return [found for found, (_, result, _) in results if len(result.included) // 4 >= MIN_REPLAY_ITEMS]


def is_speculated(node, block_hash):
    return decode_stats(node.executor.results[block_hash][1].stats).workers > 0


def test_followers_execute_full_blocks_by_their_lists_and_only_the_leader_speculates(committee):
    network, nodes = committee
    run_rounds(network, nodes, 3)
    full = list_full_blocks(nodes[0])
    assert len(full) >= 3
    for block_hash in full:
        results = [node.executor.results[block_hash][1] for node in nodes]
        assert len({(result.state_root, result.access_list) for result in results}) == 1
        by_list = [node for node in nodes if block_hash in node.executor.replayed]
        assert len(by_list) == 3
        assert [node for node in nodes if is_speculated(node, block_hash)] == [
            node for node in nodes if node not in by_list
        ]
    assert not any(node.get_notices("refused") for node in nodes)


@pytest.mark.parametrize(
    "spoil", [lambda good: good[:-1] + bytes((good[-1] ^ 1,)), lambda _: b"\xc0", lambda _: b""]
)
def test_b6_a_peer_that_changes_lists_is_named_and_no_block_is_lost_by_it(committee, spoil):
    network, nodes = committee
    liar = nodes[2]
    broadcast = network.broadcast

    def tamper(sender, message):
        if sender is liar and isinstance(message, Proposal):
            message = msgspec.structs.replace(message, access_list=spoil(message.access_list))
        broadcast(sender, message)

    network.broadcast = tamper
    run_rounds(network, nodes, 4)
    network.run_for(1000)
    for node in nodes:
        names = {(data["sender"], data["error"]) for data in node.get_notices("refused")}
        expected = {(liar.name, "InvalidAccessListError")} if spoil(b"x") and node is not liar else set()
        assert names == expected
        assert node.get_notices("block.invalid") == []
    liars = [data for data in nodes[0].get_notices("block.final") if data["slot"] % 4 == get_turn(network, 2)]
    assert liars  # its blocks became final all the same


def get_turn(network, validator):
    leaders = [network.genesis.committees[0].get_leader(slot) for slot in range(4)]
    return leaders.index(validator)
