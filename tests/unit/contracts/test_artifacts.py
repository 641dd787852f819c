"""Compiled contracts: they are what the sources say, and those of others are what runs elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest

from node.artifacts import list_artifact_names, load_artifact, load_canonical_contracts
from shardyard._native import keccak256

ROOT = Path(__file__).resolve().parents[3]
# What block explorers show for these addresses on Ethereum mainnet.
PUBLISHED_CODE_HASHES = {
    "create2_deployer": "2fa86add0aed31f33a762c9d88e807c475bd51d0f52bd0955754b2608f7e4989",
    "multicall3": "d5c15df687b16f2ff992fc8d767b4216323184a2bbc6ee2f9c398c318e770891",
    "history_storage": "6e49e66782037c0555897870e29fa5e552daf4719552131a0abce779daec0a5d",
    "beacon_roots": "f57acd40259872606d76197ef052f3d35588dadf919ee1f0e3cb9b62d3f4b02c",
    "withdrawal_requests": "0345a365d2f4c5975b9f1599abe0a2ee76b7a3a731bc68781bd04c84e4858f50",
    "consolidation_requests": "78c6cb5202685228bbcbfb992b1c4e116c7ec5ef11e25b8e92716cfc628ddd60",
}


def test_artifacts_are_what_their_sources_compile_to() -> None:
    check = subprocess.run(
        [sys.executable, "contracts/build.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_every_source_has_an_artifact_and_every_artifact_a_source() -> None:
    sources = {path.stem for path in (ROOT / "contracts").rglob("*.vy")}
    assert (
        set(list_artifact_names()) == sources == {"counter", "erc20", "gateway", "pair", "reverter", "sender"}
    )


def test_code_stays_within_the_limits_of_the_evm() -> None:
    for name in list_artifact_names():
        artifact = load_artifact(name)
        assert 0 < len(artifact.runtime_code) <= 24_576  # EIP-170
        assert len(artifact.runtime_code) < len(artifact.init_code) <= 49_152  # EIP-3860


def test_an_unknown_contract_is_refused_with_the_known_names() -> None:
    with pytest.raises(KeyError, match="expected one of counter, erc20, gateway"):
        load_artifact("../canonical")


def test_canonical_code_is_what_runs_elsewhere() -> None:
    contracts = load_canonical_contracts()
    assert {contract.name for contract in contracts} == set(PUBLISHED_CODE_HASHES)
    for contract in contracts:
        digest = keccak256(contract.runtime_code).hex()
        assert digest == PUBLISHED_CODE_HASHES[contract.name] == contract.code_hash[2:]
        assert contract.source
        assert contract.verified_by
