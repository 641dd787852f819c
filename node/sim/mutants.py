"""The mutants: every planted bug that seeds or tests have to catch, listed by the rule it breaks."""

from typing import Final

from node.sim.plants import Plant
from node.sim.plants_finality import FINALITY_PLANTS
from node.sim.plants_shards import SHARD_PLANTS
from node.sim.plants_signing import SIGNING_PLANTS

PLANTS: Final[tuple[Plant, ...]] = (*SIGNING_PLANTS, *FINALITY_PLANTS, *SHARD_PLANTS)


def describe_plants() -> str:
    """Return the list of all planted bugs, one line each."""
    width = max(len(plant.name) for plant in PLANTS)
    return "\n".join(
        f"{plant.name:{width}}  {plant.rule:7}  {'safety  ' if plant.is_safety else 'liveness'}  {plant.what}"
        for plant in PLANTS
    )


if __name__ == "__main__":
    print(describe_plants())  # noqa: T201
