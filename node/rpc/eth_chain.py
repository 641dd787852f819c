"""Methods about the node and its chain: versions, heads, fees."""

import platform
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from node.index.records import DELIVERY_TYPE, IndexedBlock
from node.refusal import ParamError, build_server_error
from node.rpc.api import CallContext, build_missing_history
from node.rpc.formats import Json, data, describe_progress, quantity
from node.rpc.methods import MethodTable, Param
from node.rpc.params import BlockId, read_block_number, read_count, read_data, shorten
from shardyard import _native

TABLE = MethodTable()

DEFAULT_TIP: Final = 1_000_000
"""Suggested while nobody pays a tip, wei per gas; what geth's oracle starts from."""
LEAST_TIP: Final = 2
"""Less is no tip, as in geth's oracle: who paid none says nothing of what others pay."""
TIP_BLOCKS: Final = 20
TIP_PERCENTILE: Final = 60
MAX_TIP_SAMPLES: Final = 4096
MAX_FEE_HISTORY: Final = 1024
SHORT_FEE_HISTORY: Final = 32
"""Blocks that wallets look at before they send: these need not wait for searches."""
MAX_PERCENTILES: Final = 100
BLOB_BASE_FEE: Final = "0x1"
"""EIP-4844's least; there are no blobs here that could raise it (P1)."""


@cache
def get_client_version() -> str:
    """Return the name of this software as ``web3_clientVersion`` gives it."""
    try:
        number = version("shardyard")
    except PackageNotFoundError:
        number = "0"
    return f"Shardyard/v{number}/{platform.system().lower()}-{platform.machine()}/python{platform.python_version()}"


@TABLE.method("web3_clientVersion")
def client_version(_: CallContext) -> str:
    return get_client_version()


@TABLE.method("web3_sha3", Param(read_data))
def sha3(_: CallContext, value: bytes) -> str:
    return data(_native.keccak256(value))


@TABLE.method("net_version")
def net_version(call: CallContext) -> str:
    return str(call.api.backend.chain_id)


@TABLE.method("net_listening")
def net_listening(_: CallContext) -> bool:
    return True


@TABLE.method("net_peerCount")
def peer_count(call: CallContext) -> str:
    return quantity(call.api.backend.get_peer_count())


@TABLE.method("eth_chainId")
def chain_id(call: CallContext) -> str:
    return quantity(call.api.backend.chain_id)


@TABLE.method("eth_syncing")
def syncing(call: CallContext) -> Json | bool:
    return describe_progress(call.api.backend)


@TABLE.method("eth_blockNumber")
def block_number(call: CallContext) -> str:
    return quantity(call.api.backend.latest.height)


@TABLE.method("eth_accounts")
def accounts(_: CallContext) -> list[str]:
    return []  # keys live in wallets; the node holds none


def compute_suggested_tip(call: CallContext) -> int:
    """Return the tip that 60 % of recent transactions with one stayed below, wei per gas."""
    backend = call.api.backend
    samples: list[int] = []
    height: int = backend.latest.height
    for number in range(height, max(-1, height - TIP_BLOCKS), -1):
        block = backend.index.get_block(number)
        if block is None or len(samples) >= MAX_TIP_SAMPLES:
            break
        samples.extend(tip for tip, _ in _list_tips(block)[:MAX_TIP_SAMPLES] if tip >= LEAST_TIP)
    samples.sort()
    return samples[(len(samples) - 1) * TIP_PERCENTILE // 100] if samples else DEFAULT_TIP


def _list_tips(block: IndexedBlock) -> list[tuple[int, int]]:
    """Return (tip, gas used) of every user transaction."""
    base_fee = block.content.base_fee
    return [
        (max(0, outcome.effective_gas_price - base_fee), outcome.gas_used)
        for outcome in block.outcomes
        if outcome.type != DELIVERY_TYPE
    ]


@TABLE.method("eth_gasPrice")
async def gas_price(call: CallContext) -> str:
    backend = call.api.backend
    tip = await backend.read(lambda: compute_suggested_tip(call))
    return quantity(backend.compute_next_base_fee(backend.latest.header) + tip)


@TABLE.method("eth_maxPriorityFeePerGas")
async def max_priority_fee(call: CallContext) -> str:
    return quantity(await call.api.backend.read(lambda: compute_suggested_tip(call)))


@TABLE.method("eth_blobBaseFee")
def blob_base_fee(_: CallContext) -> str:
    return BLOB_BASE_FEE


def read_percentiles(value: Any) -> tuple[float, ...]:
    """Return reward percentiles: ascending numbers from 0 to 100."""
    if not isinstance(value, list) or len(value) > MAX_PERCENTILES:
        raise ParamError(f"expected a list of at most {MAX_PERCENTILES} percentiles")
    previous = 0.0
    for item in value:
        if not isinstance(item, int | float) or isinstance(item, bool) or not 0 <= item <= 100:
            raise ParamError(f"invalid reward percentile: {shorten(item)}")
        if item < previous:
            raise ParamError(f"invalid reward percentile: {item} after {previous}")
        previous = item
    return tuple(value)


@TABLE.method("eth_feeHistory", Param(read_count), Param(read_block_number), Param(read_percentiles, ()))
async def fee_history(call: CallContext, count: int, newest: BlockId, percentiles: Sequence[float]) -> Json:
    api = call.api
    last = api.backend.latest.height if newest.tag == "pending" else api.resolve_height(newest)
    if last is None:
        raise build_server_error("request beyond head block")
    if count == 0:
        return {"oldestBlock": "0x0", "gasUsedRatio": []}
    oldest = api.backend.index.first_height
    first = max(0 if oldest == 1 else oldest, last - min(count, MAX_FEE_HISTORY) + 1)
    if first > last:
        raise build_missing_history(oldest)

    def build(should_stop: Callable[[], bool]) -> Json:
        return _build_fee_history(call, first, last, percentiles, should_stop)

    if last - first < SHORT_FEE_HISTORY:
        return await api.backend.read(lambda: build(lambda: False))
    return await api.scan(build)


def _build_fee_history(
    call: CallContext, first: int, last: int, percentiles: Sequence[float], should_stop: Callable[[], bool]
) -> Json:
    backend = call.api.backend
    base_fees, ratios, rewards = [], [], []
    block: IndexedBlock | None = None
    for height in range(first, last + 1):
        block = None if should_stop() else backend.index.get_block(height)
        if block is None:
            raise build_server_error("request beyond head block")
        content = block.content
        base_fees.append(quantity(content.base_fee))
        ratios.append(content.gas_used / content.gas_limit)
        if percentiles:
            rewards.append([quantity(tip) for tip in _compute_rewards(block, percentiles)])
    assert block is not None, "the range holds at least one block"
    base_fees.append(quantity(backend.compute_next_base_fee(block.header)))
    found: Json = {
        "oldestBlock": quantity(first),
        "baseFeePerGas": base_fees,
        "gasUsedRatio": ratios,
        "baseFeePerBlobGas": [BLOB_BASE_FEE] * len(base_fees),
        "blobGasUsedRatio": [0.0] * len(ratios),
    }
    return found | ({"reward": rewards} if percentiles else {})


def _compute_rewards(block: IndexedBlock, percentiles: Sequence[float]) -> list[int]:
    """Return the tips at ``percentiles`` of the gas that user transactions used."""
    tips = sorted(_list_tips(block))
    if not tips:
        return [0] * len(percentiles)
    total = sum(gas for _, gas in tips)
    rewards, position, gas_before = [], 0, tips[0][1]
    for percentile in percentiles:
        while gas_before < total * percentile / 100 and position < len(tips) - 1:
            position += 1
            gas_before += tips[position][1]
        rewards.append(tips[position][0])
    return rewards
