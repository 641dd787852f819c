"""A command never talks to a network that it does not mean, and says what it found instead."""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.cli import network as networks
from node.cli import session as sessions
from node.cli.root import CliError, run
from node.cli.session import RpcError, Session, SilentError
from node.cli.tx import Patience, find_shard, send_and_report, send_raw, wait_for_receipt
from node.config import Options
from node.control import ControlError, NoAnswerError, NobodyThereError
from node.launcher.lock import lock_network
from node.network import Network, create_network, write_json
from shardyard._native import keccak256


class Answering:
    """A JSON-RPC server that answers what it is told to; a list is answered one by one, and None by hanging up."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        answers = self.answers

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = answers.get(
                    request["method"], {"error": {"code": -32601, "message": "method not found"}}
                )
                answer = answer.pop(0) if isinstance(answer, list) else answer
                if answer is None:
                    self.close_connection = True
                    return
                body = answer if isinstance(answer, bytes) else json.dumps({"id": 1, **answer}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its base says so
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def answering() -> Iterator[Answering]:
    found = Answering()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


@pytest.fixture
def network(home: Path, answering: Answering) -> Network:
    made = create_network(home / "mine", Options(name="mine", shards=1, seed=1))
    write_json(made.root / "endpoints.json", {"shards": [{"shard": 0, "rpc": answering.url}]})
    answering.answers["shard_info"] = {"result": {"network": "0x" + made.genesis.network.hex()}}
    return made


@pytest.fixture
def session(network: Network) -> Iterator[Session]:
    found = Session("mine")
    yield found
    found.close()


def test_our_own_network_is_talked_to(session: Session, answering: Answering) -> None:
    answering.answers["eth_blockNumber"] = {"result": "0x5"}
    assert session.get_client(0).request("eth_blockNumber") == "0x5"


@pytest.mark.parametrize(
    "answer", [{"result": {"network": "0x00"}}, {"error": {"code": -32601, "message": "x"}}, {"result": None}]
)
def test_whoever_else_has_our_port_gets_nothing_signed(
    session: Session, answering: Answering, answer: Any
) -> None:
    answering.answers["shard_info"] = answer
    with pytest.raises(
        CliError, match=r"another network answers at .* try: shardyard up --name mine --port-base 0"
    ) as raised:
        session.get_client(0)
    assert raised.value.exit_code == 3


def test_server_that_speaks_no_json_rpc_is_as_good_as_silent(session: Session, answering: Answering) -> None:
    answering.answers["shard_info"] = b"<html>hello</html>"
    with pytest.raises(CliError, match="network 'mine' is not running; try: shardyard up --name mine"):
        session.get_client(0)


def test_shard_that_is_not_there_is_usage(session: Session) -> None:
    with pytest.raises(CliError, match=r"shard: got 1, expected 0\.\.0") as raised:
        session.get_client(1)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("method", "code", "exit_code"),
    [
        ("eth_sendRawTransaction", -32000, 4),
        ("eth_call", 3, 4),
        ("eth_getBlockByNumber", -32000, 1),
        ("eth_getBlockByNumber", -32602, 2),
    ],
)
def test_refusal_is_a_verdict_only_where_a_transaction_is_judged(
    session: Session, answering: Answering, method: str, code: int, exit_code: int
) -> None:
    answering.answers[method] = {"error": {"code": code, "message": "some words"}}
    with pytest.raises(RpcError, match=r"^some words; try: ") as raised:
        session.get_client(0).request(method)
    assert raised.value.exit_code == exit_code


def test_custom_error_of_a_contract_is_shown_with_its_selector(
    session: Session, answering: Answering
) -> None:
    answering.answers["eth_call"] = {
        "error": {"code": 3, "message": "execution reverted", "data": "0xdeadbeef"}
    }
    with pytest.raises(RpcError, match="execution reverted with 0xdeadbeef"):
        session.get_client(0).request("eth_call")


def test_transaction_whose_first_answer_was_lost_is_known_and_not_refused(
    session: Session, answering: Answering
) -> None:
    client = session.get_client(0)
    known = {"error": {"code": -32000, "message": "already known"}}
    answering.answers["eth_sendRawTransaction"] = [None, known, known]
    assert send_raw(client, b"raw") == "0x" + keccak256(b"raw").hex()
    with pytest.raises(RpcError, match="already known"):
        send_raw(client, b"raw")


def test_shard_that_is_silent_for_a_while_is_waited_for(
    session: Session, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "is_running", lambda: True)
    monkeypatch.setattr("node.cli.tx.POLL_S", 0)
    session.get_client(0)
    receipt = {"blockNumber": "0x2"}
    answering.answers["eth_getTransactionReceipt"] = [
        None,
        None,
        {"result": None},
        None,
        None,
        {"result": receipt},
    ]
    assert wait_for_receipt(session, 0, "0x12", Patience()) == receipt


def test_wait_for_a_silent_shard_that_runs_out_tells_what_was_sent(
    session: Session, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering.answers["eth_getTransactionReceipt"] = [None] * 4
    with pytest.raises(
        CliError, match=r"^0x12 was sent .* not running; try: shardyard up --name mine$"
    ) as raised:
        wait_for_receipt(session, 0, "0x12", Patience())
    assert raised.value.exit_code == 3
    monkeypatch.setattr(session, "is_running", lambda: True)
    with pytest.raises(CliError, match="not lost; try: shardyard tx wait 0x12 --name mine") as raised:
        wait_for_receipt(session, 0, "0x12", Patience(0))
    assert raised.value.exit_code == 5


def test_wait_that_begins_while_a_shard_is_silent_goes_on_when_it_answers(
    network: Network,
    answering: Answering,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Session, "is_running", lambda _: True)
    monkeypatch.setattr("node.cli.tx.POLL_S", 0)
    receipt = {"blockNumber": "0x2", "status": "0x1", "gasUsed": "0x5208"}
    answering.answers["eth_getTransactionByHash"] = [*[None] * 4, {"result": {}}]
    answering.answers["eth_getTransactionReceipt"] = {"result": receipt}
    assert run(["tx", "wait", "0x" + "12" * 32, "--name", "mine"]) == 0
    assert "succeeded in block 2 of shard 0" in capsys.readouterr().err
    # Whoever does not wait is told at once.
    answering.answers["eth_getTransactionByHash"] = [None] * 4
    assert run(["tx", "status", "0x" + "12" * 32, "--name", "mine"]) == 3
    assert "shard 0 does not answer" in capsys.readouterr().err


def test_wait_for_a_shard_that_stays_silent_says_what_is_known_and_how_to_go_on(
    network: Network,
    answering: Answering,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tx_hash = "0x" + "12" * 32
    wait = ["tx", "wait", tx_hash, "--timeout", "0", "--name", "mine"]
    answering.answers["eth_getTransactionByHash"] = [None] * 4
    assert run(wait) == 3
    assert "network 'mine' is not running" in capsys.readouterr().err
    monkeypatch.setattr(Session, "is_running", lambda _: True)
    assert run(wait) == 5
    told = capsys.readouterr().err
    assert f"shard 0 did not answer within 0 s, and no other shard knows transaction {tx_hash}" in told
    assert told.endswith(f"try: shardyard tx wait {tx_hash} --name mine\n")
    answering.answers["eth_getTransactionByHash"] = {"result": None}
    assert run(wait) == 1
    assert f"no shard knows transaction {tx_hash}" in capsys.readouterr().err


def test_transaction_is_found_beside_a_silent_shard(
    session: Session, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_client(shard: int) -> Any:
        if shard == 0:
            raise SilentError(0, "shard 0 does not answer")
        return SimpleNamespace(request=lambda *_: {} if shard == 2 else None)

    monkeypatch.setattr(session, "get_client", get_client)
    monkeypatch.setattr(Session, "shard_count", 3)
    assert find_shard(session, "0x" + "12" * 32) == 2


def test_interrupt_while_something_sent_is_waited_for_does_not_advise_to_send_it_again(
    network: Network,
    answering: Answering,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("node.cli.tx.time", SimpleNamespace(monotonic=time.monotonic, sleep=interrupt))
    tx_hash = "0x" + "12" * 32
    answering.answers |= {
        "eth_getTransactionCount": {"result": "0x2"},
        "eth_getCode": {"result": "0x"},
        "eth_maxPriorityFeePerGas": {"result": "0x1"},
        "eth_getBlockByNumber": {"result": {"baseFeePerGas": "0x1"}},
        "eth_sendRawTransaction": {"result": tx_hash},
        "eth_getTransactionReceipt": {"result": None},
    }
    for words in (["tx", "send", "--to", "1"], ["faucet", "1"]):
        assert run([*words, "--name", "mine"]) == 130
        told = capsys.readouterr().err
        assert told.startswith(f"error: interrupted: {tx_hash} was sent before, and is not lost\n")
        assert told.endswith(f"try: shardyard tx wait {tx_hash} --name mine\n")


def test_waits_for_block_and_beacon_share_their_time(
    session: Session, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def sleep(_: float) -> None:
        now[0] += 1

    monkeypatch.setattr("node.cli.tx.time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    receipt = {"blockNumber": "0x2", "status": "0x1", "gasUsed": "0x5208"}
    answering.answers["eth_sendRawTransaction"] = {"result": "0x12"}
    answering.answers["eth_getTransactionReceipt"] = [*[{"result": None}] * 8, {"result": receipt}]
    answering.answers["shard_status"] = {"result": {"heads": {"finalized": {"height": 1}}}}
    with pytest.raises(CliError, match="final on its shard but not on the beacon after 10 s"):
        send_and_report(session, 0, b"raw", wait="final", as_json=True, timeout_s=10)
    assert now[0] < 12


def test_gap_of_nonces_is_told_of_a_transaction_that_was_taken_alone(
    session: Session, answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = {"error": {"code": -32000, "message": "nonce too high: next nonce 2, tx nonce 200"}}
    answering.answers |= {
        "eth_getTransactionCount": {"result": "0x2"},
        "eth_getCode": {"result": "0x"},
        "eth_maxPriorityFeePerGas": {"result": "0x1"},
        "eth_getBlockByNumber": {"result": {"baseFeePerGas": "0x1"}},
        "eth_sendRawTransaction": [refusal, {"result": "0x12"}],
    }
    send = ["tx", "send", "--to", "1", "--no-wait", "--name", "mine"]
    assert run([*send, "--nonce", "200"]) == 4
    assert "waits until" not in capsys.readouterr().err
    assert run([*send, "--nonce", "50"]) == 0
    assert "this one waits until 2..49 are sent" in capsys.readouterr().err


def test_next_replica_is_asked_while_the_first_is_silent(
    session: Session, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = {"shard-0-0": "http://127.0.0.1:1", "shard-0-1": answering.url}
    write_json(
        session.root / "endpoints.json", {"shards": [{"shard": 0, "rpc": nodes["shard-0-0"], "nodes": nodes}]}
    )
    monkeypatch.setattr(session, "is_running", lambda: True)
    assert session.get_client(0).url == answering.url


def test_next_replica_is_asked_while_the_first_sleeps(
    session: Session, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "PROBE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(session, "is_running", lambda: True)
    with socket.create_server(
        ("127.0.0.1", 0)
    ) as asleep:  # it accepts, as a stopped process does, and never answers
        nodes = {"shard-0-0": f"http://127.0.0.1:{asleep.getsockname()[1]}", "shard-0-1": answering.url}
        endpoints = {"shards": [{"shard": 0, "rpc": nodes["shard-0-0"], "nodes": nodes}]}
        write_json(session.root / "endpoints.json", endpoints)
        assert session.get_client(0).url == answering.url


def test_launcher_that_does_not_listen_yet_is_waited_for(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[Path] = []

    async def listen_at_last(path: Path, _method: str, *, timeout_s: float) -> str:
        attempts.append(path)
        if len(attempts) < 3:
            raise NobodyThereError("no answer at launcher.sock")
        return f"answered within {timeout_s:.0f} s"

    monkeypatch.setattr(sessions, "ask", listen_at_last)
    with pytest.raises(ControlError, match="network 'mine' is not running"):
        session.ask_launcher("ping")
    with lock_network(session.root):
        assert session.ask_launcher("ping") == f"answered within {sessions.CONTROL_TIMEOUT_S:.0f} s"
        assert attempts == [session.network.get_control_path("launcher")] * 3
        attempts.clear()
        with pytest.raises(CliError, match="beacon-0 does not answer") as raised:
            session.ask_node("beacon-0", "status")
        assert raised.value.exit_code == 3
        assert len(attempts) == 1


def test_launcher_that_does_not_answer_is_given_all_its_time(session: Session) -> None:
    brief = Session("mine", control_timeout_s=0.2)
    started = time.monotonic()
    with lock_network(session.root), pytest.raises(CliError) as raised:
        brief.ask_launcher("ping")
    assert time.monotonic() - started >= 0.2
    path = re.escape(str(session.network.get_control_path("launcher")))
    words = rf"runs \(launcher pid {os.getpid()}\) and did not answer within \d+ s at {path} \("
    assert re.search(words, str(raised.value))
    assert raised.value.exit_code == 3


def test_status_asks_nobody_twice_and_waits_for_the_beacon_no_longer_than_for_others(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []

    def refuse(what: object, *_: object) -> Any:
        asked.append(what)
        raise CliError("no answer") if what == 0 else NoAnswerError("no answer at beacon-0.sock: timed out")

    write_json(
        session.root / "endpoints.json",
        {"shards": [{"shard": 0, "chain_id": 31337, "rpc": "x", "nodes": {}}]},
    )
    monkeypatch.setattr(session, "ask_launcher", lambda method: [] if method == "nodes" else {"faults": []})
    monkeypatch.setattr(session, "get_client", refuse)
    monkeypatch.setattr(session, "ask_briefly", refuse)
    limits: dict[str, float] = {}
    monkeypatch.setattr(networks, "Session", lambda *_, **given: limits.update(given) or session)
    assert run(["status", "--name", "mine"]) == 0
    assert set(limits.values()) == {networks.STATUS_TIMEOUT_S}
    assert asked == [0, "beacon-0"]
    assert (
        "beacon: no answer at beacon-0.sock: timed out; try: shardyard logs beacon-0"
        in capsys.readouterr().err
    )


def test_silence_is_waited_for_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "is_running", lambda: True)
    brief = Session("mine", rpc_timeout_s=0.05)
    with socket.create_server(("127.0.0.1", 0)) as asleep:
        url = f"http://127.0.0.1:{asleep.getsockname()[1]}"
        write_json(session.root / "endpoints.json", {"shards": [{"shard": 0, "rpc": url}]})
        with pytest.raises(CliError):
            brief.get_client(0)
        asleep.settimeout(0.2)
        asleep.accept()[0].close()
        with pytest.raises(TimeoutError):
            asleep.accept()


def test_wait_is_no_longer_than_was_said_where_a_process_sleeps(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "PROBE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(Session, "is_running", lambda _: True)
    with socket.create_server(("127.0.0.1", 0)) as asleep:
        url = f"http://127.0.0.1:{asleep.getsockname()[1]}"
        write_json(session.root / "endpoints.json", {"shards": [{"shard": 0, "rpc": url}]})
        started = time.monotonic()
        assert run(["tx", "wait", "0x" + "12" * 32, "--timeout", "0.1", "--name", "mine"]) == 5
        with pytest.raises(CliError, match="not lost") as raised:
            wait_for_receipt(session, 0, "0x12", Patience(0.1))
    assert raised.value.exit_code == 5
    assert time.monotonic() - started < sessions.RPC_TIMEOUT_S / 3
