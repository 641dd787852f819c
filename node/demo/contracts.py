"""Contracts across shards, through the public RPC alone: deploy, call here, call from another shard, be refused by another.

The counter counts local calls and messages. The reverter refuses what a sender contract sends it: the message must come
back as a BOUNCE with its value (X8), and leave no trace where it was refused.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from eth_abi.abi import encode as encode_abi

from node.artifacts.contracts import load_artifact
from node.bench.devnet import DevnetError
from node.load.client import NoAnswerError, RefusedError, RpcConnection
from node.load.keys import Account, Draft, Signer
from shardyard import _native
from shardyard.ids import GATEWAY, compute_chain_id

TIMEOUT_S = 45.0
POLL_S = 0.1
CALL_GAS = 1_000_000
DEPLOY_GAS = 4_000_000
MESSAGE_GAS = (200_000, 100_000)
"""For delivery and for the reply: what the gateway assumes without attributes."""
BOUNCED_VALUE = 10**15
STATUS_BOUNCED = 4


class StoryError(DevnetError):
    """The contracts did not do what they must."""


class Story(msgspec.Struct, frozen=True):
    """What happened, for the report. Seconds count from the send to the beacon-final reply."""

    counter: str
    count: int
    received: int
    result_s: float
    bounce_s: float
    bounced_value: int
    attempts: int

    @property
    def held(self) -> bool:
        """One local call and one message were counted, and the bounce brought everything back."""
        return (self.count, self.received, self.bounced_value, self.attempts) == (2, 1, BOUNCED_VALUE, 0)


def encode_call(signature: str, *values: object) -> bytes:
    """Return selector and arguments of ``signature``, for example ``count()``."""
    types = [part for part in signature.partition("(")[2][:-1].split(",") if part]
    return _native.keccak256(signature.encode())[:4] + encode_abi(types, values)


def encode_interop_address(shard: int, address: bytes) -> bytes:
    """Return the ERC-7930 form of ``address`` on ``shard``."""
    return b"\x00\x01\x00\x00\x02" + compute_chain_id(shard).to_bytes(2, "big") + b"\x14" + address


class ShardUser:
    """One account at work on one shard."""

    def __init__(self, url: str, shard: int, account: Account) -> None:
        self.shard = shard
        self.answered: list[dict[str, object]] = []
        """Every transaction the node answered, as the auditor takes it."""
        self._rpc = RpcConnection(url)
        self._account = account
        self._signer = Signer(shard)
        self._nonce = -1

    def close(self) -> None:
        """Close the connection."""
        self._rpc.close()

    async def ask(self, method: str, *params: object) -> Any:
        """Ask the node, again while it does not answer."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                return await self._rpc.request(method, *params)
            except NoAnswerError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(POLL_S)

    async def read(self, contract: bytes, signature: str, *values: object) -> bytes:
        """Return what a view of ``contract`` answers."""
        call = {"to": "0x" + contract.hex(), "data": "0x" + encode_call(signature, *values).hex()}
        return bytes.fromhex((await self.ask("eth_call", call, "latest"))[2:])

    async def read_int(self, contract: bytes, signature: str, *values: object) -> int:
        """Return the number a view of ``contract`` answers."""
        return int.from_bytes(await self.read(contract, signature, *values), "big")

    async def send(self, to: bytes, data: bytes, *, value: int = 0, gas: int = CALL_GAS) -> dict[str, Any]:
        """Send a transaction and return its receipt; raises ``StoryError`` when it fails or does not come."""
        if self._nonce < 0:
            address = "0x" + self._account.address.hex()
            self._nonce = int(await self.ask("eth_getTransactionCount", address, "pending"), 16)
        base_fee = int((await self.ask("eth_getBlockByNumber", "latest", False))["baseFeePerGas"], 16)
        draft = Draft(self._account, self._nonce, to, value, gas, 4 * base_fee + 10**9, 10**6, data)
        ((raw, digest),) = self._signer.sign([draft])
        try:
            tx_hash: str = await self.ask("eth_sendRawTransaction", "0x" + raw.hex())
        except RefusedError as error:
            if "already known" not in str(error):
                raise StoryError(f"shard {self.shard} refused a transaction: {error}") from error
            tx_hash = "0x" + digest.hex()
        self._nonce += 1
        self.answered.append({"shard": self.shard, "hash": tx_hash})
        receipt = await self._wait(tx_hash, "eth_getTransactionReceipt", tx_hash)
        if receipt["status"] != "0x1":
            raise StoryError(f"transaction {tx_hash} on shard {self.shard} was reverted")
        return receipt

    async def _wait(self, what: str, method: str, *params: object) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while (found := await self.ask(method, *params)) is None:
            if time.monotonic() > deadline:
                raise StoryError(f"{what} was not there within {TIMEOUT_S:.0f} s")
            await asyncio.sleep(POLL_S)
        return dict(found)

    async def deploy(self, name: str) -> bytes:
        """Deploy one of our own contracts; returns its address."""
        receipt = await self.send(b"", load_artifact(name).init_code, gas=DEPLOY_GAS)
        return bytes.fromhex(receipt["contractAddress"][2:])

    async def wait_reply(self, tx_hash: str) -> tuple[str, str]:
        """Return id and kind of reply of the one message that ``tx_hash`` sent, once the reply is beacon-final here."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            found = await self.ask("shard_getCrossTx", tx_hash)
            messages = [item for item in found["messages"] if item["depth"] == 0] if found else []
            if messages and messages[0]["reply"] and messages[0]["reply"].get("beaconFinal"):
                return messages[0]["id"], messages[0]["reply"]["kind"]
            await asyncio.sleep(POLL_S)
        raise StoryError(f"the message of {tx_hash} was not answered within {TIMEOUT_S:.0f} s")


async def tell_story(users: Sequence[ShardUser]) -> Story:
    """Deploy on three shards, call here, call across, be refused; raises ``StoryError``."""
    home, away, hostile = users[0], users[1], users[2]
    counter, reverter, sender = await asyncio.gather(
        away.deploy("counter"), hostile.deploy("reverter"), home.deploy("sender")
    )
    await away.send(counter, encode_call("increment()"))
    quote = await home.read_int(GATEWAY, "quote(uint256,uint256,uint256)", away.shard, *MESSAGE_GAS)
    started = time.monotonic()
    recipient = encode_interop_address(away.shard, counter)
    data = encode_call("sendMessage(bytes,bytes,bytes[])", recipient, b"count me", [])
    receipt = await home.send(GATEWAY, data, value=2 * quote)
    result_id, kind = await home.wait_reply(receipt["transactionHash"])
    result_s = time.monotonic() - started
    if kind != "RESULT":
        raise StoryError(f"message {result_id} to the counter came back as {kind}, expected RESULT")
    bounce_s = await _bounce(home, hostile, sender, reverter)
    return Story(
        counter="0x" + counter.hex(),
        count=await away.read_int(counter, "count()"),
        received=await away.read_int(counter, "received()"),
        result_s=round(result_s, 3),
        bounce_s=round(bounce_s, 3),
        bounced_value=await home.read_int(sender, "lastValue()"),
        attempts=await hostile.read_int(reverter, "attempts()"),
    )


async def _bounce(home: ShardUser, hostile: ShardUser, sender: bytes, reverter: bytes) -> float:
    """Send value to a contract that refuses it; returns how long it took to come back."""
    # The gateway takes the gas at the price it quotes when the transaction runs; all beyond it would be value. So the
    # price is fixed here, well above what a devnet charges, and exactly ``BOUNCED_VALUE`` is left to travel.
    gas_price = 10**10
    price = encode_call("gasPrice(uint256)", gas_price)
    value = sum(MESSAGE_GAS) * gas_price + BOUNCED_VALUE
    started = time.monotonic()
    recipient = encode_interop_address(hostile.shard, reverter)
    data = encode_call("send(bytes,bytes,bytes[])", recipient, b"", [price])
    receipt = await home.send(sender, data, value=value)
    message, kind = await home.wait_reply(receipt["transactionHash"])
    took = time.monotonic() - started
    status = await home.read_int(sender, "statusOf(bytes32)", bytes.fromhex(message[2:]))
    if kind != "BOUNCE" or status != STATUS_BOUNCED:
        raise StoryError(
            f"message {message} to the reverter came back as {kind} with status {status}, expected BOUNCE"
        )
    return took
