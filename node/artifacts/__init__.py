"""What ships compiled: the project's contracts, and well-known ones of others byte for byte."""

from node.artifacts.contracts import (
    Artifact,
    CanonicalContract,
    list_artifact_names,
    load_artifact,
    load_canonical_contracts,
)

__all__ = [
    "Artifact",
    "CanonicalContract",
    "list_artifact_names",
    "load_artifact",
    "load_canonical_contracts",
]
