"""Simplex with BLS12-381 as in processes: a committee in one process finalises, its proof verifies, forgeries do not."""

import msgspec
import pytest

from shardyard import _native
from shardyard.consensus.engine import BlockFinal, EngineConfig, NoBlockSource, RequestBuild
from shardyard.consensus.proofs import verify_finality_proof
from shardyard.consensus.simplex import SimplexEngine
from shardyard.consensus.votes import Domain, Vote
from shardyard.effects import SetTimer, Sign
from shardyard.errors import InvalidProofError
from shardyard.ids import BEACON, ZERO_ADDRESS
from shardyard.keys import BlsCrypto
from shardyard.validators import Validator, ValidatorSet
from tests.unit.consensus.harness import CONTENT, GENESIS, NETWORK, build_block

SECRETS = [_native.bls_secret_key(bytes([index + 1]) * 32) for index in range(4)]


def build_config():
    committee = ValidatorSet(
        tuple(
            Validator(_native.bls_public_key(secret), _native.bls_prove_possession(secret), 32, ZERO_ADDRESS)
            for secret in SECRETS
        )
    )
    domain = Domain(network=NETWORK, shard=BEACON, valset_root=committee.root)
    return EngineConfig(
        shard=BEACON,
        domain=domain,
        committee=committee,
        local_validators=(0, 1, 2, 3),
        genesis=GENESIS,
        block_time_ms=1000,
        delta_ms=500,
    )


def run_to_height(engine, height):
    """Play host, signer and clock until the engine is at ``height``; return the final blocks with their proofs."""
    now_ms, finals = 1_000_000, []
    queue = list(engine.start(now_ms))
    while len(finals) < height:
        output = queue.pop(0)
        match output:
            case RequestBuild():
                queue += engine.on_proposed(output.slot, build_block(engine, output, b"body"), now_ms)
            case Sign(requests):
                votes = [
                    Vote(
                        request.kind,
                        request.slot,
                        request.block_hash,
                        request.validator,
                        _native.bls_sign(SECRETS[request.validator], request.message),
                    )
                    for request in requests
                ]
                queue += engine.on_signed(votes, now_ms)
            case SetTimer(name, delay_ms) if name.startswith("engine.propose"):
                now_ms += delay_ms
                queue += engine.on_timer(name, now_ms)
            case BlockFinal():
                finals.append(output)
            case _:
                pass
    return finals


def test_real_signatures_make_final_blocks_and_proofs():
    config = build_config()
    crypto = BlsCrypto()
    finals = run_to_height(SimplexEngine(config, crypto, NoBlockSource()), 3)
    assert [final.block.header.height for final in finals] == [1, 2, 3]
    proof = finals[2].proof
    assert verify_finality_proof(crypto, config.domain, config.committee, proof).height == 3
    assert finals[0].block.header.content == CONTENT
    forged = msgspec.structs.replace(
        proof.finalization, signature=_native.bls_aggregate([_native.bls_sign(SECRETS[0], b"other")])
    )
    with pytest.raises(InvalidProofError, match="aggregate"):
        verify_finality_proof(
            crypto, config.domain, config.committee, msgspec.structs.replace(proof, finalization=forged)
        )
