"""The table of methods: a name, how its parameters are read, and the function that answers.

A module of methods declares a ``MethodTable`` and decorates functions; ``merge`` makes one table of them. Parameters are by
position; trailing ones may have a default, which an explicit null stands for too.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import msgspec

from node.refusal import INVALID_PARAMS, ParamError, RpcError, build_invalid_argument

REQUIRED: Final = msgspec.UNSET

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")


class Param(msgspec.Struct, frozen=True):
    """One positional parameter: how it is read, and what stands for it when it is missing."""

    read: Callable[[Any], Any]
    default: Any = REQUIRED


class Method(msgspec.Struct, frozen=True):
    """One method of the table. ``answer`` takes the call's context and the parameters that were read."""

    name: str
    params: tuple[Param, ...]
    answer: Callable[..., Any | Awaitable[Any]]
    is_grouped: bool = False
    """Neighbours of this method in a batch start together, in order, instead of one after the other."""

    def read_params(self, given: list[Any]) -> list[Any]:
        """Return the arguments for ``answer``; raises ``RpcError`` with geth's words for what does not fit."""
        if len(given) > len(self.params):
            raise RpcError(INVALID_PARAMS, f"too many arguments, want at most {len(self.params)}")
        arguments = []
        for position, param in enumerate(self.params):
            value = given[position] if position < len(given) else None
            if value is None:
                if param.default is REQUIRED:
                    raise RpcError(INVALID_PARAMS, f"missing value for required argument {position}")
                arguments.append(param.default)
                continue
            try:
                arguments.append(param.read(value))
            except ParamError as error:
                raise build_invalid_argument(position, str(error)) from error
        return arguments


class MethodTable(dict[str, Method]):
    """Methods by name."""

    def method(
        self, name: str, *params: Param, is_grouped: bool = False
    ) -> Callable[[Callable[Concatenate[C, P], R]], Callable[Concatenate[C, P], R]]:
        """Register the decorated function under ``name``."""

        def register(answer: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
            assert name not in self, f"{name} is in the table twice"
            self[name] = Method(name, params, answer, is_grouped)
            return answer

        return register


def merge(tables: Iterable[MethodTable]) -> MethodTable:
    """Return one table with the methods of all."""
    merged = MethodTable()
    for table in tables:
        assert not merged.keys() & table.keys(), "a method is in two tables"
        merged.update(table)
    return merged
