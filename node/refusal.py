"""How a node refuses: the JSON-RPC codes that clients branch on, and geth's words where they parse the text.

Codes -32700 to -32600 are JSON-RPC 2.0's own, -32000 is "the server understood and refuses", -32001 to -32005 follow
EIP-1474 and geth, 3 is geth's "execution reverted" with the revert data beside it.
"""

from typing import Any, Final

from shardyard.errors import ShardyardError

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
SERVER_ERROR: Final = -32000
PRUNED_HISTORY: Final = 4444
"""EIP-4444 in geth: blocks that were once there for everybody, and are not here."""
NO_NOTIFICATIONS: Final = -32001
"""Geth's code for a subscription over a connection that cannot be told anything later."""
TIMED_OUT: Final = -32002
RESPONSE_TOO_LARGE: Final = -32003
NOT_SUPPORTED: Final = -32004
LIMIT_EXCEEDED: Final = -32005
EXECUTION_REVERTED: Final = 3


class RpcError(ShardyardError):
    """An answer that is an error; ``data`` is any JSON value, left out when None."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class ParamError(ValueError):
    """A parameter of the wrong form; becomes error -32602 with its position."""


def build_invalid_argument(position: int, problem: str) -> RpcError:
    """Return geth's error for a parameter of the wrong form."""
    return RpcError(INVALID_PARAMS, f"invalid argument {position}: {problem}")


def build_server_error(message: str) -> RpcError:
    """Return a refusal in plain words."""
    return RpcError(SERVER_ERROR, message)
