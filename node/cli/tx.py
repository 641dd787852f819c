"""``tx``: send transactions, also across shards, and wait for what one wants to know of them.

A wait that runs out is not a loss: the hash is printed, the exit code is 5, and ``tx wait`` goes on from there. A shard that
is silent meanwhile is asked again: its process may be on its way back.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, TypeVar

import rich_click as click

from node.cli.journey import Journey, trace_journey
from node.cli.output import network_option, print_json, print_table, say
from node.cli.root import (
    EXIT_INTERRUPTED,
    EXIT_NOT_RUNNING,
    EXIT_REJECTED,
    EXIT_TIMEOUT,
    EXIT_USAGE,
    CliError,
    NamingGroup,
)
from node.cli.session import RpcClient, RpcError, Session, SilentError
from node.cli.wallet import (
    GATEWAY_HEX,
    encode_gateway_message,
    encode_gateway_transfer,
    parse_data,
    resolve_account,
    resolve_address,
    sign_transaction,
)
from node.network import parse_wei
from shardyard import _native

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

DEFAULT_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.05

Stage = Literal["sent", "included", "final", "cross"]
UINT64: Final = click.IntRange(0, 2**64 - 1)


class Seconds(click.ParamType[float]):
    """A time to wait, in seconds, that comes to an end."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds; raises ``click.BadParameter`` for what is no finite number, or below 0."""
        del param, ctx
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not 0 <= found < math.inf:
            raise click.BadParameter(
                f"got {value!r}, expected a number of seconds, 0 or more, for example 30"
            )
        return found


def timeout_option(function: F) -> F:
    """Add ``--timeout``."""
    return click.option(
        "--timeout",
        "timeout_s",
        type=Seconds(),
        default=DEFAULT_TIMEOUT_S,
        show_default=True,
        help="Seconds to wait.",
    )(function)


class Patience:
    """How long a command waits, over all that it waits for."""

    def __init__(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._until = time.monotonic() + timeout_s

    @property
    def is_over(self) -> bool:
        """Whether it waited long enough."""
        return time.monotonic() > self._until


def send_raw(client: RpcClient, raw: bytes) -> str:
    """Return the hash of a signed transaction, sent; the node's words become the error.

    Where the answer to a first attempt was lost, "already known" says that it had arrived.
    """
    try:
        tx_hash: str = client.request("eth_sendRawTransaction", "0x" + raw.hex())
    except RpcError as error:
        if not client.was_repeated or error.words != "already known":
            raise
        tx_hash = "0x" + _native.keccak256(raw).hex()
    return tx_hash


@contextmanager
def naming_sent(sent: Sequence[tuple[int, str]]) -> Iterator[None]:
    """Name what was ``sent`` already, by shard and hash, in an error that ends a command between two shards."""
    try:
        yield
    except CliError as error:
        if not sent:
            raise
        told = ", ".join(f"{tx_hash} on shard {shard}" for shard, tx_hash in sent)
        raise CliError(f"after {told} was sent, which is not lost: {error}", error.exit_code) from error


@contextmanager
def _naming_interrupted(session: Session, tx_hash: str) -> Iterator[None]:
    """Name what was sent when a person ends a wait for it: the same command again would send another one."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise CliError(
            f"interrupted: {tx_hash} was sent before, and is not lost; try: shardyard tx wait {tx_hash}{session.name_flag}",
            EXIT_INTERRUPTED,
        ) from error


def _wait(
    session: Session,
    tx_hash: str,
    patience: Patience,
    ask: Callable[[], R | None],
    get_words: Callable[[], str],
) -> R:
    """Return what ``ask`` finds, once it finds something; raises ``CliError``, with exit code 5 when that takes too long."""
    with _naming_interrupted(session, tx_hash):
        session.limit_requests(patience.timeout_s)
        while True:
            try:
                if (found := ask()) is not None:
                    return found
            except SilentError as error:
                session.forget_client(error.shard)
            except CliError as error:
                if error.exit_code != EXIT_NOT_RUNNING:
                    raise
                raise CliError(
                    f"{tx_hash} was sent before, and is not lost: {error}", EXIT_NOT_RUNNING
                ) from error
            if patience.is_over:
                raise CliError(get_words(), EXIT_TIMEOUT)
            time.sleep(POLL_S)


def wait_for_receipt(session: Session, shard: int, tx_hash: str, patience: Patience) -> dict[str, Any]:
    """Return the receipt once the transaction is in a final block; raises ``CliError`` with exit code 5."""

    def ask() -> dict[str, Any] | None:
        found: dict[str, Any] | None = session.get_client(shard).request("eth_getTransactionReceipt", tx_hash)
        return found

    return _wait(
        session,
        tx_hash,
        patience,
        ask,
        lambda: (
            f"transaction {tx_hash} was not in a block after {patience.timeout_s:g} s; it is not lost; "
            f"try: shardyard tx wait {tx_hash}{session.name_flag}"
        ),
    )


def wait_until_final(session: Session, shard: int, height: int, tx_hash: str, patience: Patience) -> None:
    """Return once block ``height`` is beacon-final; raises ``CliError`` with exit code 5."""

    def ask() -> bool | None:
        return True if session.get_client(shard).get_final_height() >= height else None

    _wait(
        session,
        tx_hash,
        patience,
        ask,
        lambda: (
            f"block {height} with {tx_hash} is final on its shard but not on the beacon after {patience.timeout_s:g} s; "
            f"try: shardyard tx wait --final {tx_hash}{session.name_flag}"
        ),
    )


def wait_for_journey(session: Session, shard: int, tx_hash: str, patience: Patience) -> Journey:
    """Return the journey of a transaction once all its messages are done; raises ``CliError`` with exit code 5."""
    open_ids: list[str] = []

    def ask() -> Journey | None:
        journey = trace_journey(session, shard, tx_hash)
        open_ids[:] = [hop.id for hop in journey.hops if not hop.is_done]
        return journey if journey.is_done else None

    return _wait(
        session,
        tx_hash,
        patience,
        ask,
        lambda: (
            f"messages {', '.join(open_ids) or 'of ' + tx_hash} are still on their way after {patience.timeout_s:g} s; "
            f"they are not lost; try: shardyard tx wait --cross {tx_hash}{session.name_flag}"
        ),
    )


def send_and_report(
    session: Session,
    shard: int,
    raw: bytes,
    *,
    wait: Stage,
    as_json: bool,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    warning: str = "",
) -> int:
    """Send, wait for ``wait`` and print what came of it; returns the exit code. ``warning`` is told once it was taken."""
    started = time.monotonic()
    tx_hash = send_raw(session.get_client(shard), raw)
    if not as_json:
        click.echo(tx_hash)
    if warning:
        say(warning)
    if wait == "sent":
        if as_json:
            print_json({"transaction": tx_hash, "shard": shard})
        return 0
    patience = Patience(timeout_s)
    return _report(session, shard, tx_hash, wait=wait, as_json=as_json, patience=patience, started=started)


def _report(
    session: Session,
    shard: int,
    tx_hash: str,
    *,
    wait: Stage,
    as_json: bool,
    patience: Patience,
    started: float,
) -> int:
    def tell(text: str) -> None:
        if not as_json:
            say(text)

    def elapsed() -> str:
        return f"after {time.monotonic() - started:.1f} s"

    receipt = wait_for_receipt(session, shard, tx_hash, patience)
    height = int(receipt["blockNumber"], 16)
    is_ok = receipt["status"] == "0x1"
    document: dict[str, Any] = {"transaction": tx_hash, "shard": shard, "receipt": receipt}
    word = "succeeded" if is_ok else "reverted"
    tell(f"{word} in block {height} of shard {shard} {elapsed()}, {int(receipt['gasUsed'], 16):,} gas")
    if is_ok and wait == "cross":
        journey = wait_for_journey(session, shard, tx_hash, patience)
        document["hops"] = journey.to_json()
        for hop in journey.hops:
            tell(f"  {hop.describe()}")
        is_ok = journey.is_successful
        tell(
            f"all messages done and beacon-final {elapsed()}"
            + ("" if is_ok else ", but one failed and bounced")
        )
    elif wait == "final":
        wait_until_final(session, shard, height, tx_hash, patience)
        tell(f"beacon-final {elapsed()}")
    if as_json:
        print_json(document)
    if not is_ok:
        tell(f"try: shardyard explain {tx_hash}{session.name_flag}")
    return 0 if is_ok else EXIT_REJECTED


def describe_gap(client: RpcClient, address: str, nonce: int | None) -> str:
    """Return words about the numbers that ``nonce`` leaves out: the transaction waits for those before it; empty for none."""
    if nonce is None:
        return ""
    expected = int(client.request("eth_getTransactionCount", address, "pending"), 16)
    if nonce <= expected:
        return ""
    return (
        f"nonce gap: got {nonce}, the next is {expected}; this one waits until {expected}..{nonce - 1} are sent\n"
        "try: without --nonce, which takes the next free one"
    )


@click.group(cls=NamingGroup)
def tx() -> None:
    """Send transactions, also across shards, and follow them."""


def _choose_stage(*, wait: bool, final: bool, cross: bool) -> Stage:
    if cross:
        return "cross"
    if final:
        return "final"
    return "included" if wait else "sent"


@tx.command()
@click.option(
    "--from", "sender", default="0", show_default=True, help="Development account number or address."
)
@click.option("--to", required=True, help="Address, or development account number.")
@click.option("--value", default="0", show_default=True, help="Amount, for example 1ether.")
@click.option("--data", default="0x", help="Call data.")
@click.option("--gas", type=UINT64, default=None, help="Gas limit; estimated unless given.")
@click.option("--nonce", type=UINT64, default=None, help="Nonce; the next one unless given.")
@click.option("--shard", default=0, show_default=True, help="Shard to send it on.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it is in a final block.")
@click.option("--final", is_flag=True, help="Wait until it is beacon-final.")
@timeout_option
@network_option
def send(
    *,
    sender: str,
    to: str,
    value: str,
    data: str,
    gas: int | None,
    nonce: int | None,
    shard: int,
    wait: bool,
    final: bool,
    timeout_s: float,
    name: str,
    as_json: bool,
) -> int:
    """Send ether or call data on one shard."""
    session = Session(name)
    client, account = session.get_client(shard), resolve_account(session, sender)
    warning = describe_gap(client, account[0], nonce)
    raw = sign_transaction(
        client,
        shard=shard,
        sender=account,
        to=resolve_address(to),
        value=parse_wei(value),
        data=parse_data(data),
        gas=gas,
        nonce=nonce,
    )
    stage = _choose_stage(wait=wait, final=final, cross=False)
    return send_and_report(
        session, shard, raw, wait=stage, as_json=as_json, timeout_s=timeout_s, warning=warning
    )


@tx.command()
@click.option(
    "--from", "sender", default="0", show_default=True, help="Development account number or address."
)
@click.option("--src", default=0, show_default=True, help="Shard it starts from.")
@click.option("--dst", required=True, type=int, help="Shard it goes to.")
@click.option(
    "--to", default=None, help="Address or development account number; the sender's own unless given."
)
@click.option("--value", default="0", show_default=True, help="Amount that arrives, for example 1ether.")
@click.option(
    "--payload",
    default=None,
    help="Call data for receiveMessage of the contract --to; else a plain transfer.",
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until every message is done.")
@timeout_option
@network_option
def xsend(
    *,
    sender: str,
    src: int,
    dst: int,
    to: str | None,
    value: str,
    payload: str | None,
    wait: bool,
    timeout_s: float,
    name: str,
    as_json: bool,
) -> int:
    """Send ether or a message from one shard to another, by way of the gateway contract."""
    session = Session(name)
    client = session.get_client(src)
    session.get_client(dst)
    if src == dst:
        raise CliError(
            f"xsend: --src and --dst are both {src}; try: shardyard tx send --shard {src}", EXIT_USAGE
        )
    account = resolve_account(session, sender)
    target = resolve_address(to) if to is not None else account[0]
    amount = parse_wei(value)
    if payload is None:
        data = encode_gateway_transfer(dst, target)
    else:
        data = encode_gateway_message(dst, target, parse_data(payload))
        amount += _quote_message(client, dst)
    raw = sign_transaction(client, shard=src, sender=account, to=GATEWAY_HEX, value=amount, data=data)
    stage: Stage = "cross" if wait else "sent"
    return send_and_report(session, src, raw, wait=stage, as_json=as_json, timeout_s=timeout_s)


def _quote_message(client: RpcClient, dst: int) -> int:
    """Return the wei that a message with the gateway's default gas holds in escrow."""
    from node.cli.wallet import encode_call

    data = encode_call(
        "quote", ("uint256", "uint256", "uint256"), (dst, DEFAULT_MESSAGE_GAS, DEFAULT_REPLY_GAS)
    )
    return int(client.request("eth_call", {"to": GATEWAY_HEX, "data": "0x" + data.hex()}, "latest"), 16)


DEFAULT_MESSAGE_GAS: Final = 200_000
DEFAULT_REPLY_GAS: Final = 100_000
"""What the gateway grants a message whose attributes name no gas (contracts/gateway.vy)."""


def find_shard(session: Session, tx_hash: str, patience: Patience | None = None) -> int:
    """Return the shard that knows ``tx_hash``; raises ``CliError``.

    While none does, a silent one may: it is waited for with ``patience``, and told of at once without.
    """
    if not tx_hash.startswith("0x") or len(tx_hash) != 66:
        raise CliError(
            f"transaction: got {tx_hash!r}, expected 0x and 64 hexadecimal digits; try: shardyard tx send",
            EXIT_USAGE,
        )
    while True:
        silent: list[SilentError] = []
        for shard in range(session.shard_count):
            try:
                if session.get_client(shard).request("eth_getTransactionByHash", tx_hash) is not None:
                    return shard
            except SilentError as error:
                session.forget_client(shard)
                silent.append(error)
        if not silent:
            raise CliError(f"no shard knows transaction {tx_hash}; try: shardyard status{session.name_flag}")
        if patience is None:
            raise silent[0]
        if patience.is_over:
            raise CliError(
                f"shard {silent[0].shard} did not answer within {patience.timeout_s:g} s, and no other shard knows transaction "
                f"{tx_hash}; if it was answered, it is not lost; try: shardyard tx wait {tx_hash}{session.name_flag}",
                EXIT_TIMEOUT,
            )
        time.sleep(POLL_S)


@tx.command()
@click.argument("tx_hash")
@network_option
def status(*, tx_hash: str, name: str, as_json: bool) -> int:
    """Show where a transaction and its messages stand."""
    session = Session(name)
    shard = find_shard(session, tx_hash)
    client = session.get_client(shard)
    receipt = client.request("eth_getTransactionReceipt", tx_hash)
    if receipt is None:
        if as_json:
            print_json({"transaction": tx_hash, "shard": shard, "stage": "pending"})
        else:
            click.echo(f"pending on shard {shard}")
        return 0
    height = int(receipt["blockNumber"], 16)
    stage = "beacon-final" if height <= client.get_final_height() else "final"
    journey = trace_journey(session, shard, tx_hash)
    if as_json:
        print_json(
            {
                "transaction": tx_hash,
                "shard": shard,
                "stage": stage,
                "receipt": receipt,
                "hops": journey.to_json(),
            }
        )
        return 0
    word = "succeeded" if receipt["status"] == "0x1" else "reverted"
    click.echo(f"{word} in block {height} of shard {shard}, {stage}")
    if journey.hops:
        print_table(("Message", "Kind", "From", "To", "Stage"), [hop.to_row() for hop in journey.hops])
    return 0


@tx.command("wait")
@click.argument("tx_hash")
@click.option("--cross", is_flag=True, help="Wait until every message it caused is done.")
@click.option("--final", is_flag=True, help="Wait until it is beacon-final.")
@timeout_option
@network_option
def wait_(*, tx_hash: str, cross: bool, final: bool, timeout_s: float, name: str, as_json: bool) -> int:
    """Wait for a transaction."""
    session = Session(name)
    session.limit_requests(timeout_s)
    started, patience = time.monotonic(), Patience(timeout_s)
    shard = find_shard(session, tx_hash, patience)
    stage = _choose_stage(wait=True, final=final, cross=cross)
    return _report(session, shard, tx_hash, wait=stage, as_json=as_json, patience=patience, started=started)
