"""What a command needs of a network: its files, whether it runs, and a JSON-RPC client per shard.

The client is the standard library's HTTP with one kept connection: commands are short, and importing a full client takes
longer than most of them run.
"""

import asyncio
import http.client
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import rich_click as click

from node.cli.remedies import get_remedy
from node.cli.root import EXIT_FAILURE, EXIT_NOT_RUNNING, EXIT_REJECTED, EXIT_USAGE, CliError
from node.config import check_name, get_home, get_name_flag
from node.control import ControlError, NoAnswerError, NobodyThereError, ask
from node.launcher.lock import find_holder
from node.network import Network, open_network

RPC_TIMEOUT_S = 30.0
PROBE_TIMEOUT_S = 2.0
"""How long a replica may take to say who it is while there is another to ask: one that sleeps accepts and never answers."""
BRIEF_TIMEOUT_S = 1.0
LISTEN_POLL_S = 0.05
CONTROL_TIMEOUT_S = 20.0
"""Stopping a process may take all the seconds its supervisor gives it."""


MAX_NUMBER_DIGITS = 18
"""Of shards and heights; numbers of thousands of digits are beyond the interpreter."""
INVALID_PARAMS = -32602
_JUDGING = frozenset({"eth_sendRawTransaction", "eth_estimateGas", "eth_call"})
"""Methods whose error is a verdict on a transaction: rejected, or it would revert."""


class RpcError(CliError):
    """The node answered with a JSON-RPC error; ``words`` are its own."""

    def __init__(self, method: str, code: int, words: str, remedy: str, data: object = None) -> None:
        exit_code = EXIT_REJECTED if method in _JUDGING else EXIT_FAILURE
        super().__init__(f"{words}; try: {remedy}", EXIT_USAGE if code == INVALID_PARAMS else exit_code)
        self.code = code
        self.words = words
        self.data = data


class SilentError(CliError):
    """The network runs, but no process of ``shard`` that was asked answers at the moment."""

    def __init__(self, shard: int, text: str) -> None:
        super().__init__(text, EXIT_NOT_RUNNING)
        self.shard = shard


class RpcClient:
    """JSON-RPC over HTTP to one shard."""

    def __init__(
        self, url: str, *, name: str, shard: int, describe_silence: Callable[[int], CliError]
    ) -> None:
        self.url = url
        self.name = name
        self.shard = shard
        self.sender = ""
        """The account that signs at the moment, so that a refusal can name it in its way out."""
        self.was_repeated = False
        """Whether the last request was made twice: then the first one may have had its effect."""
        self._describe_silence = describe_silence
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(
            parts.hostname or "127.0.0.1", parts.port, timeout=RPC_TIMEOUT_S
        )

    def close(self) -> None:
        """Close the kept connection; a later request opens another."""
        self._connection.close()

    def set_timeout(self, timeout_s: float) -> None:
        """Wait this many seconds for each answer from now on."""
        self._connection.timeout = timeout_s
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout_s)

    def request(self, method: str, *params: object) -> Any:
        """Return the result of ``method``; raises ``RpcError``, or ``CliError`` when nobody answers."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        answer = self._post(body)
        if "error" in answer:
            found = answer["error"]
            words, data = str(found.get("message", "unknown error")), found.get("data")
            if words == "execution reverted" and isinstance(data, str) and len(data) > 2:
                words += f" with {data[:74]}"  # a custom error: its selector and first word
            remedy = get_remedy(words, name=self.name, shard=self.shard, sender=self.sender)
            raise RpcError(method, found.get("code", 0), words, remedy, data)
        return answer["result"]

    def get_final_height(self) -> int:
        """Return the height up to which the shard is beacon-final, 0 while a replica that came by a snapshot cannot tell."""
        found = self.request("shard_status")["heads"]["finalized"]
        return int(found["height"]) if found else 0

    def _post(self, body: str) -> dict[str, Any]:
        """Send ``body``; a kept connection may have been closed meanwhile, so a failure is tried once more, silence is not."""
        for is_last in (False, True):
            self.was_repeated = is_last
            try:
                self._connection.request("POST", "/", body, {"Content-Type": "application/json"})
                answer = json.loads(self._connection.getresponse().read())
                if isinstance(answer, dict) and ("result" in answer or "error" in answer):
                    return answer
                raise ValueError("not a JSON-RPC answer")
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._connection.close()
                if is_last or isinstance(error, TimeoutError):
                    raise self._describe_silence(self.shard) from error
        raise AssertionError("the last attempt returns or raises")


class Session:
    """A network that a command works with."""

    def __init__(
        self,
        name: str,
        *,
        rpc_timeout_s: float = RPC_TIMEOUT_S,
        control_timeout_s: float = CONTROL_TIMEOUT_S,
    ) -> None:
        check_name(name)
        self.name = name
        self._rpc_timeout_s = rpc_timeout_s
        self._control_timeout_s = control_timeout_s
        self.root: Path = get_home() / name
        self.network: Network = open_network(self.root)
        self._clients: dict[int, RpcClient] = {}
        self._endpoints: dict[str, Any] | None = None
        if (context := click.get_current_context(silent=True)) is not None:
            context.call_on_close(self.close)

    def close(self) -> None:
        """Close every connection; they are opened again when they are needed."""
        for client in self._clients.values():
            client.close()

    @property
    def endpoints(self) -> dict[str, Any]:
        """Ports and URLs of the last start."""
        if self._endpoints is None:
            self._endpoints = self.network.read_endpoints()
        return self._endpoints

    @property
    def shard_count(self) -> int:
        """Number of shards."""
        return self.network.options.shards

    @property
    def name_flag(self) -> str:
        """What a command line needs to mean this network."""
        return get_name_flag(self.name)

    def get_client(self, shard: int) -> RpcClient:
        """Return the client of ``shard``; raises ``CliError`` for a shard that is not there.

        The first request asks which network answers: a port of ours may meanwhile be another program's, and the
        transactions of two networks with the same chain id are valid on both.
        """
        if not 0 <= shard < self.shard_count:
            raise CliError(
                f"shard: got {shard}, expected 0..{self.shard_count - 1}; try: shardyard shard list{self.name_flag}",
                EXIT_USAGE,
            )
        if shard not in self._clients:
            self._clients[shard] = self._open_client(shard)
        return self._clients[shard]

    def limit_requests(self, timeout_s: float) -> None:
        """Wait about ``timeout_s`` for each answer from now on, for whoever asks has no longer to wait."""
        self._rpc_timeout_s = min(RPC_TIMEOUT_S, max(PROBE_TIMEOUT_S, timeout_s))
        for client in self._clients.values():
            client.set_timeout(self._rpc_timeout_s)

    def forget_client(self, shard: int) -> None:
        """Look for a replica of ``shard`` that answers when it is needed the next time."""
        if (client := self._clients.pop(shard, None)) is not None:
            client.close()

    def _open_client(self, shard: int) -> RpcClient:
        """Return a client of the first replica of ``shard`` that answers."""
        endpoint = self.endpoints["shards"][shard]
        urls = list(endpoint.get("nodes", {}).values()) or [endpoint["rpc"]]
        for url in urls:
            client = RpcClient(url, name=self.name, shard=shard, describe_silence=self._describe_silence)
            is_last = url == urls[-1]
            client.set_timeout(self._rpc_timeout_s if is_last else min(PROBE_TIMEOUT_S, self._rpc_timeout_s))
            try:
                found = _ask_network(client)
            except CliError:
                if is_last or not self.is_running():
                    raise
                continue
            client.set_timeout(self._rpc_timeout_s)
            if found == "0x" + self.network.genesis.network.hex():
                return client
            client.close()
            raise CliError(
                f"another network answers at {url}, {self.name!r} is not running; "
                f"try: shardyard up{self.name_flag} --port-base 0",
                EXIT_NOT_RUNNING,
            )
        raise AssertionError("the last replica answers or raises")

    def parse_shards(self, text: str) -> list[int]:
        """Return the shards that ``--shard`` names: a number, or ``all``; raises ``CliError``."""
        if text == "all":
            return list(range(self.shard_count))
        if not text.isdecimal() or len(text) > MAX_NUMBER_DIGITS:
            raise CliError(
                f"shard: got {text[:40]!r}, expected a number or all; try: --shard all", EXIT_USAGE
            )
        return [int(text)]

    def _describe_silence(self, shard: int) -> CliError:
        if not self.is_running():
            return CliError(self._describe_absence(), EXIT_NOT_RUNNING)
        return SilentError(
            shard,
            f"shard {shard} does not answer at {self.endpoints['shards'][shard]['rpc']}; its process is stopped, starting "
            f"or stuck; try: shardyard node list{self.name_flag}",
        )

    def _describe_absence(self) -> str:
        return f"network {self.name!r} is not running; try: shardyard up{self.name_flag}"

    def ask_launcher(self, method: str, /, **params: Any) -> Any:
        """Ask the launcher; raises ``ControlError`` with a way out when the network does not run."""
        return self.ask_node("launcher", method, **params)

    def ask_node(self, node: str, method: str, /, **params: Any) -> Any:
        """Ask the control socket of ``node``; a launcher that does not listen yet is waited for."""
        started = time.monotonic()
        try:
            while True:
                path = self.network.get_control_path(node)
                left_s = started + self._control_timeout_s - time.monotonic()
                try:
                    return asyncio.run(ask(path, method, timeout_s=max(left_s, LISTEN_POLL_S), **params))
                except NobodyThereError:
                    if node != "launcher" or left_s <= 0 or not self.is_running():
                        raise
                time.sleep(LISTEN_POLL_S)
        except NoAnswerError as error:
            if not self.is_running():
                raise ControlError(self._describe_absence()) from error
            if node != "launcher":
                raise CliError(
                    f"{node} does not answer ({error}); try: shardyard logs {node}{self.name_flag}",
                    EXIT_NOT_RUNNING,
                ) from error
            holder = find_holder(self.root)
            raise CliError(
                f"the launcher of {self.name!r} runs ({holder.describe() if holder else 'it just ended'}) and did not answer "
                f"within {time.monotonic() - started:.0f} s at {self.network.get_control_path(node)} ({error}); "
                f"try: again, or shardyard logs launcher{self.name_flag}",
                EXIT_NOT_RUNNING,
            ) from error
        except ControlError as error:
            raise CliError(str(error)) from error

    def ask_briefly(self, node: str, method: str) -> Any:
        """Ask the control socket of ``node`` for something it has at hand; raises ``ControlError`` after a second."""
        return asyncio.run(ask(self.network.get_control_path(node), method, timeout_s=BRIEF_TIMEOUT_S))

    def is_running(self) -> bool:
        """Tell whether the network has a launcher; on a busy machine one may live and be slow to answer."""
        holder = find_holder(self.root)
        return holder is not None and not holder.is_deleting


def _ask_network(client: RpcClient) -> object:
    """Return the id of the network that ``client`` reaches, None when it is no network of ours."""
    try:
        return client.request("shard_info")["network"]
    except (RpcError, KeyError, TypeError):
        return None
