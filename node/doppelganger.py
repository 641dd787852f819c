"""The doppelganger check: does somebody else sign with the keys of this process (K3)?

On one machine the locks answer (``node.storage.key_locks``). Beyond it, every vote that is heard does: a signature is made
only after its record, so a vote of an own key that verifies and is *not on record* was made elsewhere. That is no guess
from timing; it holds at any moment, and the key stops for good. Certificates tell the same by their bitmaps and
were verified by the engine; single votes of own keys are rare enough to be verified here.

Before a process signs for the first time it listens for ``WATCH_SLOTS`` block times, within which a committee that goes on shows
who votes in it; what the engine wants signed waits meanwhile. What peers say of their heights may be old or lag behind, and
shortens nothing. It does not listen when there is nothing to hear: no other process has keys of this
chain, or a process signed into this very record within ``RECENT_S`` on this machine (a restart; a copy is none).

What is not heard: single votes of a twin that has this node's name as well, a whole copied network, because the bus takes
what comes by one's own name for an echo; and single votes after ``MAX_CHECKS`` were verified. Certificates tell of both.
Nor is what others say while the bus is not connected: a watch that a broken bus falls into ends all the same.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from node.signer import Signer
from node.storage.signer_record import is_signed_here
from shardyard.consensus.votes import Crypto, Domain, Vote, VoteKind, compute_vote_message
from shardyard.ids import ShardId, describe_shard
from shardyard.messages import Message, Votes
from shardyard.validators import ValidatorSet

WATCH_SLOTS: Final = 2
RECENT_S: Final = 30.0
MAX_CHECKS: Final = 64
"""Votes by the name of own keys that are verified in one life with a record, and as many while it is lost: a liar can make
us verify no more. Whoever forges so many makes us deaf to single votes until the next start, not to certificates."""

_log = logging.getLogger(__name__)


def is_recent(path: Path, now_s: float | None = None) -> bool:
    """Tell whether ``path``, a record or a network's file, was written so lately that nobody else can have taken over.

    A record must have been signed into where it lies, too: the times of a copy say nothing.
    """
    try:
        age = (time.time() if now_s is None else now_s) - path.stat().st_mtime
    except OSError:
        return False
    return 0 <= age < RECENT_S and is_signed_here(path)


class DoppelgangerWatch:
    """Listens for the signer's keys in what peers say."""

    def __init__(
        self,
        signer: Signer,
        crypto: Crypto,
        domain: Domain,
        committee: ValidatorSet,
        get_final_height: Callable[[], int],
    ) -> None:
        self._signer = signer
        self._crypto = crypto
        self._domain = domain
        self._committee = committee
        self._get_final_height = get_final_height
        self._keys = frozenset(signer.validators)
        self._checks: Counter[bool] = Counter()
        """Votes verified so far, while the record is lost and otherwise: what is heard before a Rejoin is not the watch's."""
        self._height_at_begin = 0

    def begin(self, seconds: float, *, is_needed: bool) -> None:
        """Hold the signer for ``seconds``, when there is somebody to listen to.

        With a lost record it signs nothing anyway; it is held when the record begins anew.
        """
        if not is_needed or not self._keys:
            return
        if self._signer.reason:
            self._signer.watch_after_rejoin(seconds)
        else:
            self._height_at_begin = self._get_final_height()
            self._signer.hold()
            asyncio.get_running_loop().call_later(seconds, self._end)

    def observe(self, chain: ShardId, message: Message) -> None:
        """Look at a peer's message on its way to the machine."""
        if chain != self._domain.shard:
            return
        if isinstance(message, Votes):
            for vote in message.votes:
                if vote.validator in self._keys:
                    self._check(vote)

    def _end(self) -> None:
        _log.info(
            "%s: watched for other processes with the keys of validators %s from height %d to %d: %s",
            describe_shard(self._domain.shard),
            sorted(self._keys),
            self._height_at_begin,
            self._get_final_height(),
            f"heard those of {sorted(self._signer.stopped)}" if self._signer.stopped else "heard none",
        )
        self._signer.release()

    def _check(self, vote: Vote) -> None:
        if vote.kind is VoteKind.PROPOSE or not self._signer.may_be_news(vote.validator, vote.slot):
            return
        if self._signer.state.has_signed(vote.validator, vote.kind, vote.slot, vote.block_hash):
            return
        is_lost = bool(self._signer.reason)
        if self._checks[is_lost] >= MAX_CHECKS:
            return
        self._checks[is_lost] += 1
        message = compute_vote_message(self._domain, vote.kind, vote.slot, vote.block_hash)
        items = [(vote.validator, message, vote.signature)]
        if self._crypto.verify_votes(self._committee, items)[0]:
            self._signer.stop_key(
                vote.validator, vote.slot, f"a peer sent its {vote.kind.name} vote of slot {vote.slot}"
            )
