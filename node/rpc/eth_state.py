"""Methods that read state: balances, nonces, code, storage, calls and gas estimates.

A revert answers code 3 with its data and, when it is ``Error(string)`` or ``Panic(uint256)``, the reason in geth's words.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from node.addresses import to_checksum
from node.refusal import EXECUTION_REVERTED, NOT_SUPPORTED, RpcError, build_server_error
from node.rpc.api import CallContext, StateView, build_missing_state
from node.rpc.formats import data, quantity
from node.rpc.methods import MethodTable, Param
from node.rpc.params import (
    LATEST,
    U256_MAX,
    BlockId,
    CallRequest,
    read_address,
    read_block,
    read_call,
    read_storage_key,
)
from node.rpc.pending import build_env, build_next_header
from shardyard import _native
from shardyard.ids import ZERO_ADDRESS, Address

TABLE = MethodTable()

CALL_GAS_CAP: Final = 50_000_000
"""Gas of a call or an estimate, geth's default."""
TRANSFER_GAS: Final = 21_000
"""The least that any transaction takes."""

BLOCK = Param(read_block, LATEST)

_ERROR_SELECTOR: Final = bytes.fromhex("08c379a0")
_PANIC_SELECTOR: Final = bytes.fromhex("4e487b71")
_PANIC_WORDS: Final = {
    0x00: "generic panic",
    0x01: "assert(false)",
    0x11: "arithmetic underflow or overflow",
    0x12: "division or modulo by zero",
    0x21: "enum overflow",
    0x22: "invalid encoded storage byte array accessed",
    0x31: "out-of-bounds array access; popping on an empty array",
    0x32: "out-of-bounds access of an array or bytesN",
    0x41: "out of memory",
    0x51: "uninitialized function",
}


@TABLE.method("eth_getBalance", Param(read_address), BLOCK)
def get_balance(call: CallContext, address: Address, block: BlockId) -> str:
    view = call.api.get_state(block)
    found = call.api.read_state(view, lambda: call.api.core.account(view.at, address))
    return quantity(int.from_bytes(found[1], "big")) if found else "0x0"


@TABLE.method("eth_getTransactionCount", Param(read_address), BLOCK)
def get_transaction_count(call: CallContext, address: Address, block: BlockId) -> str:
    if block.tag == "pending":
        return quantity(call.api.backend.get_pending_nonce(address))
    view = call.api.get_state(block)
    found = call.api.read_state(view, lambda: call.api.core.account(view.at, address))
    return quantity(found[0]) if found else "0x0"


@TABLE.method("eth_getCode", Param(read_address), BLOCK)
def get_code(call: CallContext, address: Address, block: BlockId) -> str:
    view = call.api.get_state(block)
    return data(call.api.read_state(view, lambda: call.api.core.code(view.at, address)))


@TABLE.method("eth_getStorageAt", Param(read_address), Param(read_storage_key), BLOCK)
def get_storage_at(call: CallContext, address: Address, key: bytes, block: BlockId) -> str:
    view = call.api.get_state(block)
    return data(call.api.read_state(view, lambda: call.api.core.storage(view.at, address, key)))


def refuse_proofs(_: Any) -> None:
    """Refuse every argument of ``eth_getProof``: the reason is the same for all."""
    raise RpcError(
        NOT_SUPPORTED,
        "eth_getProof is not supported: state is committed to by LtHash, not by a Merkle Patricia trie, "
        "so there are no account or storage proofs",
    )


@TABLE.method("eth_getProof", Param(refuse_proofs), Param(refuse_proofs), Param(refuse_proofs, None))
def get_proof(*_: object) -> None:
    refuse_proofs(None)


def _encode_call(request: CallRequest, gas: int, price: int) -> bytes:
    """Return the call as the native core takes it, with gas and wei per gas as they were settled."""
    fields: dict[str, Any] = {
        "from": request.sender or ZERO_ADDRESS,
        "to": request.to,
        "gas": gas,
        "gasPrice": price,
        "value": request.value.to_bytes(32, "big"),
        "input": request.data,
    }
    if request.access_list is not None:
        fields["accessList"] = request.access_list
    if request.authorization_list is not None:
        fields["authorizationList"] = request.authorization_list
    return msgspec.msgpack.encode(fields)


def _settle_price(request: CallRequest, base_fee: int) -> int:
    """Return the wei per gas of a call: 0, and then no base fee is asked for, unless the request names fees."""
    if request.gas_price is not None:
        price = request.gas_price
    elif request.max_fee is not None or request.max_tip is not None:
        tip = request.max_tip or 0
        price = tip + base_fee if request.max_fee is None else min(request.max_fee, tip + base_fee)
    else:
        return 0
    if price and price < base_fee:
        raise build_server_error(
            f"max fee per gas less than block base fee: address {data(request.sender or ZERO_ADDRESS)}, "
            f"maxFeePerGas: {price}, baseFee: {base_fee}"
        )
    if price >= 1 << 64:
        raise build_server_error("max fee per gas higher than 2^64-1")
    return price


def _require_funds(request: CallRequest, max_fee: int, balance: int, gas: int) -> int:
    """Return ``gas``; raises ``RpcError`` when ``balance`` does not cover it at ``max_fee``, which a sender has to own."""
    want = request.value + gas * max_fee
    if want > balance:
        sender = to_checksum(request.sender or ZERO_ADDRESS)
        lack = f"have {balance} want {want}" if want <= U256_MAX else "required balance exceeds 256 bits"
        raise build_server_error(f"insufficient funds for gas * price + value: address {sender} {lack}")
    return gas


def _limit_to_funds(request: CallRequest, max_fee: int, balance: int, gas: int) -> int:
    """Return what of ``gas`` a sender with ``balance`` can pay at ``max_fee``; raises ``RpcError`` when that is none."""
    if request.value > balance:
        raise build_server_error("insufficient funds for transfer")
    # As in geth, a limit that no transaction can have stands for none.
    most = gas if gas >= TRANSFER_GAS else CALL_GAS_CAP
    affordable = (balance - request.value) // max_fee
    if affordable < TRANSFER_GAS:
        raise build_server_error(f"gas required exceeds allowance ({affordable})")
    return min(most, affordable)


async def _execute(
    call: CallContext,
    request: CallRequest,
    block: BlockId,
    run: Callable[[bytes, _native.BlockEnv, bytes], _native.CallResult],
    settle_gas: Callable[[CallRequest, int, int, int], int],
) -> _native.CallResult:
    api = call.api
    have, want = request.chain_id, api.backend.chain_id
    if have not in {None, want}:
        # Each shard is a chain of its own: what was meant for another would get an answer that looks right.
        raise build_server_error(f"chainId does not match node's (have={have}, want={want})")
    view: StateView = api.get_state(block)
    header = build_next_header(api.backend, view.header) if view.is_pending else view.header
    price = _settle_price(request, header.shard_content.base_fee)
    gas = min(request.gas, CALL_GAS_CAP) if request.gas else CALL_GAS_CAP
    if request.max_fee:
        # The core knows the price alone, which is lower where the base fee is: with that, a wallet would sign what is refused.
        sender = request.sender or ZERO_ADDRESS
        found = api.read_state(view, lambda: api.core.account(view.at, sender))
        balance = int.from_bytes(found[1], "big") if found else 0
        gas = settle_gas(request, request.max_fee, balance, gas)
    encoded = _encode_call(request, gas, price)
    env = build_env(header, api.backend.genesis.preset.inbox_gas)
    try:
        result = await api.backend.read(lambda: run(view.at, env, encoded))
    except _native.MissingState:
        raise build_missing_state(view) from None
    except _native.CoreError as error:
        raise build_server_error(str(error)) from error
    if result.status == "revert":
        raise build_revert(result.output)
    if result.status == "halt":
        raise build_server_error(result.halt_reason or "execution halted")
    return result


def read_no_overrides(value: Any) -> None:
    """Take overrides that override nothing, as libraries send them along; refuse all others."""
    if value != {}:
        raise RpcError(
            NOT_SUPPORTED,
            "overrides of state and block are not supported: send the changes as transactions, or call at another block",
        )


OVERRIDES: Final = (Param(read_no_overrides, None), Param(read_no_overrides, None))


@TABLE.method("eth_call", Param(read_call), BLOCK, *OVERRIDES)
async def eth_call(call: CallContext, request: CallRequest, block: BlockId, *_: None) -> str:
    result = await _execute(call, request, block, call.api.core.call, _require_funds)
    return data(result.output)


@TABLE.method("eth_estimateGas", Param(read_call), BLOCK, *OVERRIDES)
async def estimate_gas(call: CallContext, request: CallRequest, block: BlockId, *_: None) -> str:
    result = await _execute(call, request, block, call.api.core.estimate_gas, _limit_to_funds)
    return quantity(result.gas)


def build_revert(output: bytes) -> RpcError:
    """Return geth's error for reverted execution."""
    reason = decode_revert_reason(output)
    message = "execution reverted" if reason is None else f"execution reverted: {reason}"
    return RpcError(EXECUTION_REVERTED, message, data(output))


def decode_revert_reason(output: bytes) -> str | None:
    """Return the text of ``Error(string)`` or the meaning of ``Panic(uint256)``, None for anything else."""
    selector, arguments = output[:4], output[4:]
    if selector == _PANIC_SELECTOR and len(arguments) >= 32:
        code = int.from_bytes(arguments[:32], "big")
        return _PANIC_WORDS.get(code, f"unknown panic code: {code:#x}")
    if selector != _ERROR_SELECTOR or len(arguments) < 64:
        return None
    start = int.from_bytes(arguments[:32], "big")
    if start + 32 > len(arguments):
        return None
    length = int.from_bytes(arguments[start : start + 32], "big")
    text = arguments[start + 32 : start + 32 + length]
    return text.decode("utf-8", "replace") if len(text) == length else None
