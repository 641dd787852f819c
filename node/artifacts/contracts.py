"""Read compiled contracts from the JSON files beside this module, in a checkout as in an installed wheel.

``<name>.json`` is written by ``scripts/build-contracts`` from ``contracts/``. ``canonical.json`` holds
contracts of others, byte for byte as they run elsewhere, each with its source, its licence and what its code
was verified by.
"""

from functools import cache
from importlib.resources import files
from typing import Annotated, Final

import msgspec

from shardyard.ids import Address

_CANONICAL: Final = "canonical.json"

Hex = Annotated[str, msgspec.Meta(pattern="^0x([0-9a-f]{2})*$")]


class Artifact(msgspec.Struct, frozen=True):
    """One of the project's own contracts, as the compiler left it."""

    name: str
    source: str
    """Path of the source from the root of the repository."""
    source_sha256: str
    compiler: str
    evm_version: str
    bytecode: Hex
    runtime: Hex
    storage: dict[str, int]
    """Slot of each storage variable."""
    abi: tuple[dict[str, object], ...]

    @property
    def init_code(self) -> bytes:
        """What a deployment sends, without constructor arguments."""
        return bytes.fromhex(self.bytecode[2:])

    @property
    def runtime_code(self) -> bytes:
        """What runs at the contract's address."""
        return bytes.fromhex(self.runtime[2:])


class CanonicalContract(msgspec.Struct, frozen=True, rename={"hex_address": "address", "hex_code": "code"}):
    """A contract of others that every shard has at its usual address from genesis on."""

    name: str
    hex_address: Hex
    source: str
    licence: str
    verified_by: str
    code_hash: Hex
    """Keccak-256 of the code."""
    hex_code: Hex

    @property
    def address(self) -> Address:
        """Where the contract lives on every EVM chain."""
        return Address(bytes.fromhex(self.hex_address[2:]))

    @property
    def runtime_code(self) -> bytes:
        """What runs there."""
        return bytes.fromhex(self.hex_code[2:])


@cache
def list_artifact_names() -> tuple[str, ...]:
    """Return the names ``load_artifact`` knows, sorted."""
    names = (entry.name for entry in files("node.artifacts").iterdir())
    return tuple(sorted(name[:-5] for name in names if name.endswith(".json") and name != _CANONICAL))


@cache
def load_artifact(name: str) -> Artifact:
    """Return the contract called ``name``, for example ``gateway`` or ``counter``.

    Raises ``KeyError`` with the known names when there is no such contract.
    """
    if name not in list_artifact_names():
        raise KeyError(f"contract: got {name!r}, expected one of {', '.join(list_artifact_names())}")
    return msgspec.json.decode(files("node.artifacts").joinpath(f"{name}.json").read_bytes(), type=Artifact)


@cache
def load_canonical_contracts() -> tuple[CanonicalContract, ...]:
    """Return the contracts of others that genesis puts on every shard."""
    data = files("node.artifacts").joinpath(_CANONICAL).read_bytes()
    return msgspec.json.decode(data, type=tuple[CanonicalContract, ...])
