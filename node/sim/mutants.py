"""The mutants: every planted bug that seeds or tests have to catch, listed by the rule it breaks."""

import difflib
from typing import Final

from node.sim.plants import Plant, PlantError
from node.sim.plants_driver import DRIVER_PLANTS
from node.sim.plants_finality import FINALITY_PLANTS
from node.sim.plants_shards import SHARD_PLANTS
from node.sim.plants_signing import SIGNING_PLANTS

PLANTS: Final[tuple[Plant, ...]] = (
    *SIGNING_PLANTS,
    *FINALITY_PLANTS,
    *SHARD_PLANTS,
    *DRIVER_PLANTS,
)


def get_plant(name: str) -> Plant:
    """Return the plant of that name, or the first one of that rule; raises ``PlantError`` when there is none."""
    for plant in PLANTS:
        if name == plant.name:
            return plant
    for plant in PLANTS:
        if name.upper() == plant.rule.upper():
            return plant
    near = difflib.get_close_matches(name.lower(), [plant.name for plant in PLANTS], n=1, cutoff=0.4)
    remedy = f"--plant {near[0]}" if near else "shardyard sim hunt --plant list"
    raise PlantError(
        f"--plant: got {name!r}, expected a name or a rule of {len(PLANTS)} planted bugs; try: {remedy}"
    )


def describe_plants() -> str:
    """Return the list of all planted bugs, one line each."""
    width = max(len(plant.name) for plant in PLANTS)
    return "\n".join(
        f"{plant.name:{width}}  {plant.rule:7}  {'safety  ' if plant.is_safety else 'liveness'}  {plant.what}"
        for plant in PLANTS
    )


if __name__ == "__main__":
    print(describe_plants())  # noqa: T201
