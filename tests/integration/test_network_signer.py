"""Keys and records of real processes, and a replica that comes back by a snapshot while load runs."""

import asyncio
import json
import shutil
import subprocess
import sys

import pytest

from node.network import open_network
from node.runtime import build_bus, open_node_data
from node.storage.log import BlockLog
from shards.snapshots import compute_chunk_hash
from shardyard import _native
from shardyard.ids import ShardId, compute_chain_id
from shardyard.messages import ChunkRequest, ChunkResponse, SnapshotManifest, SnapshotRequest, Status

pytestmark = pytest.mark.network
DEADLINE_S = 60.0
SHARD = ShardId(0)


@pytest.fixture(scope="module")
def replicated(start_network):
    """One shard of four processes; a replica eight blocks behind takes a snapshot."""
    return start_network(
        "snap", "--shards", "1", "--nodes-per-shard", "4", "--block-time", "500ms", "--snapshot-distance", "8"
    )


def show(cli, node):
    return cli.read("node", "show", node)


def find(cli, node):
    """Return what a node tells, or nothing: it is silent for a moment between fetching a snapshot and following."""
    told = cli.run("node", "show", node, "--json")
    return json.loads(told.stdout) if told.code == 0 else {}


def wait_for_height(cli, node, height, eventually):
    eventually(lambda: find(cli, node).get("latest", 0) >= height, DEADLINE_S)


def ask_rpc(cli, node, method, *params):
    """Ask one replica and return its whole answer."""
    import urllib.request

    url = cli.endpoints["shards"][0]["nodes"][node]
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def read_log(cli, node):
    path = cli.home / cli.name / "logs" / f"{node}.log"
    return [json.loads(line)["message"] for line in path.read_text().splitlines() if line.startswith("{")]


def delete_data(cli, node):
    cli.call("node", "stop", node)
    shutil.rmtree(cli.home / cli.name / "data" / node)


def test_a_second_process_with_the_keys_is_refused_with_the_path_of_the_lock(
    replicated, root, tmp_path, eventually
):
    wait_for_height(replicated, "shard-0-0", 2, eventually)
    copy = tmp_path / "copy"
    shutil.copytree(replicated.home / replicated.name, copy, ignore=shutil.ignore_patterns("lock"))
    told = subprocess.run(
        [sys.executable, "-m", "node.process", "shard-0-0", str(copy)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert told.returncode != 0
    (message,) = [
        found["message"]
        for line in (told.stdout + told.stderr).splitlines()
        if line.startswith("{") and "signs with this key" in (found := json.loads(line))["message"]
    ]
    assert ".lock: process " in message
    assert str(replicated.home / replicated.name / "data" / "shard-0-0") in message


def test_a_deleted_replica_comes_back_by_a_snapshot_under_load_and_signs_nothing(replicated, eventually):
    load = replicated.start(
        "load", "run", "--tps", "20", "--duration", "20s", "--accounts", "4", "--warm-up", "0s"
    )
    wait_for_height(replicated, "shard-0-0", 12, eventually)
    delete_data(replicated, "shard-0-1")
    replicated.call("node", "start", "shard-0-1")
    eventually(
        lambda: find(replicated, "shard-0-1").get("first_block", 0) > 1,
        DEADLINE_S,
    )
    found = show(replicated, "shard-0-1")
    first = found["first_block"]
    assert found["signer"]["state"] == "following only"
    assert "shardyard validator import" in found["signer"]["reason"]
    assert any("snapshot of block" in line for line in read_log(replicated, "shard-0-1"))
    wait_for_height(replicated, "shard-0-1", first + 4, eventually)
    out, err = load.communicate(timeout=DEADLINE_S)
    assert load.returncode == 0, out + err
    # The same blocks and state as everybody from there on, and geth's words for what is not here.
    number = hex(first + 3)
    for method, params in (
        ("eth_getBlockByNumber", (number, True)),
        ("eth_getBlockReceipts", (number,)),
        ("eth_getBalance", ("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266", number)),
    ):
        assert ask_rpc(replicated, "shard-0-1", method, *params) == ask_rpc(
            replicated, "shard-0-0", method, *params
        )
    base = f", of block {first - 1} it has header and state"
    for method, params, more in (
        ("eth_getBlockByNumber", (hex(first - 1), False), base),
        ("eth_getBlockByNumber", ("0x1", False), ""),
        ("eth_getLogs", ({"fromBlock": "0x1", "toBlock": "latest"},), ""),
    ):
        error = ask_rpc(replicated, "shard-0-1", method, *params)["error"]
        assert error == {
            "code": 4444,
            "message": f"pruned history unavailable: this node has blocks from {first} on{more}",
        }
    error = ask_rpc(replicated, "shard-0-1", "eth_getBalance", "0x" + "11" * 20, "0x1")["error"]
    assert error["message"].startswith("missing trie node")
    assert str(first - 1) in error["message"]
    # It is killed, and comes back from its own log.
    replicated.call("node", "kill", "shard-0-1")
    height = show(replicated, "shard-0-0")["latest"]
    wait_for_height(replicated, "shard-0-1", height + 2, eventually)
    assert show(replicated, "shard-0-1")["first_block"] == first


async def serve_a_lie(cli, chunks, stop):
    """Speak as shard-0-3 and answer at once: a block that is final, and the state of another one."""
    network = open_network(cli.home / cli.name)
    hashes = tuple(compute_chunk_hash(chunk) for chunk in chunks)
    with open_node_data(network, "shard-0-3", SHARD) as data:
        with BlockLog(data.log_path, data.owner) as log:
            height = log.final_height
            block, proof = log.get_final(height)
        manifest = SnapshotManifest(SHARD, block, proof, hashes)
        async with build_bus(network, "shard-0-3", SHARD, data) as bus:
            header = block.header
            await bus.publish(SHARD, Status(SHARD, header.slot, header.height, header.hash))

            async def answer():
                async for sender, _, message in bus.messages():
                    if isinstance(message, SnapshotRequest):
                        await bus.send(sender, SHARD, manifest)
                    elif isinstance(message, ChunkRequest):
                        data = chunks[message.index]
                        await bus.send(
                            sender, SHARD, ChunkResponse(SHARD, message.snapshot, message.index, data)
                        )

            task = asyncio.create_task(answer())
            await asyncio.to_thread(stop)
            task.cancel()


def test_a_peer_with_a_wrong_root_is_named_and_passed_over(replicated, eventually):
    network = open_network(replicated.home / replicated.name)
    core = _native.Core(chain_id=compute_chain_id(0), shard=0)
    core.init_genesis(network.read_alloc())
    core.set_base(bytes(32), 0)
    chunks = core.snapshot()
    wait_for_height(replicated, "shard-0-3", 12, eventually)
    # One honest peer is left, which still holds the snapshot of before; the liar's block is newer and is tried first.
    replicated.call("node", "stop", "shard-0-3")
    replicated.call("node", "stop", "shard-0-2")
    delete_data(replicated, "shard-0-1")

    def bring_back():
        replicated.call("node", "start", "shard-0-1")
        eventually(
            lambda: find(replicated, "shard-0-1").get("first_block", 0) > 1,
            DEADLINE_S,
        )

    asyncio.run(serve_a_lie(replicated, chunks, bring_back))
    (refusal, *_) = [line for line in read_log(replicated, "shard-0-1") if "from shard-0-3" in line]
    assert "refused InvalidProofError from shard-0-3: snapshot of block" in refusal
    assert "as the header says" in refusal
    replicated.call("node", "start", "shard-0-2")
    replicated.call("node", "start", "shard-0-3")
    height = show(replicated, "shard-0-0")["latest"]
    wait_for_height(replicated, "shard-0-1", height + 1, eventually)


def test_what_keys_signed_moves_by_a_file(replicated, tmp_path, eventually):
    message, remedy = replicated.refuse("validator", "export", "shard-0-2", code=7)
    assert "is running" in message
    assert "shardyard node stop shard-0-2" in remedy
    replicated.refuse("validator", "export", "shard-7-2", code=2)
    replicated.call("node", "stop", "shard-0-2")
    file = tmp_path / "moved.json"
    replicated.call("validator", "export", "shard-0-2", "-o", str(file))
    replicated.refuse("validator", "export", "shard-0-2", "-o", str(file), code=7)
    minimal = json.loads(replicated.call("validator", "export", "shard-0-2", "--minimal").stdout)
    assert len(minimal["data"][0]["signed_attestations"]) == 1
    # Its record goes on, and is lost: the file is older than what was signed, and a newer one is needed.
    replicated.call("node", "start", "shard-0-2")
    before = max(
        int(vote["target_epoch"]) for vote in json.loads(file.read_text())["data"][0]["signed_attestations"]
    )

    def read_newest():
        rows = replicated.read("validator", "list")["items"]
        return next(row["newest_slot"] for row in rows if row["node"] == "shard-0-2")

    eventually(lambda: read_newest() > before + 2, DEADLINE_S)
    replicated.call("node", "stop", "shard-0-2")
    newer = tmp_path / "newer.json"
    replicated.call("validator", "export", "shard-0-2", "-o", str(newer))
    record = replicated.home / replicated.name / "data" / "shard-0-2" / "signer.log"
    record.unlink()
    message, remedy = replicated.refuse("validator", "import", "shard-0-2", str(file), code=2)
    assert "but the keys were used up to entry" in message
    assert "an export made after that" in remedy
    assert not record.exists()
    file = newer
    # The newest file gives the record back, and the key votes again.
    shutil.rmtree(replicated.home / replicated.name / "data" / "shard-0-2")
    (row,) = replicated.read("validator", "import", "shard-0-2", str(file))["items"]
    assert row["added"] > 0
    replicated.call("node", "start", "shard-0-2")
    eventually(
        lambda: find(replicated, "shard-0-2").get("signer", {}).get("state") == "signing",
        DEADLINE_S,
    )
    newest = max(
        int(vote["target_epoch"]) for vote in json.loads(file.read_text())["data"][0]["signed_attestations"]
    )

    def get_row():
        rows = replicated.read("validator", "list")["items"]
        return next(row for row in rows if row["node"] == "shard-0-2")

    eventually(lambda: get_row()["newest_slot"] > newest + 2, DEADLINE_S)
    assert get_row()["lock"].startswith("process ")
    replicated.call("node", "stop", "shard-0-2")
    for change, words in (
        (lambda found: found["metadata"].update(genesis_validators_root="0x" + "00" * 32), "another network"),
        (lambda found: found["data"].clear(), "none of which"),
    ):
        found = json.loads(file.read_text())
        change(found)
        other = tmp_path / "other.json"
        other.write_text(json.dumps(found))
        message, _ = replicated.refuse("validator", "import", "shard-0-2", str(other), code=2)
        assert words in message
    message, _ = replicated.refuse("validator", "import", "beacon-0", str(file), code=7)
    replicated.call("node", "start", "shard-0-2")


def test_keys_without_record_or_export_sign_again_above_what_anybody_entered(replicated, eventually):
    # Without shard-0-1, whose record is lost, the shard needs shard-0-2: its slots would never pass one that is kept off.
    eventually(lambda: "signer" in find(replicated, "shard-0-2"), DEADLINE_S)
    message, _ = replicated.refuse("validator", "resume", "shard-0-2", code=7)
    assert "is running" in message
    replicated.call("node", "stop", "shard-0-2")
    record = replicated.home / replicated.name / "data" / "shard-0-2" / "signer.log"
    kept = record.read_bytes()
    record.unlink()
    message, _ = replicated.refuse("validator", "resume", "shard-0-2", "--yes", code=1)
    assert "keys that sign have" in message
    record.write_bytes(kept)
    replicated.call("node", "start", "shard-0-2")
    eventually(lambda: find(replicated, "shard-0-2").get("signer", {}).get("state") == "signing", DEADLINE_S)
    # With it, shard-0-1 comes back.
    replicated.call("node", "stop", "shard-0-1")
    _, remedy = replicated.refuse("validator", "resume", "shard-0-1", "--above", "1", "--yes", code=1)
    assert "the same with --above" in remedy
    slot = show(replicated, "shard-0-0")["slot"] + 16
    (row,) = replicated.read("validator", "resume", "shard-0-1", "--above", str(slot), "--yes")["items"]
    assert row == {"validator": 1, "floor": slot}
    assert replicated.read("validator", "resume", "shard-0-1", "--yes")["items"] == []
    replicated.call("node", "start", "shard-0-1")

    def read_newest():
        rows = replicated.read("validator", "list")["items"]
        return next(row["newest_slot"] for row in rows if row["node"] == "shard-0-1")

    eventually(lambda: read_newest() > slot, DEADLINE_S)


def test_the_audit_holds_over_all_of_it(replicated):
    replicated.call("down")
    report = replicated.read("audit")
    assert report["held"] is True
