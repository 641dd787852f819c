"""Proof files: what they prove, and what is said of those that prove nothing or are none."""

import json

import msgspec
import pytest

from node.checks.finality import LightClient, verify_answer
from node.cli.root import run
from node.config import Options
from node.light_client import (
    UnreadableProofError,
    build_document,
    read_document,
    verify_document,
    write_document,
)
from node.network import create_network
from shardyard.codec import encode
from shardyard.errors import InvalidProofError
from tests.unit.node.certified_chain import SHARD, CertifiedChain


@pytest.fixture
def chain(home):
    found = CertifiedChain(create_network(home / "mine", Options(name="mine", shards=1, seed=5)))
    for skipped in (0, 2, 0, 1):
        found.extend(skipped)
    return found


@pytest.fixture
def path(chain, tmp_path):
    """The proof of block 2 by block 4, in a file."""
    place = tmp_path / "two.proof"
    write_document(place, build_document(chain.genesis, chain.blocks[2].header, chain.prove(2, 4)))
    return place


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_file_proves_its_block_by_a_descendant(chain, path):
    found = verify_document(read_document(path))
    assert found.header == chain.blocks[2].header
    assert found.tip.height == 4
    assert (found.signers, found.committee, found.stake) == (4, 4, found.total_stake)
    assert verify_document(read_document(path), chain.genesis).header.height == 2


def test_proof_of_another_network_is_refused_with_both_hashes(chain, path, home):
    other = create_network(home / "other", Options(name="other", shards=1, seed=6)).genesis
    with pytest.raises(InvalidProofError, match=f"got a proof of network 0x{chain.genesis.network.hex()}"):
        verify_document(read_document(path), other)
    change(path, genesis="0x" + encode(other).hex())
    with pytest.raises(InvalidProofError, match="the file says 0x"):
        verify_document(read_document(path))


def test_proof_without_a_quorum_says_how_much_stake_it_has_and_needs(chain, path):
    weak = chain.prove(2, 4, signers=(0, 1))
    write_document(path, build_document(chain.genesis, chain.blocks[2].header, weak))
    stake = sum(chain.committee.stakes[:2])
    with pytest.raises(
        InvalidProofError, match=f"got stake {stake}, expected at least {chain.committee.quorum}"
    ):
        verify_document(read_document(path))


def test_file_that_claims_another_block_than_it_proves_is_refused(path):
    change(path, height=3)
    with pytest.raises(InvalidProofError, match=r"at height 3, its proof is of 0x.* at height 2"):
        verify_document(read_document(path))


def test_path_with_a_hole_or_a_stranger_is_refused(chain, path):
    whole = chain.prove(1, 4)
    for hole in ((0, 1, 3), (0, 2, 3)):
        proof = msgspec.structs.replace(whole, path=tuple(whole.path[index] for index in hole))
        write_document(path, build_document(chain.genesis, chain.blocks[1].header, proof))
        with pytest.raises(InvalidProofError, match="no child of the one before"):
            verify_document(read_document(path))


def test_every_cut_of_the_proof_is_unreadable_or_proves_nothing(path):
    whole = json.loads(path.read_text())["proof"]
    for length in range(0, len(whole), 97):
        change(path, proof=whole[:length])
        with pytest.raises(UnreadableProofError):
            verify_document(read_document(path))


@pytest.mark.parametrize(
    "data", [b"", b"\x00\xff", b"{}", b"[1, 2]", b'{"format": "else"}', b"null", b"{" * 2000]
)
def test_what_is_no_proof_file_is_said_so(tmp_path, data):
    place = tmp_path / "odd"
    place.write_bytes(data)
    with pytest.raises(UnreadableProofError, match="expected JSON with format shardyard/finality-proof/1"):
        read_document(place)


def prove_by(network, genesis, place):
    """Write a proof of block 1 by ``genesis``, which the keys of ``network`` signed, to ``place``."""
    chain = CertifiedChain(network, genesis)
    chain.extend()
    write_document(place, build_document(genesis, chain.blocks[1].header, chain.prove(1)))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("public_key", b"\xc0" + bytes(47), "key 0: public key refused"),
        ("public_key", b"\x01", "key 0: public key must have 48 bytes"),
        ("possession_proof", b"\xc0" + bytes(95), "key 0: wrong proof of possession"),
        ("possession_proof", b"", "key 0: wrong proof of possession"),
    ],
    ids=["identity key", "short key", "identity proof", "no proof"],
)
def test_a_genesis_with_keys_that_do_not_count_proves_nothing(chain, path, field, value, words):
    first, *others = chain.genesis.validators
    bad = msgspec.structs.replace(first, **{field: value})
    genesis = msgspec.structs.replace(chain.genesis, validators=(bad, *others))
    prove_by(chain.network, genesis, path)
    with pytest.raises(InvalidProofError, match=f"genesis: got keys of shard-0 .*{words}"):
        verify_document(read_document(path))
    assert run(["check", "finality", str(path)]) == 6


def test_a_genesis_with_a_chain_of_nobody_proves_nothing(chain, path):
    preset = msgspec.structs.replace(chain.genesis.preset, validators_per_shard=0)
    genesis = msgspec.structs.replace(chain.genesis, preset=preset)
    whole = chain.prove(1)
    (step,) = whole.path
    header = msgspec.structs.replace(step.header, network=genesis.network)
    proof = msgspec.structs.replace(
        whole,
        path=(msgspec.structs.replace(step, header=header),),
        notarization=msgspec.structs.replace(whole.notarization, block_hash=header.hash),
        finalization=msgspec.structs.replace(whole.finalization, block_hash=header.hash),
    )
    write_document(path, build_document(genesis, header, proof))
    with pytest.raises(InvalidProofError, match="genesis: got no validators of shard-0"):
        verify_document(read_document(path))
    assert run(["check", "finality", str(path)]) == 6


def test_answer_of_a_node_is_verified_in_order(chain):
    def answer(heights, first):
        return {"first": first, "proofs": [encode(chain.prove(height)).hex() for height in heights]}

    client = LightClient(chain.genesis, SHARD)
    headers = verify_answer(client, chain.genesis, SHARD, answer((1, 2, 3, 4), 1))
    assert [header.height for header in headers] == [1, 2, 3, 4]
    with pytest.raises(InvalidProofError, match="got the proof of height 3, expected 2"):
        verify_answer(client, chain.genesis, SHARD, answer((1, 3), 1))


# --- the command ---


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({}, 0, "is final by its descendant at height 4: 4 of 4 validators signed"),
        ({"height": 3}, 6, "proves nothing"),
        ({"proof": "0x12"}, 2, "the file is damaged or cut"),
        ({"proof": "zz"}, 2, "the file is damaged or cut"),
        ({"chain": "shard-7"}, 6, "proves nothing"),
        ({"chain": "moon"}, 2, "expected beacon or shard-N"),
        ({"hash": "0x12"}, 2, "expected 0x and 64 hexadecimal digits"),
        ({"format": "shardyard/finality-proof/9"}, 2, "got format 'shardyard/finality-proof/9'"),
    ],
)
def test_command_tells_unreadable_from_unproven(path, capsys, fields, code, words):
    change(path, **fields)
    assert run(["check", "finality", str(path)]) == code
    told = capsys.readouterr()
    assert words in told.out + told.err


def test_command_trusts_only_the_genesis_it_is_given(chain, path, home, capsys):
    create_network(home / "other", Options(name="other", shards=1, seed=6))
    own, other = (str(home / name / "genesis.bin") for name in ("mine", "other"))
    assert run(["check", "finality", str(path), "--genesis", own]) == 0
    assert "compare the network's hash" not in capsys.readouterr().out
    assert run(["check", "finality", str(path), "--genesis", other]) == 6
    assert run(["check", "finality", str(path), "--genesis", str(path)]) == 2
    assert run(["check", "finality", str(path), "--network", "0x" + chain.genesis.network.hex()]) == 0
    assert run(["check", "finality", str(path), "--network", "0x" + "12" * 32]) == 6
    assert run(["check", "finality", str(path.with_name("nowhere"))]) == 2


@pytest.mark.parametrize("text", ["12" * 32, "0x12", "0x" + "zz" * 32, "0x" + "12" * 33, "moon"])
def test_network_that_is_no_hash_is_a_mistake_and_no_verdict(path, capsys, text):
    assert run(["check", "finality", str(path), "--network", text]) == 2
    assert f"network: got {text!r}, expected 0x and 64 hexadecimal digits" in capsys.readouterr().err
