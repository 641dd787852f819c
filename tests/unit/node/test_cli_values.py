"""What a person types for amounts, addresses, accounts, arguments and contracts; and what is said of mistakes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.artifacts import load_artifact
from node.cli.contract import (
    decode_results,
    encode_arguments,
    format_value,
    load_contract,
    parse_signature,
    parse_value,
    verify_results,
)
from node.cli.network import parse_duration_ms
from node.cli.output import flatten, format_ether, print_table
from node.cli.remedies import get_remedy
from node.cli.root import CliError, get_exit_code
from node.cli.wallet import (
    encode_call,
    encode_interop_address,
    list_user_keys,
    parse_address,
    parse_data,
    resolve_account,
    resolve_address,
    store_user_key,
)
from node.dev_accounts import DEV_ACCOUNTS
from shardyard.errors import ConfigError
from shardyard.ids import compute_chain_id

ALICE = DEV_ACCOUNTS[0].checksum_address


@pytest.mark.parametrize(
    ("wei", "text"),
    [
        (0, "0"),
        (1, "0.000000000000000001"),
        (10**18, "1"),
        (15 * 10**17, "1.5"),
        (-(10**17), "-0.1"),
        (10**22, "10000"),
    ],
)
def test_ether_is_shown_exactly(wei: int, text: str) -> None:
    assert format_ether(wei) == text


def test_tables_have_no_words_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("Field", "Value"), [("hash", None), ("syncing", False), ("connected", True), ("peers", 0)])
    rows = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert rows == {"Field": "Value", "hash": "-", "syncing": "false", "connected": "true", "peers": "0"}


@pytest.mark.parametrize(("text", "milliseconds"), [("1s", 1000), ("250ms", 250), ("2", 2000), ("0.5s", 500)])
def test_durations(text: str, milliseconds: int) -> None:
    assert parse_duration_ms(text) == milliseconds


def test_address_gets_its_checksum() -> None:
    assert parse_address(ALICE.lower()) == ALICE
    assert parse_address(ALICE[2:].upper()) == ALICE


@pytest.mark.parametrize("text", ["0x12", "0x" + "zz" * 20, "", "0x" + "00" * 21])
def test_text_that_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(CliError, match="expected 0x and 40 hexadecimal digits; try: shardyard accounts"):
        parse_address(text)


def test_address_with_a_typing_error_is_refused_by_its_checksum() -> None:
    with pytest.raises(CliError, match=f"wrong checksum, expected {ALICE}"):
        parse_address(ALICE.replace("F", "f", 1))


def test_account_number_stands_for_its_address() -> None:
    assert resolve_address("0") == ALICE
    with pytest.raises(CliError, match=r"got 10, expected 0\.\.9"):
        resolve_address("10")


def test_data_must_be_hexadecimal() -> None:
    assert parse_data("0x00ff") == b"\x00\xff"
    with pytest.raises(CliError, match="expected 0x and hexadecimal digits"):
        parse_data("0xabc")


def test_interoperable_address_names_chain_and_account() -> None:
    encoded = encode_interop_address(2, ALICE)
    chain = compute_chain_id(2).to_bytes(2, "big")
    assert encoded == b"\x00\x01\x00\x00\x02" + chain + b"\x14" + bytes.fromhex(ALICE[2:])


def test_stored_key_is_private_and_found_by_its_address(tmp_path: Path) -> None:
    session: Any = SimpleNamespace(root=tmp_path, name_flag=" --name mine")
    address = store_user_key(session, b"\x07" * 32)
    path = list_user_keys(session)[address]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert resolve_account(session, address) == (address, b"\x07" * 32)
    with pytest.raises(CliError, match=r"stored already; try: shardyard accounts --name mine$"):
        store_user_key(session, b"\x07" * 32)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ("", "0 characters that are none"),
        ("zz" * 32, "64 characters that are none"),
        ("\udcff", "1 characters that are none"),
        ("00" * 32, "64 characters that are none"),
        ("07" * 31, "62 characters that are none"),
        ("08" * 32, "the one of 0x"),
    ],
)
def test_damaged_key_of_a_user_is_named_with_what_to_try(tmp_path: Path, content: str, got: str) -> None:
    session: Any = SimpleNamespace(root=tmp_path, name_flag=" --name mine")
    address = store_user_key(session, b"\x07" * 32)
    path = list_user_keys(session)[address]
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(
        CliError, match="try: move the file away, then shardyard accounts import --name mine"
    ) as raised:
        resolve_account(session, address)
    told = str(raised.value)
    assert told.startswith(f"{path}: got {got}")
    assert f"expected the private key of {address} as 64 hexadecimal digits" in told
    assert not content or content not in told


def test_account_without_a_key_here_is_refused(tmp_path: Path) -> None:
    session: Any = SimpleNamespace(root=tmp_path, name_flag=" --name mine")
    with pytest.raises(CliError, match=r"no key of .* here; try: --from 0 .* accounts import --name mine$"):
        resolve_account(session, "0x" + "11" * 20)


def test_signature_has_name_arguments_and_results() -> None:
    assert parse_signature("balanceOf(address)(uint256)") == ("balanceOf", ("address",), ("uint256",))
    assert parse_signature("increment()") == ("increment", (), ())
    with pytest.raises(CliError, match="expected for example"):
        parse_signature("balanceOf")


@pytest.mark.parametrize(
    ("short", "canonical"),
    [
        ("transfer(address,uint)", "transfer(address,uint256)"),
        ("f(int, uint[], int[3][])(uint)", "f(int256,uint256[],int256[3][])(uint256)"),
        ("f(uint8,int16[2])", "f(uint8,int16[2])"),
    ],
)
def test_selector_is_that_of_the_canonical_types(short: str, canonical: str) -> None:
    found = parse_signature(short)
    assert found == parse_signature(canonical)
    assert ",".join(found[1]) in canonical


def test_transfer_by_its_short_type_is_the_transfer_of_every_token() -> None:
    name, types, _ = parse_signature("transfer(address,uint)")
    assert encode_call(name, types, (ALICE, 1))[:4].hex() == "a9059cbb"


@pytest.mark.parametrize(
    ("signature", "arguments"),
    [
        ("f(uint8)", ["300"]),
        ("f(uint8)", ["-1"]),
        ("f(bytes4)", ["0x1122334455"]),
        ("f(uint256[])", ["5"]),
        ("f(uint256[])", ["[" * 10_000]),
        ("f(uint8[2])", ["[1]"]),
        ("f(uint7)", ["1"]),
        ("f(bytes99)", ["0x11"]),
        ("f(uint256)", ["9" * 5000]),
    ],
)
def test_value_that_its_type_cannot_hold_is_usage(signature: str, arguments: list[str]) -> None:
    name, types, _ = parse_signature(signature)
    with pytest.raises((CliError, ConfigError)) as raised:
        encode_call(name, types, encode_arguments(types, tuple(arguments), name))
    assert get_exit_code(raised.value) == 2
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("kind", ["foo", "uint7", "uint256[", "", "address payable"])
def test_result_of_an_unknown_type_is_refused_before_the_call(kind: str) -> None:
    with pytest.raises(CliError, match="result: got type"):
        verify_results(("uint256", kind))


@pytest.mark.parametrize(
    ("kind", "output"), [("uint256", b""), ("string", b"\xff" * 64), ("uint8", b"\xff" * 32)]
)
def test_answer_that_is_no_such_value_is_told(kind: str, output: bytes) -> None:
    verify_results((kind,))
    with pytest.raises(CliError, match="try: another result type"):
        decode_results((kind,), output)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("uint256", "5", 5),
        ("uint256", "0x10", 16),
        ("uint256", "1ether", 10**18),
        ("int256", "-3", -3),
        ("bool", "True", True),
        ("bytes", "0x1234", b"\x12\x34"),
        ("string", "hello", "hello"),
        ("address", ALICE.lower(), ALICE),
        ("uint8[]", "[1, 2]", [1, 2]),
        ("string[2]", '["a", "b"]', ["a", "b"]),
    ],
)
def test_arguments_are_read_by_their_type(kind: str, text: str, value: object) -> None:
    assert parse_value(kind, text) == value


@pytest.mark.parametrize(
    ("kind", "text"), [("bool", "maybe"), ("bytes", "0xabc"), ("uint8[]", "1,2"), ("(uint8,bool)", "x")]
)
def test_argument_of_the_wrong_form_is_refused(kind: str, text: str) -> None:
    with pytest.raises(CliError):
        parse_value(kind, text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        (b"\x01", "0x01"),
        ((b"\x01", b""), "[0x01, 0x]"),
        ([("a", 1), (b"\xff",)], "[[a, 1], [0xff]]"),
        ([True, False], "[true, false]"),
    ],
)
def test_result_is_printed_as_an_argument_is_given(value: object, text: str) -> None:
    assert format_value(value) == text


def test_number_of_arguments_is_checked() -> None:
    with pytest.raises(CliError, match=r"transfer: got 1 arguments, expected 2 \(address, uint256\)"):
        encode_arguments(("address", "uint256"), (ALICE,), "transfer")


def test_contract_is_an_example_an_artifact_or_hexadecimal_code(tmp_path: Path) -> None:
    counter = load_artifact("counter")
    assert load_contract("counter")[0] == counter.init_code
    code = "0x" + counter.init_code.hex()
    for number, document in enumerate(
        [
            {"bytecode": code, "abi": []},
            {"bytecode": {"object": code}, "abi": []},
            {"evm": {"bytecode": {"object": code[2:]}}, "abi": []},
        ]
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(document))
        assert load_contract(str(path)) == (counter.init_code, [])
    (tmp_path / "code.hex").write_text(code + "\n")
    assert load_contract(str(tmp_path / "code.hex"))[0] == counter.init_code


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "{}",
        '{"bytecode": "0xzz"}',
        '{"bytecode": "__$lib$__"}',
        "[]",
        '{"bytecode": null}',
        '{"bytecode": 7}',
        '{"bytecode": "0x00", "abi": null}',
    ],
)
def test_artifact_without_linked_code_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(CliError) as raised:
        load_contract(str(path))
    assert raised.value.exit_code == 2


def test_unknown_contract_lists_the_known_ones() -> None:
    with pytest.raises(CliError, match="expected a file or one of counter, erc20"):
        load_contract("nosuch")


@pytest.mark.parametrize(
    ("overshot", "remedy"),
    [
        (1, "shardyard faucet 0x12 100ether --shard 2 --name mine"),
        (250 * 10**18 + 1, "shardyard faucet 0x12 251ether --shard 2 --name mine"),
        (10**24, "a smaller amount, or another sender; 0x12 lacks 1000000 ether"),
    ],
)
def test_faucet_line_gives_what_is_missing(overshot: int, remedy: str) -> None:
    words = f"insufficient funds for gas * price + value: balance 5, tx cost 9, overshot {overshot}"
    assert get_remedy(words, name="mine", shard=2, sender="0x12") == remedy


def test_remedies_follow_the_words_of_the_node() -> None:
    words = "insufficient funds for gas * price + value: balance 1, tx cost 2"
    assert (
        get_remedy(words, name="four", shard=2, sender=ALICE)
        == f"shardyard faucet {ALICE} 100ether --shard 2 --name four"
    )
    assert "--nonce" in get_remedy("nonce too low: next nonce 3, tx nonce 1", name="dev", shard=0)
    assert get_remedy("something else", name="dev", shard=0) == "shardyard status"


def test_nested_answers_become_rows() -> None:
    assert flatten({"a": 1, "b": {"c": 2, "d": {"e": 3}}}) == [("a", 1), ("b.c", 2), ("b.d.e", 3)]
