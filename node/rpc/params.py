"""Parameters of JSON-RPC methods: strict readers from JSON values to bytes, integers and requests.

Forms are those of execution-apis: a *quantity* is the shortest hex number (``0x0``, never ``0x00``), *data* is hex of whole
bytes. Every reader raises ``ParamError`` with geth's wording; the method table turns it into error -32602 with the
position of the argument.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, get_args

import msgspec

from node.refusal import ParamError
from shardyard.ids import Address, Hash32

MAX_DATA_BYTES: Final = 1024 * 1024
"""Largest ``data`` of a call; transactions have a lower cap of their own."""
MAX_TOPICS: Final = 4
MAX_TOPIC_ALTERNATIVES: Final = 1000
MAX_FILTER_ADDRESSES: Final = 1000
MAX_FOLLOWED: Final = 512
"""Addresses and topics that a filter or subscription, which stays, may name in all."""
MAX_ECHOED: Final = 64
"""Characters of a client's value that an error repeats."""
MAX_ACCESS_LIST: Final = 4096
MAX_AUTHORIZATIONS: Final = 1024

U64_MAX: Final = 2**64 - 1
U256_MAX: Final = 2**256 - 1

_QUANTITY = re.compile(r"0x(0|[1-9a-fA-F][0-9a-fA-F]*)\Z")
_DECIMAL = re.compile(r"[0-9]{1,20}\Z")
_DATA = re.compile(r"0x[0-9a-fA-F]*\Z")

BlockTag = Literal["latest", "safe", "finalized", "pending", "earliest"]
TAGS: Final[tuple[BlockTag, ...]] = get_args(BlockTag)


class BlockId(msgspec.Struct, frozen=True):
    """Which block is meant: exactly one of the three is set (EIP-1898)."""

    tag: BlockTag | None = None
    number: int | None = None
    hash: Hash32 | None = None


LATEST: Final = BlockId(tag="latest")


class CallRequest(msgspec.Struct, frozen=True):
    """A call object, read and checked; fees in wei per gas, None when not given."""

    sender: Address | None
    to: Address | None
    gas: int | None
    gas_price: int | None
    max_fee: int | None
    max_tip: int | None
    value: int
    data: bytes
    access_list: tuple[tuple[Address, tuple[Hash32, ...]], ...] | None
    authorization_list: tuple["Authorization", ...] | None = None
    chain_id: int | None = None
    """The chain that is meant, None when it is not said."""


class Authorization(msgspec.Struct, frozen=True, array_like=True):
    """An account's signed wish to run the code at ``address`` (EIP-7702); 256-bit numbers as 32 bytes."""

    chain_id: bytes
    address: Address
    nonce: int
    y_parity: int
    r: bytes
    s: bytes


class LogQuery(msgspec.Struct, frozen=True):
    """A log filter: ``block_hash`` excludes the range; empty ``addresses`` and None topics match all."""

    from_block: BlockId
    to_block: BlockId
    block_hash: Hash32 | None
    addresses: tuple[Address, ...]
    topics: tuple[tuple[Hash32, ...] | None, ...]


def shorten(value: Any) -> str:
    """Return a client's value as an error may repeat it."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    text = str(value)
    return text if len(text) <= MAX_ECHOED else f"{text[:MAX_ECHOED]}…"


def read_quantity(value: Any, *, limit: int = U256_MAX) -> int:
    """Return the number a hex quantity stands for."""
    if not isinstance(value, str):
        raise ParamError(f"json: cannot unmarshal {_describe(value)} into a hex quantity")
    if not value.startswith("0x"):
        raise ParamError("hex string without 0x prefix")
    if value == "0x":
        raise ParamError('hex string "0x"')
    if not _QUANTITY.match(value):
        leading = len(value) > 3 and value[2] == "0"
        raise ParamError("hex number with leading zero digits" if leading else "invalid hex string")
    if len(value) > 66 or (number := int(value, 16)) > limit:
        raise ParamError(f"hex number > {limit.bit_length()} bits")
    return number


def read_u64(value: Any) -> int:
    """Return a quantity of at most 64 bits."""
    return read_quantity(value, limit=U64_MAX)


def read_count(value: Any) -> int:
    """Return a small number given as a quantity or, as some clients do, as a JSON integer or in decimal digits."""
    if isinstance(value, str) and _DECIMAL.match(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value <= U64_MAX:
            raise ParamError(f"got {shorten(value)}, expected a number below 2^64")
        return value
    return read_u64(value)


def read_data(value: Any, *, max_bytes: int = MAX_DATA_BYTES) -> bytes:
    """Return the bytes of hex data."""
    if not isinstance(value, str):
        raise ParamError(f"json: cannot unmarshal {_describe(value)} into hex data")
    if not value.startswith("0x"):
        raise ParamError("hex string without 0x prefix")
    if len(value) > 2 + 2 * max_bytes:
        raise ParamError(f"hex string has length {len(value) - 2}, want at most {2 * max_bytes}")
    if len(value) % 2:
        raise ParamError("hex string of odd length")
    if not _DATA.match(value):
        raise ParamError("invalid hex string")
    return bytes.fromhex(value[2:])


def _read_fixed(value: Any, size: int, kind: str) -> bytes:
    if isinstance(value, str) and value.startswith("0x") and len(value) != 2 + 2 * size:
        raise ParamError(f"hex string has length {len(value) - 2}, want {2 * size} for {kind}")
    return read_data(value, max_bytes=size)


def read_address(value: Any) -> Address:
    """Return the 20 bytes of an address."""
    return Address(_read_fixed(value, 20, "Address"))


def read_hash(value: Any) -> Hash32:
    """Return the 32 bytes of a hash."""
    return Hash32(_read_fixed(value, 32, "Hash"))


def read_storage_key(value: Any) -> bytes:
    """Return a storage slot, given as 32 bytes or shorter hex, left-padded."""
    if not isinstance(value, str) or not value.startswith("0x"):
        raise ParamError("hex string without 0x prefix")
    digits = value[2:]
    if len(digits) > 64:
        raise ParamError(f"storage key too long (want at most 32 bytes): got {len(digits)} hex digits")
    if not re.fullmatch(r"[0-9a-fA-F]*", digits):
        raise ParamError("unable to decode storage key: invalid hex string")
    return bytes.fromhex(digits.rjust(64, "0"))


def read_bool(value: Any) -> bool:
    """Return a JSON boolean."""
    if not isinstance(value, bool):
        raise ParamError(f"json: cannot unmarshal {_describe(value)} into bool")
    return value


def read_block_number(value: Any) -> BlockId:
    """Return the block a tag or number means."""
    if isinstance(value, str):
        if (tag := next((tag for tag in TAGS if tag == value), None)) is not None:
            return BlockId(tag=tag)
        if not value.startswith("0x"):
            raise ParamError(f"hex string without 0x prefix: expected a number or one of {', '.join(TAGS)}")
    return BlockId(number=read_u64(value))


def read_block(value: Any) -> BlockId:
    """Return the block that a tag, a number, a hash or an EIP-1898 object means.

    ``requireCanonical`` is accepted and always holds: only final blocks and the tip above them are ever served.
    """
    if isinstance(value, dict):
        return _read_block_object(value)
    if isinstance(value, str) and value.startswith("0x") and len(value) == 66:
        return BlockId(hash=read_hash(value))
    return read_block_number(value)


def _read_block_object(value: Mapping[str, Any]) -> BlockId:
    _get(value, "requireCanonical", read_bool)
    number, block_hash = value.get("blockNumber"), value.get("blockHash")
    if number is not None and block_hash is not None:
        raise ParamError("cannot specify both BlockHash and BlockNumber, choose one or the other")
    if block_hash is not None:
        return BlockId(hash=read_hash(block_hash))
    if number is None:
        raise ParamError("block object: expected blockNumber or blockHash")
    return read_block_number(number)


_Reader = Callable[[Any], Any]


def _get(value: Mapping[str, Any], key: str, read: _Reader) -> Any:
    found = value.get(key)
    if found is None:
        return None
    try:
        return read(found)
    except ParamError as error:
        raise ParamError(f"{key}: {error}") from error


def read_call(value: Any) -> CallRequest:
    """Return the call that a transaction object describes; fields that do not matter to a call are passed over."""
    if not isinstance(value, dict):
        raise ParamError(f"json: cannot unmarshal {_describe(value)} into a transaction object")
    data, payload = _get(value, "data", read_data), _get(value, "input", read_data)
    if data is not None and payload is not None and data != payload:
        raise ParamError(
            'both "data" and "input" are set and not equal. Please use "input" to pass transaction call data'
        )
    if value.get("blobVersionedHashes"):
        raise ParamError("transaction type not supported")
    authorizations = _get(value, "authorizationList", _read_authorizations)
    if authorizations is not None and value.get("to") is None:
        raise ParamError("EIP-7702 transaction cannot be used to create contract")
    gas_price = _get(value, "gasPrice", read_quantity)
    max_fee = _get(value, "maxFeePerGas", read_quantity)
    max_tip = _get(value, "maxPriorityFeePerGas", read_quantity)
    if gas_price is not None and (max_fee is not None or max_tip is not None):
        raise ParamError("both gasPrice and (maxFeePerGas or maxPriorityFeePerGas) specified")
    if max_fee is not None and max_tip is not None and max_fee < max_tip:
        raise ParamError(f"maxFeePerGas ({max_fee}) < maxPriorityFeePerGas ({max_tip})")
    return CallRequest(
        sender=_get(value, "from", read_address),
        to=_get(value, "to", read_address),
        gas=_get(value, "gas", read_u64),
        gas_price=gas_price,
        max_fee=max_fee,
        max_tip=max_tip,
        value=_get(value, "value", read_quantity) or 0,
        data=(payload if payload is not None else data) or b"",
        access_list=_get(value, "accessList", _read_access_list),
        authorization_list=authorizations,
        chain_id=_get(value, "chainId", read_quantity),
    )


def _read_access_list(value: Any) -> tuple[tuple[Address, tuple[Hash32, ...]], ...]:
    if not isinstance(value, list) or len(value) > MAX_ACCESS_LIST:
        raise ParamError(f"expected a list of at most {MAX_ACCESS_LIST} entries")
    entries = []
    for item in value:
        keys = (item.get("storageKeys") or []) if isinstance(item, dict) else None
        if not isinstance(keys, list):
            raise ParamError("expected objects with address and storageKeys")
        if len(keys) > MAX_ACCESS_LIST:
            raise ParamError(f"expected at most {MAX_ACCESS_LIST} storageKeys")
        entries.append((read_address(item.get("address")), tuple(read_hash(key) for key in keys)))
    return tuple(entries)


def _read_authorizations(value: Any) -> tuple[Authorization, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_AUTHORIZATIONS:
        raise ParamError(f"expected a list of 1 to {MAX_AUTHORIZATIONS} authorizations")
    return tuple(_read_authorization(item) for item in value)


def _read_authorization(value: Any) -> Authorization:
    if not isinstance(value, dict):
        raise ParamError("expected objects with chainId, address, nonce, yParity, r and s")

    def word(key: str) -> bytes:
        return bytes(_require(value, key, read_quantity).to_bytes(32, "big"))

    chain_id = word("chainId")
    if not any(chain_id):
        # P1: sent, it would be refused as well.
        raise ParamError(
            "chainId 0 is for every chain and would replay on all: sign the authorization for one chain"
        )
    parity = "yParity" if value.get("yParity") is not None else "v"
    return Authorization(
        chain_id=chain_id,
        address=_require(value, "address", read_address),
        nonce=_require(value, "nonce", read_u64),
        y_parity=_require(value, parity, lambda given: read_quantity(given, limit=255)),
        r=word("r"),
        s=word("s"),
    )


def _require(value: Mapping[str, Any], key: str, read: _Reader) -> Any:
    if (found := _get(value, key, read)) is None:
        raise ParamError(f"missing {key!r}")
    return found


def read_log_query(value: Any) -> LogQuery:
    """Return the log filter that a filter object describes."""
    if not isinstance(value, dict):
        raise ParamError(f"json: cannot unmarshal {_describe(value)} into a filter object")
    block_hash = _get(value, "blockHash", read_hash)
    from_block = _get(value, "fromBlock", read_block_number)
    to_block = _get(value, "toBlock", read_block_number)
    if block_hash is not None and (from_block is not None or to_block is not None):
        raise ParamError("cannot specify both BlockHash and FromBlock/ToBlock, choose one or the other")
    return LogQuery(
        from_block=from_block or LATEST,
        to_block=to_block or LATEST,
        block_hash=block_hash,
        addresses=_get(value, "address", _read_addresses) or (),
        topics=_get(value, "topics", _read_topics) or (),
    )


def read_followed_query(value: Any) -> LogQuery:
    """Return the log filter of a filter or subscription that stays: it may name fewer alternatives."""
    query = read_log_query(value)
    count = len(query.addresses) + sum(len(topic) for topic in query.topics if topic)
    if count > MAX_FOLLOWED:
        raise ParamError(f"exceed max addresses and topics: got {count}, expected at most {MAX_FOLLOWED}")
    first, last = query.from_block.number, query.to_block.number
    if first is not None and last is not None and first > last:
        raise ParamError("invalid block range params")
    return query


def _read_addresses(value: Any) -> tuple[Address, ...]:
    if isinstance(value, list):
        if len(value) > MAX_FILTER_ADDRESSES:
            raise ParamError("exceed max addresses")
        return tuple(read_address(item) for item in value)
    return (read_address(value),)


def _read_topics(value: Any) -> tuple[tuple[Hash32, ...] | None, ...]:
    if not isinstance(value, list):
        raise ParamError("invalid topics: expected a list")
    if len(value) > MAX_TOPICS:
        raise ParamError("exceed max topics")
    return tuple(_read_topic(item) for item in value)


def _read_topic(value: Any) -> tuple[Hash32, ...] | None:
    if value is None:
        return None
    if isinstance(value, list):
        if len(value) > MAX_TOPIC_ALTERNATIVES:
            raise ParamError("exceed max topics")
        if None in value:
            return None
        return tuple(read_hash(item) for item in value) or None
    return (read_hash(value),)


def _describe(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "bool"
        case str():
            return "string"
        case int() | float():
            return "number"
        case list():
            return "array"
        case _:
            return "object"
