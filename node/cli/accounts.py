"""``accounts`` and ``faucet``: who has ether here."""

import secrets
import sys
from collections.abc import Callable
from typing import TypeVar

import rich_click as click

from node.cli.output import format_ether, network_option, print_json, print_table, say
from node.cli.root import EXIT_NOT_RUNNING, EXIT_REJECTED, EXIT_USAGE, CliError, NamingGroup
from node.cli.session import RpcClient, Session, SilentError
from node.cli.tx import Patience, naming_sent, send_raw, wait_for_receipt
from node.cli.wallet import list_user_keys, resolve_account, resolve_address, sign_transaction, store_user_key
from node.dev_accounts import DEV_ACCOUNTS, MNEMONIC
from node.network import parse_wei

FAUCET_ACCOUNT = "9"
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Of secp256k1: private keys are below it."""

T = TypeVar("T")


@click.group(cls=NamingGroup, invoke_without_command=True)
@network_option
@click.pass_context
def accounts(ctx: click.Context, *, name: str, as_json: bool) -> int:
    """List the funded development accounts, or make a new key."""
    if ctx.invoked_subcommand is not None:
        # `accounts --name x list` means what `accounts list --name x` does.
        ctx.default_map = {ctx.invoked_subcommand: {"name": name, "as_json": as_json}}
        return 0
    return _list(name, as_json=as_json)


@accounts.command("list")
@network_option
def list_accounts(*, name: str, as_json: bool) -> int:
    """List development accounts and own keys, with balances on every shard when the network runs."""
    return _list(name, as_json=as_json)


def _list(name: str, *, as_json: bool) -> int:
    session = Session(name)
    running = session.is_running()
    shards = range(session.shard_count if running else 0)
    known = [
        (str(index), account.checksum_address, "0x" + account.private_key.hex())
        for index, account in enumerate(DEV_ACCOUNTS)
    ]
    known += [("-", address, "(key file)") for address in list_user_keys(session)]
    told, silent = _ask_shards(
        session, shards, lambda client: [_read_balance(client, address) for _, address, _ in known]
    )
    found = [
        (*entry, [None if (answer := told[shard]) is None else answer[row] for shard in shards])
        for row, entry in enumerate(known)
    ]
    if as_json:
        listed = [
            {
                "number": number,
                "address": address,
                "private_key": key,
                "balances": [None if balance is None else str(balance) for balance in balances],
            }
            for number, address, key, balances in found
        ]
        print_json({"mnemonic": MNEMONIC, "accounts": listed})
        _refuse_silence(session, silent)
        return 0
    say(f"public development keys of {MNEMONIC!r}: never send real value to them")
    print_table(
        ("#", "Address", "Private key", *(f"Shard {shard} (ether)" for shard in shards)),
        [(number, address, key, *map(_format_ether, balances)) for number, address, key, balances in found],
    )
    if not running:
        say(f"the network is not running, so no balances; try: shardyard up{session.name_flag}")
    _refuse_silence(session, silent)
    return 0


def _read_balance(client: RpcClient, address: str) -> int:
    return int(client.request("eth_getBalance", address, "latest"), 16)


def _format_ether(wei: int | None) -> str | None:
    return None if wei is None else format_ether(wei)


def _ask_shards(
    session: Session, shards: range, ask: Callable[[RpcClient], T]
) -> tuple[dict[int, T | None], list[SilentError]]:
    """Return what each shard says, None for one that does not answer, and their silences; none is waited for twice."""
    told: dict[int, T | None] = {}
    silent: list[SilentError] = []
    for shard in shards:
        try:
            told[shard] = ask(session.get_client(shard))
        except SilentError as error:
            told[shard] = None
            silent.append(error)
    return told, silent


def _refuse_silence(session: Session, silent: list[SilentError]) -> None:
    """Raise ``CliError`` that names the shards that said nothing."""
    if len(silent) == 1:
        raise silent[0]
    if silent:
        numbers = ", ".join(str(error.shard) for error in silent)
        raise CliError(
            f"shards {numbers} do not answer; their processes are stopped, starting or stuck; "
            f"try: shardyard node list{session.name_flag}",
            EXIT_NOT_RUNNING,
        )


@accounts.command()
@network_option
def new(*, name: str, as_json: bool) -> int:
    """Make a new key; it stays in the network's key folder with mode 0600."""
    session = Session(name)
    return _report_key(session, store_user_key(session, secrets.token_bytes(32)), as_json=as_json)


@accounts.command("import")
@network_option
def import_key(*, name: str, as_json: bool) -> int:
    """Store a private key read from standard input (never from the command line, where others can see it)."""
    text = ""
    if sys.stdin is not None:  # it is None where standard input was closed
        is_person = sys.stdin.isatty()
        text = click.prompt("private key", hide_input=True, err=True) if is_person else sys.stdin.readline()
        text = text.strip()
    try:
        key = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        key = b""
    if len(key) != 32:
        raise CliError("private key: expected 64 hexadecimal digits; try: shardyard accounts new", EXIT_USAGE)
    if not 0 < int.from_bytes(key, "big") < CURVE_ORDER:
        raise CliError(
            "private key: got a number that is no key of secp256k1; try: shardyard accounts new", EXIT_USAGE
        )
    session = Session(name)
    return _report_key(session, store_user_key(session, key), as_json=as_json)


def _report_key(session: Session, address: str, *, as_json: bool) -> int:
    if as_json:
        print_json({"address": address})
    else:
        click.echo(address)
        say(f"fund it with: shardyard faucet {address} 10ether{session.name_flag}")
    return 0


@accounts.command()
@click.argument("account")
@network_option
def show(*, account: str, name: str, as_json: bool) -> int:
    """Show balance and nonce of ACCOUNT on every shard."""
    session = Session(name)
    address = resolve_address(account)

    def ask(client: RpcClient) -> tuple[str, int]:
        nonce = int(client.request("eth_getTransactionCount", address, "latest"), 16)
        return format_ether(_read_balance(client, address)), nonce

    told, silent = _ask_shards(session, range(session.shard_count), ask)
    rows = [(shard, *(answer or (None, None))) for shard, answer in told.items()]
    if as_json:
        print_json({"address": address, "shards": [{"shard": s, "ether": b, "nonce": n} for s, b, n in rows]})
    else:
        click.echo(address)
        print_table(("Shard", "Ether", "Nonce"), rows)
    _refuse_silence(session, silent)
    return 0


@click.command()
@click.argument("address")
@click.argument("amount", default="10ether")
@click.option("--shard", default="0", show_default=True, help="Shard, or all.")
@network_option
def faucet(*, address: str, amount: str, shard: str, name: str, as_json: bool) -> int:
    """Send AMOUNT of development ether to ADDRESS and wait for it."""
    session = Session(name)
    to, value = resolve_address(address), parse_wei(amount)
    sender = resolve_account(session, FAUCET_ACCOUNT)
    sent: list[tuple[int, str]] = []
    for number in session.parse_shards(shard):
        with naming_sent(sent):
            client = session.get_client(number)
            raw = sign_transaction(client, shard=number, sender=sender, to=to, value=value)
            sent.append((number, send_raw(client, raw)))
    found = []
    is_ok = True
    patience = Patience()
    for number, tx_hash in sent:
        receipt = wait_for_receipt(session, number, tx_hash, patience)
        found.append({"shard": number, "transaction": tx_hash, "receipt": receipt})
        is_ok = is_ok and receipt["status"] == "0x1"
        if not as_json:
            click.echo(tx_hash)
            say(f"{amount} for {to} in block {int(receipt['blockNumber'], 16)} of shard {number}")
    if as_json:
        print_json({"address": to, "wei": str(value), "sent": found})
    return 0 if is_ok else EXIT_REJECTED
