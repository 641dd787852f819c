"""Parameters: execution-apis' forms and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.refusal import ParamError
from node.rpc import params

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
READERS = [
    params.read_quantity,
    params.read_u64,
    params.read_count,
    params.read_data,
    params.read_address,
    params.read_hash,
    params.read_storage_key,
    params.read_bool,
    params.read_block_number,
    params.read_block,
    params.read_call,
    params.read_log_query,
]


@given(ANYTHING)
def test_every_reader_returns_or_raises_its_one_error(value):
    for read in READERS:
        try:
            read(value)
        except ParamError:
            continue


@given(st.integers(0, 2**256 - 1))
def test_a_quantity_is_the_shortest_hex(number):
    assert params.read_quantity(hex(number)) == number
    with pytest.raises(ParamError):
        params.read_quantity(f"0x0{number:x}")


@pytest.mark.parametrize(
    "text", ["", "0x", "1", "0X1", "0x00", "0x01", "0xg", "0x-1", "0x 1", "0x1\n", "0x" + "f" * 65]
)
def test_other_forms_of_a_quantity_are_refused(text):
    with pytest.raises(ParamError):
        params.read_quantity(text)


@given(st.binary(max_size=64))
def test_data_is_hex_of_whole_bytes(data):
    assert params.read_data("0x" + data.hex()) == data
    with pytest.raises(ParamError):
        params.read_data(f"0x{data.hex()}0")


def test_data_is_measured_before_it_is_decoded():
    with pytest.raises(ParamError, match="at most"):
        params.read_data("0x" + "00" * 33, max_bytes=32)


@pytest.mark.parametrize("size", [19, 21, 32])
def test_an_address_has_twenty_bytes(size):
    with pytest.raises(ParamError, match="want 40"):
        params.read_address("0x" + "11" * size)


def test_blocks_are_named_by_tag_number_hash_or_object():
    block_hash = bytes(range(32))
    text = "0x" + block_hash.hex()
    assert params.read_block("finalized") == params.BlockId(tag="finalized")
    assert params.read_block("0x10") == params.BlockId(number=16)
    assert params.read_block(text) == params.BlockId(hash=block_hash)
    assert params.read_block({"blockHash": text, "requireCanonical": True}) == params.BlockId(hash=block_hash)
    assert params.read_block({"blockNumber": "0x0"}) == params.BlockId(number=0)
    assert params.read_block({"blockNumber": "latest"}) == params.BlockId(tag="latest")


@pytest.mark.parametrize(
    "value",
    [
        "newest",
        "LATEST",
        16,
        {},
        {"blockNumber": "0x1", "blockHash": "0x" + "00" * 32},
        {"number": "0x1"},
        {"blockHash": "0x" + "00" * 32, "requireCanonical": "yes"},
        "0x" + "00" * 31,
        "0x10000000000000000",
    ],
)
def test_other_names_of_blocks_are_refused(value):
    with pytest.raises(ParamError):
        params.read_block(value)


def test_null_stands_for_what_is_not_given():
    block = {"blockNumber": "0x1", "blockHash": None, "requireCanonical": None, "more": 1}
    assert params.read_block(block) == params.BlockId(number=1)
    call = params.read_call({"accessList": [{"address": "0x" + "11" * 20, "storageKeys": None}]})
    assert call.access_list == ((bytes.fromhex("11" * 20), ()),)


@pytest.mark.parametrize(("value", "number"), [(4, 4), ("4", 4), ("0x4", 4), ("10", 10)])
def test_counts_come_as_numbers_quantities_or_digits(value, number):
    assert params.read_count(value) == number


@pytest.mark.parametrize("value", [2**64, -1, "18446744073709551616", pytest.param(10**5000, id="huge")])
def test_counts_out_of_range_are_refused_without_repeating_them(value):
    with pytest.raises(ParamError) as caught:
        params.read_count(value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "value",
    [
        {"gasPrice": "0x1", "maxFeePerGas": "0x1"},
        {"maxFeePerGas": "0x1", "maxPriorityFeePerGas": "0x2"},
        {"data": "0x01", "input": "0x02"},
        {"blobVersionedHashes": ["0x" + "01" * 32]},
        {"gas": "0x10000000000000000"},
        {"value": "0x1" + "0" * 64},
        {"accessList": [{"address": "0x"}]},
        "0x",
    ],
)
def test_calls_that_contradict_themselves_are_refused(value):
    with pytest.raises(ParamError):
        params.read_call(value)


def test_data_and_input_may_both_be_given_when_they_agree():
    assert params.read_call({"data": "0x01", "input": "0x01"}).data == b"\x01"


def test_an_empty_list_of_topics_matches_anything_and_so_does_null():
    topic = "0x" + "22" * 32
    query = params.read_log_query({"topics": [None, [], topic, [topic]]})
    assert query.topics == (None, None, (bytes([0x22]) * 32,), (bytes([0x22]) * 32,))


@pytest.mark.parametrize(
    "value",
    [
        {"blockHash": "0x" + "00" * 32, "fromBlock": "0x1"},
        {"topics": [None] * 5},
        {"address": ["0x" + "00" * 20] * 1001},
        {"address": "0x"},
        [],
    ],
)
def test_log_filters_out_of_bounds_are_refused(value):
    with pytest.raises(ParamError):
        params.read_log_query(value)
