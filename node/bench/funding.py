"""What a flood needs before it can be signed: a token where tokens are sent, and accounts that can pay."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from eth_abi.abi import encode as encode_abi

from node.artifacts.contracts import load_artifact
from node.bench.devnet import DevnetError
from node.bench.signed import ShardSource, Token
from node.dev_accounts import DEV_ACCOUNTS
from node.load.client import RpcConnection
from node.load.keys import Account, Draft, Signer
from node.load.workload import TRANSFER_GAS

MAX_FEE = 10**13
"""Wei per gas: full blocks raise the base fee by an eighth each, and nothing may be priced out of the run."""
TIP = 10**6
FUNDER = 9
TOKEN_SUPPLY = 10**30
TOKENS_EACH = 10**20
DEPLOY_GAS = 3_000_000
DEAL_GAS = 100_000
MOST_GAS = 200_000
"""Of any transaction of a flood."""
MARGIN_GAS = 500
"""Above what a transfer is estimated to take."""
BATCH = 500
POLL_S = 0.1
LIMIT_S = 120.0


async def wait_for(what: str, ask: Callable[[], Awaitable[Any]]) -> Any:
    """Return the first answer of ``ask`` that is something; raises ``DevnetError`` after ``LIMIT_S``."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if found := await ask():
            return found
        await asyncio.sleep(POLL_S)
    raise DevnetError(f"{what}: not there within {LIMIT_S:.0f} s; try: --keep, and read the logs")


async def deploy_token(url: str, shard: int) -> Token:
    """Deploy an ERC-20 token; the gas of its transfers is known once it is dealt out."""
    connection = RpcConnection(url, timeout_s=30.0)
    account = Account(DEV_ACCOUNTS[FUNDER].private_key)
    try:
        nonce = await _read_nonce(connection, account, "pending")
        arguments = encode_abi(["string", "string", "uint256"], ["Flood", "FLD", TOKEN_SUPPLY])
        code = load_artifact("erc20").init_code + arguments
        draft = Draft(account, nonce, b"", 0, DEPLOY_GAS, MAX_FEE, TIP, code)
        ((raw, digest),) = Signer(shard).sign([draft])
        await connection.request("eth_sendRawTransaction", "0x" + raw.hex())
        receipt = await wait_for(
            "the token", lambda: connection.request("eth_getTransactionReceipt", "0x" + digest.hex())
        )
    finally:
        connection.close()
    return Token(bytes.fromhex(receipt["contractAddress"][2:]), 0)


async def fund_accounts(
    url: str, source: ShardSource, token: Token | None, count: int, settled: str = "finalized"
) -> Token | None:
    """Give every account what ``count`` transactions of all may take, and tokens; returns the token with its gas.

    ``settled`` is the block at which it must be seen.
    """
    connection = RpcConnection(url, timeout_s=30.0)
    funder = Account(DEV_ACCOUNTS[FUNDER].private_key)
    share = 4 * count // len(source.accounts) + 64
    try:
        first = await _read_nonce(connection, funder, "pending")
        drafts = _draft_payments(funder, first, source, token, share * (MOST_GAS * MAX_FEE + 1_000))
        signed = Signer(source.shard).sign(drafts)
        for start in range(0, len(signed), BATCH):
            raws = ["0x" + raw.hex() for raw, _ in signed[start : start + BATCH]]
            for answer in await connection.send_raw(raws):
                if answer.error is not None:
                    raise DevnetError(f"funding was refused: {answer.error.message}")

        async def is_paid() -> bool:
            return await _read_nonce(connection, funder, settled) >= first + len(drafts)

        await wait_for("the funding", is_paid)
        if token is None:
            return None
        call = {
            "from": "0x" + source.accounts[0].address.hex(),
            "to": "0x" + token.address.hex(),
            "data": "0x" + source.encode_pay(source.accounts[-1].address, 1).hex(),
        }
        return Token(token.address, int(await connection.request("eth_estimateGas", call), 16) + MARGIN_GAS)
    finally:
        connection.close()


async def _read_nonce(connection: RpcConnection, account: Account, block: str) -> int:
    return int(await connection.request("eth_getTransactionCount", "0x" + account.address.hex(), block), 16)


def _draft_payments(
    funder: Account, first: int, source: ShardSource, token: Token | None, amount: int
) -> Sequence[Draft]:
    drafts = [
        Draft(funder, first + index, account.address, amount, TRANSFER_GAS, MAX_FEE, TIP)
        for index, account in enumerate(source.accounts)
    ]
    if token is not None:
        first += len(drafts)
        for index, account in enumerate(source.accounts):
            data = source.encode_pay(account.address, TOKENS_EACH)
            drafts.append(Draft(funder, first + index, token.address, 0, DEAL_GAS, MAX_FEE, TIP, data))
    return drafts
