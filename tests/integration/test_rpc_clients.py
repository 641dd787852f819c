"""Clients of other people against a real server: web3.py, cast, raw sockets that misbehave, WebSockets."""

import asyncio
import contextlib
import json
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from web3 import AsyncWeb3, WebSocketProvider
from web3.exceptions import ContractCustomError, ContractLogicError, Web3RPCError
from web3.providers import AsyncHTTPProvider
from websockets import Origin
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from node.artifacts import load_artifact
from node.rpc.access import RpcAccess
from node.rpc.api import CallContext
from node.rpc.app import RpcApp
from node.rpc.methods import MethodTable
from node.rpc.protocol import RpcLimits
from node.rpc.server import PortTakenError, RpcServer
from shardyard._native import keccak256
from shardyard.errors import ConfigError
from tests.unit.node.rpc_chain import (
    ALICE,
    BOB,
    CAROL,
    CHAIN_ID,
    GATEWAY,
    RpcChain,
    build_transfer,
    open_chain,
)

BLOCK_S = 0.05


class Served:
    """A chain that makes a block every 50 ms behind a real server."""

    def __init__(self, chain: RpcChain, server: RpcServer) -> None:
        self.chain = chain
        self.port = server.port
        self.url = f"http://127.0.0.1:{server.port}"
        self.inbox: list[bytes] = []
        self.stopped = asyncio.Event()

    async def produce(self) -> None:
        """Make blocks until stopped; the beacon follows two blocks behind."""
        while not self.stopped.is_set():
            taken, self.inbox = self.inbox, []
            block = await self.chain.make_block(taken)
            self.chain.backend.on_beacon_final(max(0, block.header.height - 2))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopped.wait(), BLOCK_S)


@asynccontextmanager
async def serve(place: Path, **options: Any) -> AsyncIterator[Served]:
    async with open_chain(place, **options) as chain, RpcServer(chain.app, chain.access) as server:
        served = Served(chain, server)
        producing = asyncio.create_task(served.produce())
        try:
            yield served
        finally:
            served.stopped.set()
            await producing


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path) as found:
        yield found


@pytest.fixture
async def web3(served: Served) -> AsyncIterator[AsyncWeb3]:
    found = AsyncWeb3(AsyncHTTPProvider(served.url))
    yield found
    await found.provider.disconnect()


async def send(web3: AsyncWeb3, account: Any, transaction: dict[str, Any]) -> Any:
    signer = web3.eth.account.from_key(account.private_key)
    filled = {
        "from": signer.address,
        "chainId": CHAIN_ID,
        "nonce": await web3.eth.get_transaction_count(signer.address, "pending"),
        "maxPriorityFeePerGas": await web3.eth.max_priority_fee,
        "maxFeePerGas": 3 * await web3.eth.gas_price,
        **transaction,
    }
    if "gas" not in filled:
        filled["gas"] = await web3.eth.estimate_gas(filled)
    tx_hash = await web3.eth.send_raw_transaction(signer.sign_transaction(filled).raw_transaction)
    return await web3.eth.wait_for_transaction_receipt(tx_hash, timeout=20, poll_latency=0.05)


async def test_web3_py_deploys_transacts_and_reads_events(served, web3):
    artifact = load_artifact("counter")
    factory = web3.eth.contract(abi=list(artifact.abi), bytecode=artifact.init_code)
    built = await factory.constructor().build_transaction({"chainId": CHAIN_ID, "gas": 1_000_000})
    receipt = await send(web3, ALICE, {"data": built["data"], "gas": 1_000_000})
    counter = web3.eth.contract(address=receipt["contractAddress"], abi=list(artifact.abi))
    call = await counter.functions.increment().build_transaction({"chainId": CHAIN_ID, "gas": 100_000})
    receipt = await send(web3, BOB, {"to": counter.address, "data": call["data"], "value": 0})
    assert receipt["status"] == 1
    assert await counter.functions.count().call() == 1
    (event,) = counter.events.Counted().process_receipt(receipt)
    assert event["args"]["count"] == 1
    (log,) = await counter.events.Counted().get_logs(from_block=0)
    assert log["transactionHash"] == receipt["transactionHash"]


async def test_web3_py_reads_every_head_and_a_delivery(served, web3):
    served.inbox.append(build_transfer(1, CAROL.address, 77))
    message = keccak256(b"message" + bytes([0, 1]))
    receipt = await web3.eth.wait_for_transaction_receipt(message, timeout=20, poll_latency=0.05)
    assert receipt["status"] == 1
    transaction = await web3.eth.get_transaction(message)
    assert bytes.fromhex(transaction["from"][2:]) == GATEWAY
    block = await web3.eth.get_block(receipt["blockNumber"], full_transactions=True)
    assert block["transactions"][0]["hash"] == message
    heads = [
        (await web3.eth.get_block(tag))["number"] for tag in ("earliest", "finalized", "latest", "pending")
    ]
    assert heads == sorted(heads)
    assert await web3.eth.get_balance(CAROL.checksum_address) % 10**18 == 77
    assert (await web3.eth.fee_history(2, "latest", [50]))["reward"]


async def test_web3_py_understands_refusals_and_reverts(served, web3):
    gateway = load_artifact("gateway")
    contract = web3.eth.contract(
        address=web3.to_checksum_address("0x" + GATEWAY.hex()), abi=list(gateway.abi)
    )
    with pytest.raises(ContractLogicError, match="the destination is this shard"):
        await contract.functions.quote(1, 1, 1).call()
    with pytest.raises((ContractCustomError, ContractLogicError)):
        await contract.functions.sendMessage(b"", b"", []).call()
    raw = served.chain.sign(nonce=0, value=2**200)
    with pytest.raises(Web3RPCError, match="insufficient funds for gas"):
        await web3.eth.send_raw_transaction(raw)


async def test_web3_py_subscribes(served):
    async with AsyncWeb3(WebSocketProvider(f"ws://127.0.0.1:{served.port}")) as web3:
        await web3.eth.subscribe("newHeads")
        numbers: list[int] = []
        async for message in web3.socket.process_subscriptions():
            numbers.append(message["result"]["number"])
            if len(numbers) == 3:
                break
        assert numbers == list(range(numbers[0], numbers[0] + 3))
        assert await web3.eth.chain_id == CHAIN_ID


async def run_cast(cast: Path, url: str, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        str(cast), arguments[0], "--rpc-url", url, *arguments[1:],
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode().strip()


async def test_cast_sends_calls_and_reads_blocks(served, cast):
    key = "0x" + ALICE.private_key.hex()
    url = served.url
    assert await run_cast(cast, url, "chain-id") == str(CHAIN_ID)
    receipt = json.loads(
        await run_cast(
            cast, url, "send", "--json", "--private-key", key, BOB.checksum_address, "--value", "1ether"
        )
    )
    assert receipt["status"] == "0x1"
    code = "0x" + load_artifact("counter").init_code.hex()
    created = json.loads(await run_cast(cast, url, "send", "--json", "--private-key", key, "--create", code))
    address = created["contractAddress"]
    await run_cast(cast, url, "send", "--private-key", key, address, "increment()")
    assert await run_cast(cast, url, "call", address, "count()(uint256)") == "1"
    served.inbox.append(build_transfer(1, CAROL.address, 77))
    message = "0x" + keccak256(b"message" + bytes([0, 1])).hex()
    assert json.loads(await run_cast(cast, url, "receipt", "--json", message))["status"] == "0x1"
    number = json.loads(await run_cast(cast, url, "tx", "--json", message))["blockNumber"]
    for block in (str(int(number, 16)), "latest", "finalized", "pending", "earliest"):
        assert json.loads(await run_cast(cast, url, "block", "--json", "--full", block))["number"]
    assert await run_cast(cast, url, "logs", "--json", "--from-block", "0", "--address", address) != "[]"


# --- a server that is not spoken to nicely ---


async def exchange(port: int, data: bytes) -> bytes:
    """Send raw bytes and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00", b"\r\n" * 9 + b"x", b"POST / HTTP/9.9\r\n\r\n", b"\x00" * 100]
)
async def test_bytes_that_are_no_http_are_answered_400_and_closed(served, data):
    answer = await exchange(served.port, data)
    assert answer.startswith(b"HTTP/1.1 400")


async def test_headers_without_end_are_cut_off(served):
    answer = await exchange(
        served.port, b"POST / HTTP/1.1\r\nhost: localhost\r\n" + b"x: " + b"y" * 1_000_000
    )
    assert answer == b""


async def test_headers_that_never_come_are_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("node.rpc.server.HEADER_TIMEOUT_S", 0.1)
    async with serve(tmp_path) as served:
        assert await exchange(served.port, b"POST / HTTP/1.1\r\nhost:") == b""


async def test_a_body_above_the_limit_is_cut_off_while_it_arrives(tmp_path):
    async with serve(tmp_path, limits=RpcLimits(max_body_bytes=1000)) as served:
        head = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        answer = await exchange(
            served.port, head + b"transfer-encoding: chunked\r\n\r\n" + b"7d0\r\n" + b" " * 2000
        )
        assert answer.startswith(b"HTTP/1.1 413")


async def test_a_socket_message_above_the_limit_ends_its_connection_only(tmp_path):
    async with serve(tmp_path, limits=RpcLimits(max_body_bytes=1000)) as served:
        async with connect(f"ws://127.0.0.1:{served.port}") as socket:
            await socket.send('{"jsonrpc":"2.0","id":1,"method":"' + "x" * 2000 + '"}')
            with pytest.raises(ConnectionClosedError) as found:
                await asyncio.wait_for(socket.recv(), 10)
            assert found.value.rcvd.code == 1009
        async with connect(f"ws://127.0.0.1:{served.port}") as socket:
            await socket.send('{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}')
            assert json.loads(await asyncio.wait_for(socket.recv(), 10))["result"] == hex(CHAIN_ID)


async def test_a_page_of_elsewhere_gets_no_socket(served):
    with pytest.raises(InvalidStatus) as found:
        async with connect(f"ws://127.0.0.1:{served.port}", origin=Origin("https://evil.example")):
            pass
    assert found.value.response.status_code == 403


def write_certificate(place: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for this machine; returns its path and its key's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = place / "rpc.crt", place / "rpc.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


async def test_a_public_address_with_tls_and_token_serves_who_has_the_token(tmp_path):
    certificate, key = write_certificate(tmp_path)
    access = RpcAccess(host="0.0.0.0", token="0123456789abcdef", tls_certificate=certificate, tls_key=key)
    trust = ssl.create_default_context(cafile=str(certificate))
    request = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}
    async with serve(tmp_path, access=access) as served, httpx.AsyncClient(verify=trust) as client:
        url = f"https://localhost:{served.port}"
        assert (await client.post(url, json=request)).status_code == 401
        token = {"authorization": f"Bearer {access.token}"}
        assert (await client.post(url, json=request, headers=token)).json()["result"] == hex(CHAIN_ID)


async def test_the_node_keeps_its_signal_handlers(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    async with serve(tmp_path):
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


async def test_a_taken_port_is_an_error_that_says_what_to_try(served, tmp_path):
    async with open_chain(tmp_path / "other", access=RpcAccess(port=served.port)) as chain:
        with pytest.raises(PortTakenError, match="--port-base 0"):
            async with RpcServer(chain.app, chain.access):
                pass


async def test_a_public_address_without_tls_and_token_is_refused(tmp_path):
    async with open_chain(tmp_path, access=RpcAccess(host="0.0.0.0")) as chain:
        with pytest.raises(ConfigError, match="token"):
            async with RpcServer(chain.app, chain.access):
                pass


LARGE_CALL = b'{"jsonrpc":"2.0","id":1,"method":"large"}'


async def ask_by_http(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    writer.write(head % len(LARGE_CALL) + LARGE_CALL)


async def ask_by_socket(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = b"GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    writer.write(head + b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    writer.write(
        bytes([0x81, 0x80 | len(LARGE_CALL)]) + bytes(4) + LARGE_CALL
    )  # one text frame, masked with zeros


@pytest.mark.parametrize("ask", [ask_by_http, ask_by_socket])
async def test_a_client_that_reads_nothing_of_its_answer_is_dropped(tmp_path, eventually_async, ask):
    table = MethodTable()
    asked = asyncio.Event()

    @table.method("large")
    def large(_: CallContext) -> str:
        asked.set()
        return "x" * 30_000_000

    async with open_chain(tmp_path) as chain:
        app = RpcApp(chain.api, chain.access, RpcLimits(max_stalled_s=0.1), table)
        async with RpcServer(app, chain.access) as server:
            assert server._server is not None
            connections = server._server.server_state.connections
            # With so little room the client's end stops reading by itself.
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
            await ask(reader, writer)
            await asyncio.wait_for(asked.wait(), 10)
            await eventually_async(lambda: not connections)
            writer.close()
