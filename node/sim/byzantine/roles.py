"""The roles by name: what a fault profile may ask for, and the one place to add another to.

A twin is no role but a second process with the same keys; the world starts it.
"""

from typing import Final

from node.sim.byzantine.answers import Corrupter
from node.sim.byzantine.bad_proposer import BadProposer
from node.sim.byzantine.equivocator import Equivocator
from node.sim.byzantine.garbage import Garbler, Replayer, Spool, Tamperer
from node.sim.byzantine.reticence import LateVoter, Silent, Withholder
from node.sim.byzantine.role import Role, Seat

TWIN: Final = "twin"
_PLAIN: Final[dict[str, type[Role]]] = {
    kind.name: kind
    for kind in (Equivocator, Withholder, Silent, Garbler, LateVoter, BadProposer, Tamperer, Corrupter)
}
ROLES: Final = (*_PLAIN, Replayer.name)


def build_role(name: str, seat: Seat, spool: Spool) -> Role:
    """Return the role of that name, one of ``ROLES``, played from ``seat``; replayers share ``spool``."""
    return Replayer(seat, spool) if name == Replayer.name else _PLAIN[name](seat)
