"""How much of each committee may break its promises in a run: always less than a third of its stake.

Byzantine nodes count, and so does every honest one that lost what its promises rest on: its log, its signer's record.
Beyond a third nothing is promised, so nothing could be checked.
"""

from collections.abc import Iterable

from shardyard.genesis import Genesis
from shardyard.ids import ShardId
from shardyard.quorum import sum_stake


class Weights:
    """The validators of each chain that have failed."""

    def __init__(self, genesis: Genesis) -> None:
        self._committees = genesis.committees
        self._failed: dict[ShardId, set[int]] = {}

    def has_failed(self, chain: ShardId, validators: Iterable[int]) -> bool:
        """Tell whether all of ``validators`` count as failed."""
        return self._failed.get(chain, set()).issuperset(validators)

    def can_fail(self, chain: ShardId, validators: Iterable[int]) -> bool:
        """Tell whether ``validators`` may fail as well: all failed ones together weigh less than a third."""
        failed = self._failed.get(chain, set()).union(validators)
        committee = self._committees[chain]
        return 3 * sum_stake(sorted(failed), committee.stakes) < committee.total_stake

    def fail(self, chain: ShardId, validators: Iterable[int]) -> bool:
        """Count ``validators`` as failed, if they may; tell whether they are."""
        if not self.can_fail(chain, validators):
            return False
        self._failed.setdefault(chain, set()).update(validators)
        return True
