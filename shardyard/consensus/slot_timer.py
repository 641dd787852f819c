"""The timer of the current slot (L6): how long its leader is waited for, and which leaders are not worth the wait.

A leader that missed its last turn and of whom no vote was heard since is presumed away: its slot is given up after Δ, not
after the block time and 2Δ. The next leader waits until the block time since its parent is over in any case, so a chain
whose leaders are away one at a time goes on at its usual pace as long as Δ is less than the block time; three away in a row
take 3Δ and the growth of two.

Timers never touch safety. Nor is liveness at risk: an honest validator votes in every slot, and within Δ of the last vote
(once messages take no longer) everybody has heard it; so one that only seemed to be away is known to be here by the time
the short timer fires, and is then given the rest of the long one. What is heard is not verified, and needs not be: whoever
forges a vote of a validator that is away makes everybody as patient as they would be without this rule.
"""

from typing import Final

from shardyard.consensus.engine import EngineConfig
from shardyard.consensus.pacing import TIMER_SLOT, compute_growth
from shardyard.consensus.votes import Certificate, VoteKind
from shardyard.effects import CancelTimer, SetTimer
from shardyard.ids import GENESIS_SLOT, Slot
from shardyard.quorum import decode_bitmap

NEVER: Final = -1


class SlotTimer:
    """Waits for the leader of one slot after the other. Bound: two slot numbers per validator. Nothing here is durable."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._slot = GENESIS_SLOT
        self._heard = [NEVER] * len(config.committee)
        self._missed = [NEVER] * len(config.committee)
        self._is_short = False
        self._is_extended = False

    def note_vote(self, validator: int, slot: int) -> None:
        """A vote of ``validator`` for ``slot`` was heard; one for a later slot than the current says no more than for this."""
        if 0 <= validator < len(self._heard):
            self._heard[validator] = max(self._heard[validator], min(slot, self._slot))

    def note_certificate(self, certificate: Certificate) -> None:
        """Take a verified certificate: whoever signed it was here, and of a skipped slot the leader missed its turn."""
        committee = self._config.committee
        for validator in decode_bitmap(certificate.bitmap, len(committee)):
            self.note_vote(validator, certificate.slot)
        if certificate.kind is VoteKind.SKIP:
            leader = committee.get_leader(certificate.slot)
            self._missed[leader] = max(self._missed[leader], certificate.slot)

    def is_away(self, validator: int) -> bool:
        """Tell whether ``validator`` missed its last turn and was not heard in that slot or any since."""
        return self._missed[validator] > self._heard[validator]

    def enter(self, slot: Slot, final_slot: int) -> list[SetTimer | CancelTimer]:
        """Begin ``slot``: the timer of the one before is cancelled."""
        stale = [CancelTimer(f"{TIMER_SLOT}{self._slot}")] if self._slot > GENESIS_SLOT else []
        self._slot = slot
        self._is_extended = False
        self._is_short = self.is_away(self._config.committee.get_leader(slot))
        usual_ms = self._config.delta_ms if self._is_short else self._get_patience_ms()
        return [*stale, self._set(usual_ms, final_slot)]

    def fire(self, final_slot: int, *, has_proposal: bool) -> SetTimer | None:
        """Return the timer that goes on waiting, None when the slot is to be skipped.

        A slot with a proposal that may still be valid gets Δ longer, once; a leader that was heard meanwhile all its time.
        """
        if self._is_extended:
            return None
        if has_proposal:
            self._is_extended = True
            return self._set(self._config.delta_ms, final_slot)
        if self._is_short and not self.is_away(self._config.committee.get_leader(self._slot)):
            self._is_short = False
            return self._set(self._get_patience_ms() - self._config.delta_ms, final_slot)
        return None

    def _get_patience_ms(self) -> int:
        """How long after entering its slot a valid proposal of a leader that is here must have come."""
        return self._config.block_time_ms + 2 * self._config.delta_ms

    def _set(self, usual_ms: int, final_slot: int) -> SetTimer:
        growth_ms = compute_growth(self._config, self._slot, final_slot)
        return SetTimer(f"{TIMER_SLOT}{self._slot}", usual_ms + growth_ms)
