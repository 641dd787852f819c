"""The newcomer's door: three short ways into the code. Read them from top to bottom, change a number, run them again.

1. The kernel decides without doing: three validators' votes become a certificate.
2. The simulator runs a whole network from a seed: shards, beacon, messages, faults, in virtual time.
3. The native core executes a block of signed transactions.
"""

import msgspec
from eth_account import Account

from node.genesis_alloc import build_alloc, encode_alloc
from node.sim.mock_crypto import MockCrypto, sign_mock
from node.sim.run import run
from node.sim.scenario import FaultProfile, Scenario, build_sim_genesis
from shardyard import _native
from shardyard.consensus.votes import (
    Vote,
    VoteKind,
    build_certificate,
    compute_vote_message,
    verify_certificate,
)
from shardyard.ids import Hash32, ShardId, Slot


def test_three_of_four_validators_make_a_certificate():
    genesis = build_sim_genesis(shards=1, validators=4)
    shard, crypto = ShardId(0), MockCrypto()
    committee, domain = genesis.committees[shard], genesis.get_domain(shard)
    block_hash = Hash32(b"\x07" * 32)

    message = compute_vote_message(domain, VoteKind.NOTAR, Slot(1), block_hash)  # what everybody signs (D1)
    votes = [
        Vote(
            VoteKind.NOTAR,
            Slot(1),
            block_hash,
            index,
            sign_mock(committee.validators[index].public_key, message),
        )
        for index in (0, 1, 3)
    ]
    certificate = build_certificate(crypto, committee, votes)

    verify_certificate(crypto, domain, committee, certificate)  # raises unless a quorum of stake signed


def test_a_network_survives_crashes_from_a_seed():
    scenario = Scenario(shards=2, duration_ms=30_000, settle_ms=20_000, profile=FaultProfile(crashes=5))

    result = run(7, scenario=scenario)

    assert result.is_ok, result.command  # the command that shows the same run again
    assert result.report.faults["crash"] >= 5
    assert (
        result.report.counters["delivered"] > 0
    )  # messages that crossed from shard to shard, each exactly once


def test_the_core_executes_a_block_of_signed_transactions():
    alice, bob = Account.from_key(b"\x01" * 32), Account.from_key(b"\x02" * 32)
    core = _native.Core(chain_id=31337, shard=0)
    core.init_genesis(
        encode_alloc(build_alloc(shard_count=1, balances={bytes.fromhex(alice.address[2:]): 10**18}))
    )
    core.set_base(bytes(32), 0)
    raw = alice.sign_transaction(
        {"chainId": 31337, "nonce": 0, "gas": 21_000, "gasPrice": 10**9, "to": bob.address, "value": 123}
    ).raw_transaction
    env = _native.BlockEnv(
        number=1,
        timestamp=1_700_000_001,
        gas_limit=30_000_000,
        base_fee=10**9,
        beneficiary=bytes(20),
        prevrandao=bytes(32),
        parent_hash=bytes(32),
        beacon_root=bytes(32),
        beacon_height=0,
        inbox_gas=15_000_000,
    )

    result = core.execute(bytes(32), core.prepare(raw, (0, len(raw))), env, "build", ())

    (outcome,) = msgspec.msgpack.decode(result.outcomes)
    assert outcome[1] == 1  # status: success
    assert int.from_bytes(result.burnt, "big") == 21_000 * 10**9
