"""Goes through the beacon's blocks in order: crosslinks against what the shards' blocks give, state, and supply.

The wei of every shard are counted three times at every beacon height: as the beacon's own books say (X11), by the identity
over the messages derived anew, and as the sum of all balances in the state executed again. All three must agree, and with
what is in flight and burnt make genesis (I1).
"""

from collections.abc import Sequence

from crosslink.ledger import read_body
from crosslink.state import BeaconState, CrosslinkFacts, apply_crosslinks, build_genesis_state
from crosslink.validity import check_submission, verify_position
from node.audit.findings import Findings, Promise
from node.audit.flow import MessageFlow
from node.audit.logs import ChainLog
from node.audit.replay import BeaconView, ShardReplay, build_genesis_view, find_block
from node.audit.stretches import Hashes
from shardyard.blocks import BeaconRef, Block
from shardyard.crosslinks import Crosslink, CrosslinkSubmission
from shardyard.errors import InvalidBlockError, RemoteProtocolError, SupplyError
from shardyard.genesis import Genesis
from shardyard.ids import BEACON
from shardyard.keys import BlsCrypto
from shardyard.rejoins import verify_rejoins


class BeaconReplay:
    """The beacon while its blocks are judged again; drives the shards' replays to every crosslink."""

    def __init__(
        self,
        genesis: Genesis,
        logs: Sequence[ChainLog],
        hashes: Hashes,
        shards: Sequence[ShardReplay],
        flow: MessageFlow,
        crypto: BlsCrypto,
        findings: Findings,
    ) -> None:
        self.views: dict[int, BeaconView] = {0: build_genesis_view(genesis)}
        """What shard blocks know by beacon height, from the lowest to which the next one of some shard may refer."""
        self.height = 0
        self._genesis = genesis
        self._logs = logs
        self._hashes = hashes
        self._shards = shards
        self._flow = flow
        self._crypto = crypto
        self._findings = findings
        self._state: BeaconState | None = build_genesis_state(genesis)
        """None once it cannot be followed any more."""
        self._supplies = [int.from_bytes(shard.supply, "big") for shard in genesis.shards]
        """Sum of balances by shard, in the executed state of its last crosslinked block."""
        self._balances = list(self._supplies)
        """The same by the identity of X11, from messages."""
        self._burnt = [0] * genesis.shard_count
        self._positions = [0] * genesis.shard_count
        self._total = sum(self._supplies)

    def run(self) -> None:
        """Judge every block of the chain; stops where shards cannot be followed any more."""
        for height in range(1, len(self._hashes)):
            block = find_block(self._logs, self._hashes[height])
            if block is None or not self._judge(block):
                return
            self.height = height

    def _judge(self, block: Block) -> bool:
        height = block.header.height
        where = f"beacon block {height}"
        try:
            body = read_body(self._genesis, block)
            crosslinks = body.crosslinks
            domain, committee = self._genesis.get_domain(BEACON), self._genesis.committees[BEACON]
            verify_rejoins(self._crypto, domain, committee, body.rejoins)
        except InvalidBlockError as error:
            self._findings.add(
                Promise.ORDER if "visit order" in str(error) else Promise.CROSSLINKS, where, str(error)
            )
            return False
        for crosslink in crosslinks:
            self._findings.count(Promise.CROSSLINKS)
            if not self._reach(crosslink, where):
                return False
        for crosslink in crosslinks:
            emitted = self._flow.on_crosslink(height, crosslink)
            self._settle(crosslink, emitted, where)
        for shard, inbox in zip(self._shards, self._flow.inboxes, strict=True):
            shard.verify_arrivals(height, inbox.list_arrivals(height))
        fees = dict(self.views[height - 1].link_base_fees)
        fees.update((crosslink.shard, crosslink.base_fee) for crosslink in crosslinks)
        ref = BeaconRef(height=block.header.height, hash=block.hash, epoch=block.header.epoch)
        self.views[height] = BeaconView(ref, tuple(sorted(fees.items())))
        self._follow_state(block, crosslinks, where)
        self._verify_supply(where)
        self._drop_views()
        return True

    def _drop_views(self) -> None:
        """Let go of what no shard refers to any more: a block refers to no earlier one than its parent."""
        kept = min(shard.head.shard_content.beacon_ref.height for shard in self._shards)
        for height in range(next(iter(self.views)), min(kept, self.height)):
            del self.views[height]

    def _reach(self, crosslink: Crosslink, where: str) -> bool:
        """Execute the shard up to the crosslink's head and compare."""
        shard = self._shards[crosslink.shard]
        name = f"{where}: crosslink of shard {crosslink.shard}"
        if crosslink.first_height != shard.height + 1:
            self._findings.add(
                Promise.CROSSLINKS, name, f"begins at {crosslink.first_height}, expected {shard.height + 1}"
            )
            return False
        if not shard.execute_to(crosslink.last_height, self.views):
            if not shard.broken:
                self._findings.add(
                    Promise.CHAINS,
                    name,
                    f"its blocks up to {crosslink.last_height} are not in the shard's log",
                )
            return False
        content = shard.head.shard_content
        claims = (
            ("head", crosslink.head_hash, shard.head.hash),
            ("state root", crosslink.state_root, content.state_root),
            ("inbox position", crosslink.inbox_position, self._flow.inboxes[crosslink.shard].consumed),
            ("base fee", crosslink.base_fee, content.base_fee),
            ("burnt wei", int.from_bytes(crosslink.burnt, "big"), shard.burnt - self._burnt[crosslink.shard]),
        )
        for what, got, expected in claims:
            if got != expected:
                self._findings.add(
                    Promise.CROSSLINKS, name, f"the {what} is not what the shard's blocks give"
                )
        return True

    def _settle(self, crosslink: Crosslink, emitted: int, where: str) -> None:
        """Move the shard's wei as X11 says, and count what its state holds."""
        shard = crosslink.shard
        replay = self._shards[shard]
        consumed = self._flow.inboxes[shard].take_escrow(crosslink.inbox_position)
        self._balances[shard] += consumed - emitted - (replay.burnt - self._burnt[shard])
        self._burnt[shard] = replay.burnt
        self._positions[shard] = crosslink.inbox_position
        self._supplies[shard] = replay.get_supply()
        self._findings.count(Promise.SUPPLY)
        if self._supplies[shard] != self._balances[shard]:
            self._findings.add(
                Promise.SUPPLY,
                where,
                f"shard {shard} holds {self._supplies[shard]} wei, its messages leave it {self._balances[shard]}",
            )

    def _follow_state(self, block: Block, crosslinks: Sequence[Crosslink], where: str) -> None:
        """X4: the beacon's own books, from the bodies in its log."""
        if self._state is None:
            return
        before, self._state = self._state, None
        accepted: list[CrosslinkFacts] = []
        try:
            for crosslink in crosslinks:
                submission = self._find_submission(crosslink, block.header.height)
                if submission is None:
                    return
                accepted.append(self._check(before, submission))
            after = apply_crosslinks(before, accepted)
        except SupplyError as error:
            self._findings.add(Promise.SUPPLY, where, str(error))
            return
        except RemoteProtocolError as error:
            self._findings.add(Promise.CROSSLINKS, where, str(error))
            return
        if after.compute_root() != block.header.beacon_content.state_root:
            self._findings.add(Promise.CROSSLINKS, where, "the state root is not what its crosslinks give")
        self._state = after

    def _find_submission(self, crosslink: Crosslink, height: int) -> CrosslinkSubmission | None:
        """Return the bodies of a crosslink; every log that has the block must have them (X10)."""
        found: CrosslinkSubmission | None = None
        for log in self._logs:
            if log.find_final_hash(height) is None:
                continue
            submission = log.get_submission(crosslink.hash)
            if submission is None:
                self._findings.add(
                    Promise.CROSSLINKS,
                    f"{log.node} block {height}",
                    f"the log lacks the bodies of shard {crosslink.shard}",
                )
            found = found or submission
        return found

    def _check(self, before: BeaconState, submission: CrosslinkSubmission) -> CrosslinkFacts:
        facts = check_submission(self._genesis, self._crypto, submission).facts
        verify_position(self._genesis, before, facts, self._find_ref)
        return facts

    def _find_ref(self, height: int) -> BeaconRef | None:
        view = self.views.get(height)
        return view.ref if view is not None else None

    def _verify_supply(self, where: str) -> None:
        self._findings.count(Promise.SUPPLY)
        in_flight = sum(
            inbox.get_waiting_escrow(position)
            for inbox, position in zip(self._flow.inboxes, self._positions, strict=True)
        )
        found = sum(self._supplies) + in_flight + sum(self._burnt)
        if found != self._total:
            self._findings.add(Promise.SUPPLY, where, f"got {found} wei in all, genesis had {self._total}")
        if self._state is not None:
            books = self._state.get_supply()
            if (books.total, list(books.balances)) != (self._total, self._balances):
                self._findings.add(
                    Promise.SUPPLY, where, f"the beacon's books say {books}, executed {self._balances}"
                )

    def finish(self) -> None:
        """Execute what no crosslink carries yet, and count all wei once more at the very end."""
        for shard in self._shards:
            shard.execute_to(shard.last_height, self.views)
        if any(shard.broken for shard in self._shards):
            return
        self._findings.count(Promise.SUPPLY)
        held = sum(shard.get_supply() + shard.burnt for shard in self._shards)
        found = held + self._flow.sum_in_flight()
        if found != self._total:
            self._findings.add(
                Promise.SUPPLY, "after the last blocks", f"got {found} wei in all, genesis had {self._total}"
            )
