"""Every command on a real network, as a person uses it; and every way to go wrong, with its exit code and way out."""

import json
import os
import re
import signal
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from node.dev_accounts import DEV_ACCOUNTS

pytestmark = pytest.mark.network

ALICE = DEV_ACCOUNTS[0].checksum_address
NOBODY = "0x000000000000000000000000000000000000dEaD"
UNKNOWN_HASH = "0x" + "12" * 32
ETHER = 10**18


def get_balance(network, shard, account):
    found = network.read("accounts", "show", str(account))["shards"][shard]
    return found["ether"], found["nonce"]


# --- what a running network says of itself ---


def test_every_reading_command_answers_with_one_json_document(network):
    for words in (
        "status", "accounts", "accounts list", "accounts show 0", "env", "block latest", "block show finalized",
        "block show 1 --full", "block show 1 --access-list", "shard list", "shard show 3", "shard messages", "node list",
        "node show shard-2-0", "node show beacon-0", "config show", "version", "doctor",
    ):  # fmt: skip
        assert len(network.read(*words.split())) > 1, words


def test_status_names_every_shard_process_and_the_supply(network):
    status = network.read("status")
    assert [shard["chain_id"] for shard in status["shards"]] == [31337, 31338, 31339, 31340]
    assert status["beacon"]["supply_holds"] is True
    assert [node["node"] for node in status["nodes"]] == [
        "broker",
        "beacon-0",
        *(f"shard-{i}-0" for i in range(4)),
    ]
    told = network.call("status")
    assert "supply holds" in told.stderr
    assert told.stdout.splitlines()[0].split()[-3:] == ["Executors", "Speed-up", "Aborts"]


def test_a_block_tells_what_it_looked_at(network):
    sent = network.call("tx", "send", "--from", "3", "--to", NOBODY, "--value", "1ether")
    height = re.search(r"in block ([0-9]+)", sent.stderr)[1]
    summary = network.read("block", "show", height)["accessList"]
    assert summary["accessList"] is None
    told = network.call("block", "show", height).stdout
    assert f"{summary['accounts']:,} accounts, {summary['slotsChanged']:,} slots changed" in told
    assert summary["accessListHash"] in told
    assert NOBODY.lower() not in told
    rows = [
        line.split() for line in network.call("block", "show", height, "--access-list").stdout.splitlines()
    ]
    assert any(row[:2] == [NOBODY.lower(), "balance"] for row in rows)
    assert any(row[:2] == [DEV_ACCOUNTS[3].checksum_address.lower(), "nonce"] for row in rows)


def test_blocks_advance_and_become_beacon_final(network):
    lines = network.call("block", "watch", "--count", "8").stdout.splitlines()
    assert {line.split()[1] for line in lines} == {"0", "1", "2", "3"}
    latest = int(network.read("block", "latest")["number"], 16)
    found = network.read("block", "show", str(latest - 4))
    assert int(found["number"], 16) == latest - 4
    assert found["execution"]["executors"] >= 1


def test_variables_for_other_tools(network):
    told = network.call("env", "--shard", "3").stdout
    assert f"export ETH_RPC_URL={network.get_url(3)}\n" in told
    assert "export CHAIN_ID=31340\n" in told


def test_logs_are_told_in_the_order_of_time(network):
    lines = network.call("logs", "-n", "3").stdout.splitlines()
    stamps = [found[0] for line in lines if (found := re.findall(r"\d\d:\d\d:\d\d\.\d{3}", line))]
    assert stamps == sorted(stamps)
    assert any(line.startswith("shard-3-0") for line in lines)


# --- transactions ---


def test_local_transfer_is_included_and_final(network):
    told = network.call(
        "tx", "send", "--from", "1", "--to", NOBODY, "--value", "1ether", "--shard", "2", "--final"
    )
    tx_hash = told.stdout.strip()
    assert "succeeded in block" in told.stderr
    assert "beacon-final after" in told.stderr
    assert network.read("tx", "status", tx_hash)["stage"] == "beacon-final"


def test_cross_shard_transfer_arrives_and_its_story_is_told(network):
    account = network.call("accounts", "new").stdout.strip()
    sent = network.read("tx", "xsend", "--src", "0", "--dst", "3", "--to", account, "--value", "1.5ether")
    (hop,) = sent["hops"]
    assert (hop["kind"], hop["src"], hop["dst"], hop["stage"]) == ("TRANSFER", 0, 3, "executed, beacon-final")
    assert get_balance(network, 3, account) == ("1.5", 0)
    story = network.call("explain", sent["transaction"]).stdout
    assert "sent 1.5 ether to the gateway on shard 0" in story
    assert f"a transfer to {account} on shard 3, from shard 0 carrying 1.5 ether." in story
    assert story.splitlines()[-1].startswith("Everything is done and beacon-final")
    listed = network.read("shard", "messages", "--src", "0", "--dst", "3")["items"]
    assert hop["id"] in [message["id"] for message in listed]


def test_message_calls_a_contract_and_its_answer_comes_back(network):
    (counter,) = network.read("contract", "deploy", "counter", "--shard", "3")["deployed"]
    told = network.call(
        "tx", "xsend", "--src", "1", "--dst", "3", "--to", counter["address"], "--payload", "0x1234"
    )
    assert re.search(r"CALL .* shard 1 → 3: executed, beacon-final", told.stderr)
    assert re.search(r"RESULT .* shard 3 → 1: executed, beacon-final", told.stderr)
    received = network.read("contract", "call", counter["address"], "received()(uint256)", "--shard", "3")
    assert received["result"] == [1]


def test_message_that_fails_bounces_and_the_story_says_why(network):
    (reverter,) = network.read("contract", "deploy", "reverter", "--shard", "2")["deployed"]
    told = network.call(
        "tx", "xsend", "--from", "2", "--src", "1", "--dst", "2", "--to", reverter["address"],
        "--payload", "0xaa", "--value", "1ether", code=4,
    )  # fmt: skip
    assert "one failed and bounced" in told.stderr
    story = network.call("explain", told.stdout.strip()).stdout
    assert "failed there and was rolled back" in story
    assert "because: the reverter reverts" in story


def test_contract_on_all_shards_is_deployed_called_and_sent_to(network):
    deployed = network.read(
        "contract", "deploy", "erc20", "Gold", "GLD", "1000ether", "--shard", "all", "--from", "3"
    )
    assert [entry["shard"] for entry in deployed["deployed"]] == [0, 1, 2, 3]
    token = deployed["deployed"][1]["address"]
    holder = DEV_ACCOUNTS[3].checksum_address
    assert network.call("contract", "call", token, "name()(string)", "--shard", "1").stdout == "Gold\n"
    network.call(
        "contract",
        "send",
        token,
        "transfer(address,uint256)",
        NOBODY,
        "1ether",
        "--from",
        "3",
        "--shard",
        "1",
    )
    left = network.read("contract", "call", token, "balanceOf(address)(uint256)", holder, "--shard", "1")
    assert left["result"] == [999 * ETHER]


def test_faucet_funds_an_account_on_every_shard_and_its_key_can_spend(network):
    account = network.call("accounts", "new").stdout.strip()
    assert len(network.read("faucet", account, "2ether", "--shard", "all")["sent"]) == 4
    assert all(found["ether"] == "2" for found in network.read("accounts", "show", account)["shards"])
    network.call("tx", "send", "--from", account, "--to", "1", "--value", "1ether", "--shard", "1")
    assert get_balance(network, 1, account)[1] == 1
    assert account in network.call("accounts", "list").stdout


def test_key_is_imported_from_standard_input_and_never_listed(network):
    key = "0x" + "42" * 32
    process = network.start("accounts", "import", stdin=subprocess.PIPE)
    address = process.communicate(key + "\n", timeout=60)[0].strip()
    listed = network.call("accounts", "list").stdout
    assert address in listed
    assert key[2:] not in listed


# --- going wrong ---


@pytest.mark.parametrize(
    ("words", "code", "message", "remedy"),
    [
        ("tx send --to 1 --shard 7", 2, "shard: got 7, expected 0..3", "shardyard shard list"),
        ("tx xsend --src 0 --dst 9", 2, "shard: got 9, expected 0..3", "shardyard shard list"),
        ("tx xsend --src 2 --dst 2", 2, "--src and --dst are both 2", "tx send --shard 2"),
        (f"tx send --from {NOBODY} --to 1", 2, "no key of", "--from 0"),
        ("tx send --to 77", 2, "account: got 77, expected 0..9", "shardyard accounts"),
        ("tx send --to 0x12", 2, "expected 0x and 40 hexadecimal digits", "shardyard accounts"),
        ("tx send --to 1 --value 1lira", 2, "amount: got '1lira'", "shardyard tx send --help"),
        ("tx status 0x12", 2, "expected 0x and 64 hexadecimal digits", "shardyard tx send"),
        (f"tx status {UNKNOWN_HASH}", 1, "no shard knows transaction", "shardyard status"),
        (f"explain {UNKNOWN_HASH}", 1, "no shard knows transaction", "shardyard status"),
        ("block show 99999999", 1, "is not here", "shardyard block latest"),
        ("block show 0 --access-list", 1, "never executed", "shardyard block show 1"),
        ("block show newest", 2, "expected a height, a hash or one of latest", "shardyard block latest"),
        ("node show shard-9-9", 2, "expected one of broker, beacon-0", "shardyard node list"),
        ("node kill nobody", 2, "expected one of broker, beacon-0", "shardyard node list"),
        ("logs nobody", 2, "expected one with a log", "shardyard node list"),
        ("contract deploy nosuch", 2, "expected a file or one of counter", "counter"),
        ("contract deploy erc20", 2, "got 0 arguments, expected 3", "contract deploy --help"),
        ("faucet 1 1ether --shard some", 2, "expected a number or all", "--shard all"),
        ("up -d --shards 3", 2, "has shards = 4, not 3", "--fresh to start it anew, or --name"),
        ("up -d", 7, "already running (launcher pid", "shardyard status"),
        ("reset --yes", 7, "is running", "shardyard down"),
    ],
)
def test_mistake_has_its_exit_code_and_a_way_out(network, words, code, message, remedy):
    told, way_out = network.refuse(*words.split(), code=code)
    assert message in told
    assert remedy in way_out


def test_insufficient_funds_in_geths_words_with_the_faucet_line(network):
    account = network.call("accounts", "new").stdout.strip()
    told, way_out = network.refuse("tx", "send", "--from", account, "--to", "1", "--value", "1ether", code=4)
    assert "insufficient funds for gas * price + value" in told
    assert way_out == f"shardyard faucet {account} 100ether --shard 0 --name shared"


def test_nonce_too_low_and_gap(network):
    network.call("tx", "send", "--from", "6", "--to", "1", "--value", "1")
    told, way_out = network.refuse("tx", "send", "--from", "6", "--to", "1", "--nonce", "0", code=4)
    assert "nonce too low" in told
    assert "without --nonce" in way_out
    told, way_out = network.refuse(
        "tx", "send", "--from", "6", "--to", "1", "--nonce", "5", "--timeout", "1", code=5
    )
    assert "nonce gap: got 5, the next is 1" in told
    tx_hash = re.search(r"0x[0-9a-f]{64}", way_out)[0]
    assert f"shardyard tx wait {tx_hash}" in way_out
    assert network.read("tx", "status", tx_hash)["stage"] == "pending"
    network.refuse("tx", "send", "--from", "6", "--to", "1", "--nonce", "5000", code=4)


def test_reverted_transaction_is_exit_four_before_and_after_it_is_sent(network):
    (counter,) = network.read("contract", "deploy", "counter")["deployed"]
    told, _ = network.refuse("contract", "send", counter["address"], "nosuch(uint256)", "5", code=4)
    assert "execution reverted" in told
    told, way_out = network.refuse(
        "tx", "send", "--to", counter["address"], "--data", "0xdeadbeef", "--gas", "100000", code=4
    )
    assert "reverted in block" in told
    assert way_out.startswith("shardyard explain 0x")


def test_error_as_json_carries_code_message_and_way_out(network):
    error = network.read("tx", "send", "--to", "1", "--shard", "7", code=2)["error"]
    assert (error["code"], error["try"]) == (2, "shardyard shard list --name shared")


def test_busy_port_names_its_holder_and_the_way_out(network):
    with closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        options = ("--name", "busy", "-s", "1", "--port-base", str(port), "--broker-port", "0")
        for words in (("up", "-d"), ("up",)):
            told, way_out = network.refuse(*words, *options, code=7)
            assert f"port {port} for JSON-RPC of shard-0-0 is taken by" in told
            assert f"pid {os.getpid()}" in told
            assert way_out.startswith("shardyard up --port-base 0")
        told = network.call("doctor", "--name", "busy", code=1)
        assert f"wrong    port {port}" in told.stdout


# --- processes ---


def test_killed_shard_comes_back_and_goes_on(network, eventually):
    before = {node["node"]: node for node in network.read("node", "list")["items"]}
    height = network.get_heights()[1]
    network.call("node", "kill", "shard-1-0")

    def is_back():
        node = next(node for node in network.read("node", "list")["items"] if node["node"] == "shard-1-0")
        return (
            node["pid"] not in {None, before["shard-1-0"]["pid"]}
            and node["restarts"] > before["shard-1-0"]["restarts"]
        )

    eventually(is_back, 20)
    eventually(lambda: network.succeeds("block", "latest", "--shard", "1"), 20)
    eventually(lambda: network.get_heights()[1] > height, 20)


def test_stopped_node_is_found_by_the_doctor_and_started_again(network, eventually):
    network.call("node", "stop", "shard-3-0")
    told = network.call("doctor", code=1).stdout
    assert "wrong    process shard-3-0: stopped\n         try: shardyard node start shard-3-0" in told
    message, _ = network.refuse("tx", "send", "--to", "1", "--shard", "3", code=3)
    assert "shard 3 does not answer" in message
    network.call("node", "start", "shard-3-0")
    eventually(lambda: network.succeeds("doctor"), 30)


# --- watching ---


def test_watcher_sees_a_message_from_emission_to_beacon_final_and_ends_by_interrupt(network):
    watching = network.start("watch", "--json")
    entries = [json.loads(watching.stdout.readline())]  # it is connected
    sent = network.read("tx", "xsend", "--from", "4", "--src", "2", "--dst", "0", "--value", "1ether")
    message, executed = sent["hops"][0]["id"].removeprefix("0x"), sent["hops"][0]["delivered"]["blockNumber"]

    def is_over(entry):
        final = entry["kind"] == "crosslink.final" and entry["chain"] == "shard-0"
        return final and entry["last_height"] >= executed

    while not is_over(entries[-1]):
        entries.append(json.loads(watching.stdout.readline()))
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=20)
    assert watching.returncode == 0
    assert [entry["stage"] for entry in entries if entry.get("id") == message] == [
        "emitted",
        "beacon-final",
        "delivered",
    ]
    assert {"block.final", "beacon.final", "crosslink.final"} <= {entry["kind"] for entry in entries}


def test_watcher_asks_the_shards_while_there_is_no_broker(network, eventually):
    network.call("node", "stop", "broker")
    try:
        told = network.call("watch", "--count", "6")
        assert "asking the shards instead" in told.stderr
        assert len(re.findall(r"shard-\d   #\d+", told.stdout)) >= 4
    finally:
        network.call("node", "start", "broker")
    eventually(lambda: network.succeeds("doctor"), 30)


# --- starting, stopping, starting again ---


@pytest.fixture(scope="module")
def small(start_network):
    """A network of our own to stop and start."""
    return start_network("small", "--shards", "2", "--block-time", "300ms")


def test_everything_is_there_after_down_and_up(small):
    sent = small.read(
        "tx", "xsend", "--from", "1", "--src", "0", "--dst", "1", "--to", NOBODY, "--value", "3ether"
    )
    waiting = small.call("tx", "send", "--from", "2", "--to", "1", "--nonce", "1", "--no-wait").stdout.strip()
    story = small.call("explain", sent["transaction"]).stdout
    before = [small.read("accounts", "show", account)["shards"] for account in ("0", "1", "2", NOBODY)]
    block = small.read("block", "show", "2", "--shard", "1", "--access-list")
    small.call("down")
    message, way_out = small.refuse("status", code=3)
    assert "is not running" in message
    assert way_out == "shardyard up --name small"
    assert small.read("doctor")["running"] is False
    small.call("up", "-d")
    assert [
        small.read("accounts", "show", account)["shards"] for account in ("0", "1", "2", NOBODY)
    ] == before
    assert block["accessList"]["accounts"] == len(block["accessList"]["accessList"]) > 0
    again = small.read("block", "show", "2", "--shard", "1", "--access-list")
    assert again == block | {"execution": None}
    assert small.call("explain", sent["transaction"]).stdout == story
    assert small.read("tx", "status", waiting)["stage"] == "pending"
    small.call("tx", "send", "--from", "2", "--to", "1", "--nonce", "0")
    small.call("tx", "wait", waiting)


def test_processes_leave_with_their_launcher_and_the_next_start_goes_on(small, eventually):
    pids = [node["pid"] for node in small.read("node", "list")["items"]]
    height = small.get_heights()[0]
    os.kill(small.endpoints["launcher_pid"], signal.SIGKILL)

    def is_alive(pid):
        stat = Path(f"/proc/{pid}/stat")
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"

    eventually(lambda: not any(map(is_alive, pids)), 15)
    small.refuse("status", code=3)
    small.call("up", "-d")
    eventually(lambda: small.get_heights()[0] > height, 20)


def test_network_in_the_foreground_ends_cleanly_by_interrupt(small):
    small.call("down")
    process = small.start("up")
    head = process.stdout.readline()
    assert head.split()[:7] == ["Shard", "Chain", "ID", "JSON-RPC", "Nodes", "Head", "Finalized"]
    assert head.split()[7:] == ["Executors", "Speed-up", "Aborts"]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "`shardyard up --name small` goes on from here" in err
    small.call("reset", "--yes")
    small.refuse("reset", "--yes", code=3)
