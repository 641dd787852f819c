"""What commands list of shards that are scripted: messages with what became of them, blocks as they come, advice by name."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from node.cli import accounts, block, contract, nodes, shard
from node.cli.root import EXIT_USAGE, CliError, run
from node.cli.session import SilentError

Answer = Callable[..., Any]


class ScriptedClient:
    """A shard that answers each method with what a function says."""

    name = "mine"

    def __init__(self, number: int, answers: dict[str, Answer]) -> None:
        self.shard = number
        self.answers = answers

    def request(self, method: str, *params: Any) -> Any:
        return self.answers[method](self.shard, *params)


class ScriptedSession:
    """A network called ``mine`` of scripted shards."""

    shard_count = 3
    name_flag = " --name mine"
    answers: dict[str, Answer]

    def __init__(self, *_: object) -> None:
        pass

    def get_client(self, number: int) -> ScriptedClient:
        if number >= self.shard_count:
            raise CliError(f"shard: got {number}, expected 0..2; try: shardyard shard list", EXIT_USAGE)
        return ScriptedClient(number, self.answers)

    def parse_shards(self, text: str) -> list[int]:
        assert text == "all"
        return list(range(self.shard_count))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    monkeypatch.setattr(ScriptedSession, "answers", found, raising=False)
    for module in (accounts, block, contract, shard):
        monkeypatch.setattr(module, "Session", ScriptedSession)
    return found


def build_message(number: int, src: int, dst: int, *, is_executed: bool) -> dict[str, Any]:
    return {
        "id": f"0x{number:064x}",
        "kind": "TRANSFER",
        "src": src,
        "dst": dst,
        "seq": number,
        "value": "0x1",
        "emitted": {"timestampMs": number},
        "delivered": {"blockNumber": number} if is_executed else None,
    }


@pytest.fixture
def messages(answers: dict[str, Answer]) -> None:
    """Shard 0 sent 1 and 2 to shard 2, which executed 1, and then many more that shard 1 sent."""
    sent = [build_message(1, 0, 2, is_executed=True), build_message(2, 0, 2, is_executed=False)]
    sent += [build_message(number, 1, 2, is_executed=True) for number in range(3, 30)]

    def get_messages(number: int, query: dict[str, Any]) -> list[dict[str, Any]]:
        if query["direction"] == "out":
            found = [item | {"delivered": None} for item in sent if item["src"] == number]
        else:
            found = [item for item in sent if item["dst"] == number and item["delivered"]]
        return found[::-1][: min(query["limit"], 20)]

    def get_message(number: int, message: str) -> dict[str, Any] | None:
        return next((item for item in sent if (item["id"], item["dst"]) == (message, number)), None)

    answers |= {"shard_getMessages": get_messages, "shard_getMessage": get_message}


@pytest.mark.usefixtures("messages")
def test_message_is_executed_when_its_destination_says_so_however_many_came_after_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["shard", "messages", "--src", "0"]) == 0
    rows = [(row[0], row[-2:]) for row in map(str.split, capsys.readouterr().out.splitlines()[1:])]
    assert rows == [(f"0x{2:064x}", ["not", "yet"]), (f"0x{1:064x}", ["0.000000000000000001", "yes"])]


@pytest.mark.usefixtures("messages")
def test_stuck_messages_are_those_that_their_destination_has_not_executed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["shard", "messages", "--stuck", "--json"]) == 0
    assert [item["seq"] for item in json.loads(capsys.readouterr().out)["items"]] == [2]


@pytest.mark.usefixtures("messages")
def test_that_nothing_is_stuck_is_not_told_as_nothing_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["shard", "messages", "--stuck", "--src", "1"]) == 0
    assert capsys.readouterr().err == "no message is stuck\n"


@pytest.mark.usefixtures("messages")
@pytest.mark.parametrize("option", ["--src", "--dst"])
def test_messages_of_a_shard_that_is_not_there_are_usage(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["shard", "messages", option, "7"]) == 2
    assert "expected 0..2" in capsys.readouterr().err


def build_block(number: int, height: str, _: bool) -> dict[str, Any]:
    return {"number": height, "hash": f"{number}/{int(height, 16)}", "transactions": [], "gasUsed": "0x0"}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_watching_blocks_ends_after_as_many_as_were_asked_for(
    answers: dict[str, Answer],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    heads = iter(range(1000))
    monkeypatch.setattr(block, "POLL_S", 0)
    answers |= {"eth_blockNumber": lambda _: hex(next(heads)), "eth_getBlockByNumber": build_block}
    assert run(["block", "watch", "--count", str(count)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == count


def test_block_told_before_a_process_started_again_is_not_told_once_more(
    answers: dict[str, Answer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block, "POLL_S", 0)
    monkeypatch.setattr(ScriptedSession, "shard_count", 1)
    heads = iter([5, 7, 6, 7, 8])
    answers |= {"eth_blockNumber": lambda _: hex(next(heads)), "eth_getBlockByNumber": build_block}
    assert run(["block", "watch", "--count", "3"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["0/6", "0/7", "0/8"]


def test_watching_blocks_goes_on_while_a_shard_is_silent_and_ends_with_its_network(
    answers: dict[str, Answer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[int] = []
    silent = SilentError(0, "shard 0 does not answer")
    heads = iter([5, 6, silent, 6, 8, CliError("network 'mine' is not running", 3)])

    def tell_head(_: int) -> str:
        found = next(heads)
        if isinstance(found, CliError):
            raise found
        return hex(found)

    monkeypatch.setattr(block, "POLL_S", 0)
    monkeypatch.setattr(ScriptedSession, "shard_count", 1)
    monkeypatch.setattr(
        ScriptedSession, "forget_client", lambda _, shard: forgotten.append(shard), raising=False
    )
    answers |= {"eth_blockNumber": tell_head, "eth_getBlockByNumber": build_block}
    assert run(["block", "watch"]) == 3
    told = capsys.readouterr()
    assert [line.split()[-1] for line in told.out.splitlines()] == ["0/6", "0/7", "0/8"]
    assert "is not running" in told.err
    assert forgotten == [0]


@pytest.mark.parametrize(
    "words", [["faucet", "1"], ["contract", "deploy", "counter"]], ids=lambda words: str(words[0])
)
def test_what_was_sent_is_named_when_a_later_shard_takes_nothing(
    answers: dict[str, Answer], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    def refuse_at(silent: int) -> Answer:
        def answer(shard: int, *_: Any) -> str:
            if shard == silent:
                raise SilentError(
                    shard, f"shard {shard} does not answer; try: shardyard node list --name mine"
                )
            return f"0x{shard:064x}"

        return answer

    answers |= {
        "eth_getTransactionCount": lambda *_: "0x2",
        "eth_getCode": lambda *_: "0x",
        "eth_estimateGas": lambda *_: "0x5208",
        "eth_maxPriorityFeePerGas": lambda *_: "0x1",
        "eth_getBlockByNumber": lambda *_: {"baseFeePerGas": "0x1"},
        "eth_sendRawTransaction": refuse_at(2),
    }
    assert run([*words, "--shard", "all"]) == 3
    told = capsys.readouterr().err
    sent = f"0x{0:064x} on shard 0, 0x{1:064x} on shard 1"
    assert told.startswith(f"error: after {sent} was sent, which is not lost: shard 2 does not answer\ntry: ")
    answers["eth_sendRawTransaction"] = refuse_at(0)
    assert run([*words, "--shard", "all"]) == 3
    assert capsys.readouterr().err.startswith("error: shard 0 does not answer\ntry: ")


def test_advice_names_network_and_shard(
    answers: dict[str, Answer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers |= {"eth_getBlockByNumber": lambda *_: None, "shard_getMessages": lambda *_: []}
    assert run(["block", "show", "9", "--shard", "2"]) == 1
    assert "try: shardyard block latest --shard 2 --name mine\n" in capsys.readouterr().err
    assert run(["shard", "messages"]) == 0
    assert capsys.readouterr().err.endswith("--value 1ether --name mine\n")
    monkeypatch.setattr(nodes, "Session", ScriptedSession)
    monkeypatch.setattr(nodes, "verify_known", lambda *_: None)
    monkeypatch.setattr(ScriptedSession, "ask_launcher", lambda *_, **__: {}, raising=False)
    assert run(["node", "stop", "shard-0-0"]) == 0
    assert "until `shardyard node start shard-0-0 --name mine`\n" in capsys.readouterr().err
    monkeypatch.setattr(accounts, "store_user_key", lambda *_: "0x12")
    assert run(["accounts", "new"]) == 0
    assert capsys.readouterr().err.endswith("faucet 0x12 10ether --name mine\n")


@pytest.mark.parametrize(
    ("quiet", "words"),
    [
        ({2}, "error: shard 2 does not answer\n"),
        ({0, 2}, "error: shards 0, 2 do not answer; their processes are stopped, starting or stuck\n"),
    ],
)
@pytest.mark.parametrize("command", [["list"], ["show", "1"]], ids=lambda words: str(words[0]))
def test_accounts_show_what_shards_tell_though_one_is_silent(
    answers: dict[str, Answer],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    quiet: set[int],
    words: str,
    command: list[str],
) -> None:
    asked: list[int] = []

    def tell(number: int, *_: Any) -> str:
        asked.append(number)
        if number in quiet:
            raise SilentError(number, f"shard {number} does not answer; try: shardyard node list --name mine")
        return hex(7 * 10**18)

    monkeypatch.setattr(ScriptedSession, "is_running", lambda _: True, raising=False)
    monkeypatch.setattr(accounts, "list_user_keys", lambda _: {})
    answers |= {"eth_getBalance": tell, "eth_getTransactionCount": lambda *_: "0x3"}
    assert run(["accounts", *command]) == 3
    told = capsys.readouterr()
    shown = {number: "-" if number in quiet else "7" for number in range(3)}
    if command == ["list"]:
        assert told.out.splitlines()[-1].split()[-3:] == list(shown.values())
    else:
        assert [line.split()[1] for line in told.out.splitlines()[2:]] == list(shown.values())
    assert told.err.endswith(words + "try: shardyard node list --name mine\n")
    assert all(asked.count(number) == 1 for number in quiet)
    assert run(["accounts", *command, "--json"]) == 3
    told = capsys.readouterr()
    assert json.loads(told.err)["error"]["try"] == "shardyard node list --name mine"
    found = json.loads(told.out)
    kept = (
        found["accounts"][0]["balances"]
        if command == ["list"]
        else [shard["ether"] for shard in found["shards"]]
    )
    assert [number for number, balance in enumerate(kept) if balance is None] == sorted(quiet)


@pytest.mark.parametrize("key", ["00" * 32, "ff" * 32, "12", "zz" * 32])
def test_number_that_is_no_private_key_is_usage(
    answers: dict[str, Answer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(key + "\n"))
    assert run(["accounts", "import"]) == 2
    assert key not in capsys.readouterr().err
