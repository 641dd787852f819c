"""The bus: how processes of a network hear of each other's messages.

``endpoint`` is the seam (the ``Bus`` protocol and what both implementations share); ``mqtt`` implements it for
processes, ``node.bus.memory`` for tests and for whoever runs a network within one process; ``topics`` is the one
table of topics, ``envelope`` authenticates what travels, ``access`` says who may publish and read what, ``broker`` is
the embedded broker's process, ``mosquitto`` configures the other one, and ``watch`` mirrors what happens as JSON for
people.

A broker is never trusted: it may lose, double, reorder, delay or invent, and brokers were seen to acknowledge what they
then drop. So every envelope is signed and sequenced, every queue is bounded, and what is lost is fetched again by hash.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.bus.endpoint import Bus, BusConfig, BusCounters, BusIdentity

__all__ = ["Bus", "BusConfig", "BusCounters", "BusIdentity"]


def __getattr__(name: str) -> object:
    # On demand: the broker's process imports this package and must not load the protocol with it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from node.bus import endpoint

    return getattr(endpoint, name)
