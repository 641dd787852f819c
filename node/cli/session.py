"""What a command needs of a network: its files, whether it runs, and a JSON-RPC client per shard.

The client is the standard library's HTTP with one kept connection: commands are short, and importing a full client takes
longer than most of them run.
"""

import asyncio
import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from node.cli.root import EXIT_NOT_RUNNING, EXIT_REJECTED, EXIT_USAGE, CliError
from node.config import get_home
from node.control import ControlError, ask
from node.network import Network, open_network

RPC_TIMEOUT_S = 30.0


class RpcError(CliError):
    """The node answered with a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message, EXIT_REJECTED)
        self.code = code
        self.data = data


class RpcClient:
    """JSON-RPC over HTTP to one shard."""

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self._name = name
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=RPC_TIMEOUT_S)

    def request(self, method: str, *params: object) -> Any:
        """Return the result of ``method``; raises ``RpcError``, or ``CliError`` when nobody answers."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        for attempt in (0, 1):
            try:
                self._connection.request("POST", "/", body, {"Content-Type": "application/json"})
                answer = json.loads(self._connection.getresponse().read())
                break
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._connection.close()
                if attempt:
                    raise CliError(
                        f"no answer from {self.url} ({error}); try: shardyard status --name {self._name}",
                        EXIT_NOT_RUNNING,
                    ) from error
        if "error" in answer:
            found = answer["error"]
            raise RpcError(found.get("code", 0), found.get("message", "unknown error"), found.get("data"))
        return answer["result"]


class Session:
    """A network that a command works with."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root: Path = get_home() / name
        self.network: Network = open_network(self.root)
        self._clients: dict[int, RpcClient] = {}
        self._endpoints: dict[str, Any] | None = None

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

    def get_client(self, shard: int) -> RpcClient:
        """Return the client of ``shard``; raises ``CliError`` for a shard that is not there."""
        if not 0 <= shard < self.shard_count:
            raise CliError(
                f"shard: got {shard}, expected 0..{self.shard_count - 1}; try: shardyard shard list --name {self.name}",
                EXIT_USAGE,
            )
        if shard not in self._clients:
            self._clients[shard] = RpcClient(self.endpoints["shards"][shard]["rpc"], self.name)
        return self._clients[shard]

    def ask_launcher(self, method: str, **params: object) -> Any:
        """Ask the launcher; raises ``ControlError`` with a way out when the network does not run."""
        return self.ask_node("launcher", method, **params)

    def ask_node(self, node: str, method: str, **params: object) -> Any:
        """Ask the control socket of ``node``."""
        try:
            return asyncio.run(ask(self.network.get_control_path(node), method, **params))
        except ControlError as error:
            if "no answer" not in str(error):
                raise CliError(str(error)) from error
            raise ControlError(
                f"network {self.name!r} is not running ({error}); try: shardyard up --name {self.name}"
            ) from error

    def is_running(self) -> bool:
        """Tell whether the launcher answers."""
        try:
            asyncio.run(ask(self.network.get_control_path("launcher"), "ping"))
        except ControlError:
            return False
        return True
