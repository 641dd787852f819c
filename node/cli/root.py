"""The root of the command tree: lazy groups, options every command shares, and one place where errors become exit codes.

Modules of commands are imported only when one of their commands runs, so that ``--help`` stays below 150 ms. Data goes to
standard output, words for people to standard error; ``SHARDYARD_DEBUG=1`` adds the traceback of what nobody foresaw. Exit
codes: 0 ok, 1 failure, 2 usage, 3 network not running, 4 transaction reverted or rejected, 5 timed out and may still
complete, 6 check failed, 7 port or resource conflict, 130 interrupted.
"""

import importlib
import io
import os
import sys
import traceback
from typing import Final

import rich_click as click
from click.exceptions import Exit, NoArgsIsHelpError

from node.causes import find_cause
from node.cli.output import print_error
from shardyard.errors import ConfigError, ShardyardError

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_RUNNING: Final = 3
EXIT_REJECTED: Final = 4
EXIT_TIMEOUT: Final = 5
EXIT_CHECK_FAILED: Final = 6
EXIT_CONFLICT: Final = 7
EXIT_INTERRUPTED: Final = 130
DEBUG_VARIABLE: Final = "SHARDYARD_DEBUG"
MAX_UNEXPECTED_WORDS: Final = 500

COMMANDS: Final = {
    "up": ("node.cli.network:up", "Start a network and keep it running."),
    "down": ("node.cli.network:down", "Stop a running network."),
    "status": ("node.cli.network:status", "Show shards, heads and processes of a network."),
    "watch": ("node.cli.watch:watch", "Show shards, blocks, votes and messages live in the terminal."),
    "logs": ("node.cli.logs:logs", "Show the logs of a node."),
    "doctor": ("node.cli.doctor:doctor", "Look for what keeps a network from running well."),
    "reset": ("node.cli.network:reset", "Delete a stopped network and everything in it."),
    "env": ("node.cli.network:env", "Print shell variables for cast and other tools."),
    "accounts": ("node.cli.accounts:accounts", "List the funded development accounts, or make a new key."),
    "faucet": ("node.cli.accounts:faucet", "Send development ether to an address."),
    "tx": ("node.cli.tx:tx", "Send transactions, also across shards, and follow them."),
    "explain": ("node.cli.explain:explain", "Tell the story of a transaction, hop by hop, with timings."),
    "contract": ("node.cli.contract:contract", "Deploy, call and send to contracts."),
    "block": ("node.cli.block:block", "Show blocks."),
    "shard": ("node.cli.shard:shard", "List shards and the messages between them."),
    "fault": ("node.cli.fault:fault", "Cut, slow, kill, pause and corrupt processes; heal them."),
    "check": ("node.cli.check:check", "Judge a network or a proof: liveness, finality, supply, forks."),
    "node": ("node.cli.nodes:node", "List nodes; stop, start, kill and restart them."),
    "validator": (
        "node.cli.validator:validator",
        "List validator keys; move what they have signed; let silent ones sign again.",
    ),
    "load": ("node.cli.load:load", "Send load and measure what comes of it."),
    "audit": ("node.cli.audit:audit", "Re-execute every chain from its log and check every promise."),
    "sim": ("node.cli.sim:sim", "Run the same network from a seed in virtual time."),
    "config": ("node.cli.config:config", "Show the options in force and where they came from."),
    "version": ("node.cli.network:version", "Print the version."),
}


class CliError(ShardyardError):
    """A command cannot go on; ``exit_code`` says which way."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def confirm(question: str, remedy: str = "--yes, which does not ask") -> None:
    """Ask a person, and raise ``CliError`` unless the answer is yes; ``remedy`` is for whoever cannot answer, or did not."""
    what = "nobody is there to answer"
    try:
        if sys.stdin is not None:  # it is None where standard input was closed
            if click.confirm(question, err=True):
                return
            what = "the answer was no"
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo(err=True)
    raise CliError(f"nothing is changed: {what}; try: {remedy}")


class LazyGroup(click.RichGroup):
    """Lists its commands without importing them."""

    _is_listing = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of ``cmd_name``; while help is written, a light stand-in will do."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        target, summary = COMMANDS[cmd_name]
        if self._is_listing:
            return click.RichCommand(name=cmd_name, help=summary, short_help=summary)
        module, _, attribute = target.partition(":")
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found

    def format_help(self, ctx: click.RichContext, formatter: click.RichHelpFormatter) -> None:  # type: ignore[override]
        """Write the help of the root from the table alone."""
        self._is_listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._is_listing = False

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command when ``args`` has none of ours."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(describe_unknown_command("shardyard", args[0], list(COMMANDS)), ctx=ctx)
        return super().resolve_command(ctx, args)


class NamingGroup(click.RichGroup):
    """A group of commands that names the nearest one when it is asked for one it does not have."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command when ``args`` has none of ours."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            known = list(self.commands)
            raise click.UsageError(describe_unknown_command(ctx.command_path, args[0], known), ctx=ctx)
        return super().resolve_command(ctx, args)


def describe_unknown_command(parent: str, got: str, known: list[str]) -> str:
    """Return the words for a command that ``parent`` does not have."""
    import difflib

    near = difflib.get_close_matches(got, known, n=1, cutoff=0.5)
    remedy = f"{parent} {near[0]}" if near else f"{parent} --help"
    return f"unknown command {got!r}; try: {remedy}"


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="First steps: shardyard up   then, in another terminal: shardyard tx xsend --src 0 --dst 1 --value 1ether --wait",
)
def cli() -> None:
    """A sharded blockchain on your machine: EVM shards, BFT finality, a beacon, messages between shards."""


def get_exit_code(error: ShardyardError) -> int:
    """Return the exit code for ``error``."""
    from node.control import ControlError
    from node.launcher.lock import NetworkBusyError
    from node.launcher.ports import PortInUseError
    from node.network import NetworkMissingError, NetworkUnreadableError
    from node.storage.data_dir import DataDirBusyError
    from node.storage.key_locks import KeyInUseError

    match error:
        case CliError():
            return error.exit_code
        case ControlError() | NetworkMissingError():
            return EXIT_NOT_RUNNING
        case NetworkUnreadableError():
            return EXIT_FAILURE
        case ConfigError():
            return EXIT_USAGE
        case PortInUseError() | NetworkBusyError() | DataDirBusyError() | KeyInUseError():
            return EXIT_CONFLICT
        case _:
            return EXIT_FAILURE


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal does not have is no reason to fail; what somebody chose instead of failing stays.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def _get_help_line(arguments: list[str]) -> str:
    """Return the command line that shows the help of the command that ``arguments`` ran."""
    words: list[str] = []
    command: click.Command | None = cli
    for word in arguments:
        if not isinstance(command, click.Group):
            break
        command = command.get_command(click.Context(command), word)
        words += [word] if command is not None else []
    return " ".join(["shardyard", *words, "--help"])


def _invoke(arguments: list[str]) -> object:
    """Return what the command returns; raises what a person needs to read, without the groups that tasks put around it."""
    try:
        return cli.main(args=arguments, prog_name="shardyard", standalone_mode=False)
    except ExceptionGroup as errors:
        raise find_cause(errors) from errors


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    if not arguments:
        arguments = ["--help"]
    as_json = "--json" in arguments

    def fail(code: int, text: str, remedy: str) -> int:
        from node.cli.remedies import find_name
        from node.config import name_network

        text = text if "try: " in text else f"{text}; try: {remedy}"
        print_error(name_network(text, find_name(arguments)), as_json=as_json, code=code)
        return code

    try:
        result = _invoke(arguments)
    except Exit as stop:
        return int(stop.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return fail(EXIT_INTERRUPTED, "interrupted", "the same again; nothing that was sent is lost")
    except NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.ClickException as error:
        ctx = error.ctx if isinstance(error, click.UsageError) else None
        path = ctx.command_path if ctx else "shardyard"
        return fail(EXIT_USAGE, error.format_message(), f"{path} --help")
    except ShardyardError as error:
        code = get_exit_code(error)
        return fail(code, str(error), _get_help_line(arguments) if code == EXIT_USAGE else "shardyard doctor")
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_FAILURE
    except OSError as error:
        return fail(
            EXIT_FAILURE, str(error), "check the disk and the rights of the folder, or another SHARDYARD_HOME"
        )
    except Exception as error:  # noqa: BLE001 - the last resort: nobody shall have to read a traceback
        return fail(
            EXIT_FAILURE, describe_unexpected(error), f"the same with {DEBUG_VARIABLE}=1 shows the traceback"
        )
    return result if isinstance(result, int) else 0


def describe_unexpected(error: Exception) -> str:
    """Return one line on an error that nobody foresaw; its traceback is printed when ``SHARDYARD_DEBUG`` is set."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    words = " ".join(str(error).split())[:MAX_UNEXPECTED_WORDS]
    return f"unexpected {type(error).__name__}: {words or 'without a word'}"
