"""``load run``: whom it speaks to, and what it refuses before and after it has begun."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from node.cli import load
from node.cli.accounts import FAUCET_ACCOUNT
from node.cli.root import run
from node.cli.session import Session
from node.config import Options
from node.load.run import RunOptions, SeedUsedError, write_answered
from node.network import Network, create_network, write_json

NODES = [
    {f"shard-{shard}-{replica}": f"http://127.0.0.1:{8545 + shard + 2 * replica}" for replica in range(2)}
    for shard in range(2)
]


@pytest.fixture
def network(home: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    made = create_network(home / "mine", Options(name="mine", shards=2, nodes_per_shard=2, seed=1))
    shards = [
        {"shard": shard, "rpc": nodes[f"shard-{shard}-0"], "nodes": nodes}
        for shard, nodes in enumerate(NODES)
    ]
    write_json(made.root / "endpoints.json", {"shards": shards})
    monkeypatch.setattr(Session, "ask_launcher", lambda *_: None)
    return made


def test_seed_that_was_used_before_is_a_conflict_and_leaves_no_folder(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []

    class Refusing:
        def __init__(self, *arguments: Any) -> None:
            given.extend(arguments)

        async def run(self) -> None:
            raise SeedUsedError("the accounts of seed 7 were used before; try: another --seed")

    monkeypatch.setattr(load, "LoadRun", Refusing)
    out = tmp_path / "out"
    assert run(["load", "run", "--seed", "7", "--out", str(out), "--name", "mine"]) == 7
    told = capsys.readouterr().err
    assert told == "error: the accounts of seed 7 were used before\ntry: another --seed\n"
    assert not out.exists()
    urls, *_, replicas = given
    assert urls == ["http://127.0.0.1:8545", "http://127.0.0.1:8546"]
    assert replicas == [list(nodes.values()) for nodes in NODES]


def test_run_that_memory_does_not_hold_is_refused_before_it_begins(
    network: Network, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load, "LoadRun", None)
    free = psutil.virtual_memory()._replace(available=3_000_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    load.verify_memory(2_000_000)
    assert run(["load", "run", "--tps", "100", "--duration", "6h", "--name", "mine"]) == 2
    told = capsys.readouterr().err
    assert "got 2160000 transactions, which take 3.2 GB of memory until their result is written" in told
    assert told.endswith(
        "expected at most 3.0 GB, which are free\ntry: a lower --tps, or a shorter --duration\n"
    )
    assert not (network.root / "load").exists()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_answered_transactions_are_one_document_however_many(tmp_path: Path, count: int) -> None:
    entries: list[dict[str, object]] = [{"shard": 0, "hash": f"0x{number:064x}"} for number in range(count)]
    write_answered(tmp_path / "answered.json", iter(entries))
    found = json.loads((tmp_path / "answered.json").read_text())
    assert found == {"version": 1, "transactions": entries}


def test_load_and_faucet_do_not_take_each_others_nonces() -> None:
    assert RunOptions(duration_s=1).funder != int(FAUCET_ACCOUNT)
