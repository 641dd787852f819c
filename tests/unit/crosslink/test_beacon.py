"""The beacon machine over the real finality engine, in virtual time, with honest and lying shards."""

import msgspec
import pytest
from crosslink_test_model import ETHER, SHARD_SUPPLY, Send, ShardModel, TagCrypto, build_genesis, prove
from crosslink_test_network import Network, drop_body_requests, drop_nothing

from crosslink.availability import MAX_OPEN_PER_SHARD
from crosslink.ledger import build_beacon_ref
from shardyard import _native
from shardyard.blocks import BeaconContent, Block
from shardyard.codec import decode, encode
from shardyard.consensus.engine import RequestValidation
from shardyard.crosslinks import BeaconBody, compute_crosslinks_root
from shardyard.effects import Broadcast, Notice, Persist, SubmissionRecord
from shardyard.effects import Send as SendEffect
from shardyard.events import Executed, MessageReceived, Signed, TimerFired
from shardyard.ids import BEACON, ZERO_HASH
from shardyard.keys import BlsCrypto
from shardyard.messages import (
    BundleAnnouncement,
    BundleRequest,
    CrosslinkRequest,
    FinalBlock,
    Proposal,
    RangeRequest,
    RangeResponse,
    Status,
    SubmitCrosslink,
    Transactions,
)
from shardyard.receipts import Receipt

replace = msgspec.structs.replace


class Shards:
    """Model shards beside a beacon network: they submit, and read what the beacon made final."""

    def __init__(self, network):
        self.network = network
        self.models = [
            ShardModel(network.genesis, network.crypto, shard) for shard in range(network.genesis.shard_count)
        ]
        self.seen = 0

    @property
    def machine(self):
        return self.network.replicas["beacon-0"].machine

    def follow(self):
        """Read the final beacon blocks not read yet."""
        while self.seen < self.machine.final_block.header.height:
            self.seen += 1
            block = self.machine.engine.get_final_block(self.seen)
            for crosslink in decode(block.body, BeaconBody, max_bytes=1 << 20).crosslinks:
                self.models[crosslink.shard].on_accepted(crosslink)
                for model in self.models:
                    bundle = self.machine.get_bundle(crosslink.hash, model.shard)
                    for data in bundle.receipts if bundle else ():
                        receipt = msgspec.msgpack.decode(data, type=Receipt)
                        model.inbox.append((self.seen, receipt))

    @property
    def ref(self):
        return build_beacon_ref(self.machine.final_block)

    def make(self, shard, *sends, **changes):
        return self.models[shard].make_block(sends, beacon_ref=self.ref, **changes)

    def submit(self, shard, to=None, **changes):
        submission = self.models[shard].build_submission(**changes)
        self.network.inject(SubmitCrosslink(submission), sender=f"shard-{shard}-0", to=to)
        return submission


def build_network(groups=None, **preset):
    network = Network(build_genesis(2, validators_per_shard=2, **preset), groups)
    return network, Shards(network)


PAIRS = [(0, 1), (2, 3)]
SINGLES = [(0,), (1,), (2,), (3,)]


def notices(network, kind):
    return [
        notice for replica in network.replicas.values() for notice in replica.notices if notice.kind == kind
    ]


def is_accepted(network, submission):
    shard = submission.crosslink.shard
    return all(
        replica.machine.state.shards[shard].last_height >= submission.crosslink.last_height
        for replica in network.replicas.values()
    )


def test_idle_beacon_makes_one_empty_block_per_block_time():
    network, _ = build_network()
    network.run_ms(2000)
    (height,) = network.heights()
    assert 18 <= height <= 21


@pytest.mark.parametrize("groups", [None, PAIRS, SINGLES])
def test_submission_becomes_final_everywhere_and_its_bundles_are_announced(groups):
    network, shards = build_network(groups)
    shards.make(0, Send(1, value=ETHER))
    submission = shards.submit(0)
    network.run(lambda: is_accepted(network, submission))
    states = {replica.machine.state.shards[0].crosslink for replica in network.replicas.values()}
    assert states == {submission.crosslink.hash}
    announced = [message for _, to, message in network.sent if isinstance(message, BundleAnnouncement)]
    assert announced[0].bundle.receipts == submission.outboxes[0]
    final = [message for _, _, message in network.sent if isinstance(message, FinalBlock)]
    assert any(message.block.header.beacon_content.crosslink_count for message in final)
    assert [notice.data["stage"] for notice in notices(network, "message")][:1] == ["beacon-final"]
    assert notices(network, "crosslink.final")[0].data["last_height"] == 1


def test_messages_flow_both_ways_and_supply_holds_at_every_cut():
    network, shards = build_network()
    for _ in range(6):
        shards.follow()
        for shard in (0, 1):
            shards.make(shard, Send(1 - shard, value=ETHER), burnt=1000)
        submissions = [shards.submit(0), shards.submit(1)]
        run_until_accepted(network, *submissions)
    table = shards.machine.get_supply()
    assert table.total == table.genesis == 2 * SHARD_SUPPLY
    assert sum(table.burnt) == 12_000
    assert shards.machine.state.shards[0].inbox.position == 5
    assert {notice.data["supply"] for notice in notices(network, "beacon.final")} == {str(table.genesis)}


def test_s5_bodies_are_on_disk_before_the_vote_for_their_block():
    network, shards = build_network(PAIRS)
    shards.make(0, Send(1, value=1))
    submission = shards.submit(0)
    network.run(lambda: is_accepted(network, submission))
    for replica in network.replicas.values():
        kinds = [type(record).__name__ for record in replica.records]
        blocks = [record for record in replica.records if type(record).__name__ == "BlockRecord"]
        carrying = next(block for block in blocks if block.block.header.beacon_content.crosslink_count)
        logged = [r for r in replica.records if isinstance(r, SubmissionRecord)]
        assert [record.submission for record in logged] == [submission]
        votes = [
            index
            for index, effect in enumerate(replica.effects)
            if type(effect).__name__ == "Sign"
            and any(request.block_hash == carrying.block.hash for request in effect.requests)
        ]
        persisted = next(
            index
            for index, effect in enumerate(replica.effects)
            if isinstance(effect, Persist) and logged[0] in effect.records
        )
        assert persisted < votes[0], kinds


def run_until_accepted(network, *submissions):
    network.run(lambda: all(is_accepted(network, each) for each in submissions))


def drop_second_replica(nodes, message):
    return "beacon-1" in nodes


def garbage(shards):
    """Submissions no beacon may carry, each wrong in its own way."""
    model = shards.models[0]
    good = model.build_submission()
    head = model.pending[-1]
    crosslink = good.crosslink
    yield replace(good, crosslink=replace(crosslink, shard=77))
    yield replace(good, crosslink=replace(crosslink, shard=BEACON))
    yield replace(good, crosslink=replace(crosslink, epoch=3))
    yield replace(good, crosslink=replace(crosslink, links=()))
    yield replace(good, crosslink=replace(crosslink, head_hash=b""))
    yield replace(good, crosslink=replace(crosslink, inbox_position=2**64 - 1))
    yield replace(good, headers=())
    yield replace(good, outboxes=())
    yield replace(good, outboxes=((b"\xff" * 64,),))
    yield replace(good, outboxes=((b"",),))
    yield replace(good, headers=(replace(good.headers[0], content=BeaconContent(b"", -1, b"", b"")),))
    yield replace(good, headers=(replace(good.headers[0], height=-1),))
    yield replace(good, proof=replace(good.proof, path=()))
    yield replace(
        good, proof=replace(good.proof, notarization=replace(good.proof.notarization, bitmap=b"\xff" * 9))
    )
    yield replace(
        good, proof=replace(good.proof, finalization=replace(good.proof.finalization, signature=b""))
    )
    weak = prove(shards.network.genesis, shards.network.crypto, head.header, head.justification, signers=[0])
    yield replace(good, proof=weak)


def test_x4_garbage_submissions_never_halt_the_beacon():
    network, shards = build_network(PAIRS)
    network.run_blocks(1)
    shards.make(0, Send(1, value=ETHER))
    count = 0
    for submission in garbage(shards):
        network.inject(SubmitCrosslink(submission))
        count += 1
    network.run_blocks(2)
    assert len(notices(network, "refused")) == 2 * count
    assert notices(network, "refused")[0].data["sender"] == "shard-0-0"
    assert shards.machine.state.shards[0].last_height == 0
    honest = shards.submit(0)
    network.run(lambda: is_accepted(network, honest))


def test_x11_captured_committee_cannot_spend_what_its_shard_never_had():
    network, shards = build_network(PAIRS)
    shards.make(0, Send(1, value=SHARD_SUPPLY + 1))
    shards.submit(0)
    shards.make(1, Send(0, value=ETHER))
    honest = shards.submit(1)
    network.run(lambda: is_accepted(network, honest))
    network.run_blocks(2)
    assert shards.machine.state.shards[0].last_height == 0
    assert "spends 1 wei more" in notices(network, "refused")[0].data["reason"]


def test_submission_with_an_early_reference_waits_for_its_beacon_block():
    network, shards = build_network(PAIRS)
    network.run_blocks(2)
    shards.make(0, Send(1, value=1))
    early = shards.models[0].build_submission()
    fresh, _ = build_network()  # a beacon at genesis: reference 2 lies in its future
    fresh.inject(SubmitCrosslink(early))
    fresh.run_blocks(1)
    assert notices(fresh, "refused") == []


def test_x10_voter_without_bodies_withholds_its_vote_and_fetches_them():
    network, shards = build_network(PAIRS)
    network.run_blocks(1)
    shards.make(0, Send(1, value=ETHER))
    submission = shards.submit(0, to="beacon-0")  # beacon-1 never hears of it by itself
    network.run(lambda: is_accepted(network, submission))
    asked = [
        to
        for name, to, message in network.sent
        if name == "beacon-1" and isinstance(message, CrosslinkRequest)
    ]
    assert {None, "shard-0-0"} <= set(asked)


def test_x10_block_whose_bodies_nobody_serves_is_skipped_and_the_beacon_goes_on():
    network, shards = build_network(PAIRS)
    network.run_blocks(1)
    network.drop = drop_body_requests
    shards.make(0, Send(1, value=ETHER))
    submission = shards.submit(0, to="beacon-0")
    goal = network.heights()[0] + 6
    network.run(lambda: min(network.heights()) >= goal, limit_ms=120_000)
    assert not is_accepted(network, submission)
    assert notices(network, "beacon.invalid") == []
    assert notices(network, "slot.skipped")
    network.drop = drop_nothing
    network.run(lambda: is_accepted(network, submission))


def test_x4_proposal_with_an_invalid_crosslink_is_voted_down(monkeypatch):
    network, shards = build_network(SINGLES)
    network.run_blocks(1)
    shards.make(0, Send(1, value=SHARD_SUPPLY + 1))
    overspent = shards.models[0].build_submission()
    liar = network.replicas["beacon-1"].machine
    checked_in = SubmitCrosslink(overspent)
    for replica in network.replicas.values():  # bodies are held: only the rule speaks against it
        monkeypatch.setattr(replica.machine, "_verify_at_tip", id)
    network.inject(checked_in)
    build = liar._ledger.build

    def build_with_lie(parent, state, _rejoins):
        content, _, _ = build(parent, state)
        crosslinks = (overspent.crosslink,)
        body = encode(BeaconBody(crosslinks=crosslinks))
        root = compute_crosslinks_root(crosslinks)
        return replace(content, crosslinks_root=root, crosslink_count=1), body, []

    liar._ledger.build = build_with_lie
    goal = network.heights()[0] + 6
    network.run(lambda: min(network.heights()) >= goal, limit_ms=120_000)
    assert any("spends 1 wei more" in notice.data["reason"] for notice in notices(network, "beacon.invalid"))
    assert shards.machine.state.shards[0].last_height == 0


def test_resubmission_and_stale_submission_are_ignored():
    network, shards = build_network()
    shards.make(0, Send(1, value=1))
    submission = shards.submit(0)
    shards.submit(0)
    network.run(lambda: is_accepted(network, submission))
    network.inject(SubmitCrosslink(submission))
    network.inject(
        SubmitCrosslink(replace(submission, crosslink=replace(submission.crosslink, congestion=5)))
    )
    network.run_blocks(2)
    assert shards.machine.get_supply().in_flight == (0, 1)
    assert notices(network, "refused") == []


def test_submission_with_another_parent_than_the_final_crosslink_is_refused():
    network, shards = build_network()
    shards.make(0, Send(1, value=1))
    shards.submit(0, parent=b"\x01" * 32)
    network.run_blocks(2)
    assert "parent is not the final crosslink" in notices(network, "refused")[0].data["reason"]
    submission = shards.submit(0)
    run_until_accepted(network, submission)


def test_variants_of_a_submission_that_nobody_signed_cost_no_signature(monkeypatch):
    """One range of blocks has as many of them as somebody cares to send, each with megabytes of receipts."""
    network, shards = build_network()
    network.run_blocks(1)
    shards.make(0, Send(1, value=1))
    submission = shards.models[0].build_submission()
    deliver(network, SubmitCrosslink(submission))
    monkeypatch.setattr("crosslink.beacon.check_submission", lambda *_: pytest.fail("verified"))
    for number in range(1, 9):
        for change in ({"congestion": number}, {"parent": bytes((number,)) * 32}):
            crosslink = replace(submission.crosslink, **change)
            deliver(network, SubmitCrosslink(replace(submission, crosslink=crosslink)))
    monkeypatch.undo()
    run_until_accepted(network, submission)


def deliver(network, message):
    network.replicas["beacon-0"].step(MessageReceived("shard-0-0", BEACON, message))


class SigningBls(BlsCrypto):
    """The scheme of real processes, with the secret keys of all validators."""

    def __init__(self):
        super().__init__()
        self.secrets = [_native.bls_secret_key(bytes([index + 1]) * 32) for index in range(4)]
        self.by_public_key = {_native.bls_public_key(secret): secret for secret in self.secrets}

    def sign(self, public_key, message):
        return _native.bls_sign(self.by_public_key[public_key], message)


def test_beacon_runs_on_real_signatures():
    crypto = SigningBls()
    genesis = build_genesis(2, validators_per_shard=2)
    validators = tuple(
        replace(
            validator,
            public_key=_native.bls_public_key(secret),
            possession_proof=_native.bls_prove_possession(secret),
        )
        for validator, secret in zip(genesis.validators, crypto.secrets, strict=True)
    )
    network = Network(replace(genesis, validators=validators), PAIRS, crypto=crypto)
    shards = Shards(network)
    shards.make(0, Send(1, value=ETHER))
    good = shards.models[0].build_submission()
    forged = replace(good, proof=replace(good.proof, finalization=good.proof.notarization))
    network.inject(SubmitCrosslink(forged))
    mangled = replace(good.proof.finalization, signature=bytes(96))
    network.inject(SubmitCrosslink(replace(good, proof=replace(good.proof, finalization=mangled))))
    submission = shards.submit(0)
    run_until_accepted(network, submission)
    assert len(notices(network, "refused")) == 4


def test_longest_crosslink_wins_and_open_ones_are_bounded():
    network, shards = build_network()
    model = shards.models[0]
    for _ in range(MAX_OPEN_PER_SHARD + 4):
        model.make_block()
        shards.submit(0)
    submission = model.build_submission()
    network.run(lambda: is_accepted(network, submission))
    assert len(shards.machine._bodies._open) <= MAX_OPEN_PER_SHARD
    assert len(notices(network, "crosslink.final")) <= 2


def test_requests_are_answered_from_what_is_held():
    network, shards = build_network()
    shards.make(0, Send(1, value=1))
    submission = shards.submit(0)
    network.run(lambda: is_accepted(network, submission))
    key = submission.crosslink.hash
    for message in (
        CrosslinkRequest(key),
        CrosslinkRequest(ZERO_HASH),
        BundleRequest(crosslink=key, src=0, dst=1),
        BundleRequest(crosslink=key, src=1, dst=0),
        BundleRequest(crosslink=key, src=5, dst=1),
        BundleRequest(crosslink=ZERO_HASH, src=0, dst=1),
        RangeRequest(shard=BEACON, first_height=1, count=8),
    ):
        network.inject(message, sender="shard-1-0")
    network.run_blocks(1)
    answers = [message for _, to, message in network.sent if to == "shard-1-0"]
    assert [type(answer) for answer in answers] == [SubmitCrosslink, BundleAnnouncement, RangeResponse]
    assert answers[0].submission == submission


def test_recovery_from_records_gives_the_same_state_root():
    network, shards = build_network(PAIRS)
    for _ in range(4):
        shards.follow()
        for shard in (0, 1):
            shards.make(shard, Send(1 - shard, value=ETHER), burnt=10)
        submissions = [shards.submit(0), shards.submit(1)]
        run_until_accepted(network, *submissions)
    for name in list(network.replicas):
        before = network.replicas[name].machine
        after = network.restart(name).machine
        assert after.state == before.state
        assert after.state.compute_root() == before.final_block.header.beacon_content.state_root
        assert after.final_block.hash == before.final_block.hash
        for submission in submissions:
            assert after.get_bundle(submission.crosslink.hash, 1 - submission.crosslink.shard) is not None
    network.run_blocks(3)
    shards.follow()
    shards.make(0, Send(1, value=5))
    submission = shards.submit(0)
    network.run(lambda: is_accepted(network, submission))


def test_i12_recovery_from_every_prefix_of_the_log_goes_on():
    network, shards = build_network()
    shards.make(0, Send(1, value=ETHER))
    submission = shards.submit(0)
    network.run(lambda: is_accepted(network, submission))
    network.run_blocks(1)
    records = network.replicas["beacon-0"].records
    for length in range(len(records) + 1):
        revived, _ = build_network()
        revived.replicas["beacon-0"].records = list(records[:length])
        revived.now_ms = network.now_ms
        replica = revived.restart("beacon-0")
        height = replica.machine.final_block.header.height
        revived.inject(SubmitCrosslink(submission))
        revived.run(
            lambda machine=replica.machine, goal=height + 3: machine.final_block.header.height >= goal
        )
        assert is_accepted(revived, submission)
        logged = [record for record in replica.records if isinstance(record, SubmissionRecord)]
        assert [record.submission for record in logged] == [submission], "bodies are logged once"


def test_s5_recovery_keeps_every_body_that_a_vote_may_rest_on():
    """Two leaders proposed one range of blocks, each with another congestion: a certificate of either may still come."""
    network, shards = build_network(PAIRS)
    shards.make(0, Send(1, value=ETHER))
    twins = [shards.models[0].build_submission(congestion=congestion) for congestion in (0, 7)]
    replica = network.replicas["beacon-0"]
    replica.records = [SubmissionRecord(twin) for twin in twins]
    machine = network.restart("beacon-0").machine
    assert [machine.get_submission(twin.crosslink.hash) for twin in twins] == twins


def leave_second_behind(network, shards, count):
    """Let the first replica accept ``count`` crosslinks of shard 0 while the second hears nothing; return the last submission."""
    network.drop = drop_second_replica
    for _ in range(count):
        shards.follow()
        shards.make(0, Send(1, value=ETHER))
        submission = shards.submit(0, to="beacon-0")
        last = submission.crosslink.last_height
        network.run(lambda goal=last: shards.machine.state.shards[0].last_height >= goal)
    return submission


def test_replica_that_was_away_catches_up_with_bodies():
    network, shards = build_network([(0, 1, 2), (3,)])
    submission = leave_second_behind(network, shards, 5)
    assert network.heights()[1] == 0
    network.drop = drop_nothing
    network.run(lambda: network.heights()[1] >= network.heights()[0] - 1 and is_accepted(network, submission))
    first, second = (replica.machine for replica in network.replicas.values())
    network.run(lambda: first.final_block.hash == second.final_block.hash)
    assert first.state == second.state


def test_g1_who_catches_up_asks_for_the_bodies_of_a_whole_range_at_once():
    """One block after the other, each would cost a round trip: on long links a replica comes too late for ever."""
    network, shards = build_network([(0, 1, 2), (3,)])
    leave_second_behind(network, shards, 6)
    target = network.heights()[0]
    network.drop, network.delay_ms = drop_nothing, 300
    network.sent.clear()
    began = network.now_ms
    network.run(lambda: network.heights()[1] >= target)
    # One exchange to learn of the gap and one for its blocks, then one for all bodies of each range of eight.
    assert network.now_ms - began < (2 + target // 8 + 1) * 2 * 300 + 2 * network.genesis.preset.block_time_ms
    asked = [
        message.crosslink
        for name, to, message in network.sent
        if name == "beacon-1" and to == "beacon-0" and isinstance(message, CrosslinkRequest)
    ]
    assert len(asked) == len(set(asked)), "each was asked for once ahead"


def test_g1_bodies_ahead_that_are_lost_are_asked_for_when_their_block_is_the_next():
    network, shards = build_network([(0, 1, 2), (3,)])
    leave_second_behind(network, shards, 4)
    target, lost = network.heights()[0], set()

    def drop_each_once(_nodes, message):
        key = message.submission.crosslink.hash if isinstance(message, SubmitCrosslink) else None
        is_lost = key is not None and key not in lost
        lost.add(key)
        return is_lost

    network.drop = drop_each_once
    network.run(lambda: network.heights()[1] >= target)
    assert len(lost) > 4


def test_g1_who_catches_up_announces_no_old_blocks_though_their_bodies_come_later():
    network, shards = build_network([(0, 1, 2), (3,)])
    leave_second_behind(network, shards, 5)
    target = network.heights()[0]
    network.run_ms(1000)  # the newest blocks may come by themselves
    network.drop = drop_nothing
    network.sent.clear()
    network.run(lambda: network.heights()[1] >= target)
    told = [message for name, to, message in network.sent if name == "beacon-1" and to is None]
    old = [message for message in told if isinstance(message, FinalBlock | BundleAnnouncement)]
    assert [message for message in old if isinstance(message, BundleAnnouncement)] == []
    assert [message.block.header.height for message in old if message.block.header.height <= target] == []
    goal = network.heights()[1] + 2
    network.run(lambda: network.heights()[1] >= goal)
    announced = [message for name, _, message in network.sent if name == "beacon-1"]
    assert any(isinstance(message, FinalBlock) for message in announced), "new ones it announces again"


def test_outputs_of_the_engine_keep_the_order_in_which_it_made_them(monkeypatch):
    network, shards = build_network()
    network.run_blocks(1)
    machine = shards.machine
    tip = machine.final_block
    header = replace(tip.header, height=tip.header.height + 1, parent=tip.hash, content=tip.header.content)
    request = RequestValidation(block=replace(tip, header=header, body=b"garbage"), parent=tip)
    third = Notice("third", BEACON, {})
    monkeypatch.setattr(machine.engine, "on_validated", lambda *_, **__: [third])
    effects = machine._run([request, Notice("second", BEACON, {})], network.now_ms)
    assert [effect.kind for effect in effects] == ["beacon.invalid", "second", "third"]


def test_events_and_messages_of_others_are_ignored():
    network, shards = build_network()
    network.run_blocks(1)
    machine = shards.machine
    for event in (
        Executed(block_hash=ZERO_HASH, summary=None, error="x"),
        Signed(votes=()),
        TimerFired("unknown"),
        TimerFired("engine.unknown"),
        TimerFired("crosslink.fetch"),
        MessageReceived("shard-0-0", 0, Transactions(shard=0, raw=b"", ends=())),
        MessageReceived("shard-0-0", 0, Status(shard=0, slot=9, final_height=9, final_hash=ZERO_HASH)),
    ):
        effects = machine.step(event, network.now_ms)
        assert not [effect for effect in effects if isinstance(effect, Broadcast | SendEffect | Persist)]


@pytest.mark.parametrize("body", [b"", b"\xff", b"\x91\x91\x00", b"\xdc\x00\x00"])
def test_proposal_with_a_garbage_body_never_raises(body):
    network, shards = build_network(PAIRS)
    network.run_blocks(1)
    tip = shards.machine.final_block
    block = Block(
        header=replace(tip.header, slot=tip.header.slot + 1, parent=tip.hash, height=tip.header.height + 1),
        justification=tip.justification,
        body=body,
        signature=bytes(96),
        beacon_proof=b"",
    )
    network.inject(Proposal(block), sender="beacon-9")
    network.run_blocks(2)


def test_same_events_give_the_same_effects():
    traces = []
    for _ in range(2):
        network, shards = build_network(PAIRS)
        shards.make(0, Send(1, value=ETHER))
        submission = shards.submit(0)
        network.run(lambda network=network, submission=submission: is_accepted(network, submission))
        traces.append([repr(effect) for replica in network.replicas.values() for effect in replica.effects])
    assert traces[0] == traces[1]
    assert TagCrypto().sign(b"k", b"m") == TagCrypto().sign(b"k", b"m")
