"""Planted bugs: one change of one line of ours, each breaking one rule, for hunts and mutants that must find them."""

import msgspec


class Plant(msgspec.Struct, frozen=True):
    """A bug to plant: ``old``, which stands once in the source of ``module``, becomes ``new``."""

    name: str
    rule: str
    """The rule of docs/protocol.md that it breaks."""
    module: str
    old: str
    new: str
    what: str
    """What is wrong then, in a few words."""
    is_safety: bool
    """Whether it may lead to two truths (a fork, value from nowhere, a false accusation) and not only to a halt."""
