"""X4: nothing a shard sends can halt the beacon, whatever bytes of a good submission are changed."""

import msgspec
from crosslink_test_model import ETHER, Send, ShardModel, TagCrypto, build_genesis
from hypothesis import given, settings
from hypothesis import strategies as st

from crosslink.beacon import BeaconMachine
from shardyard.consensus.engine import NoBlockSource
from shardyard.effects import Notice
from shardyard.errors import RemoteProtocolError
from shardyard.events import MessageReceived, Started
from shardyard.ids import BEACON
from shardyard.messages import CrosslinkRequest, SubmitCrosslink, decode_message, encode_message
from shardyard.receipts import ReceiptKind

CRYPTO = TagCrypto()
GENESIS = build_genesis(2, validators_per_shard=2)


def build_good():
    model = ShardModel(GENESIS, CRYPTO, 0)
    call = Send(1, value=ETHER, kind=ReceiptKind.CALL, gas_limit=50_000, gas_price=10**9, reply_gas=20_000)
    model.make_block([call, Send(1, value=1)])
    model.make_block([Send(1, value=2)], burnt=3)
    return model.build_submission()


GOOD = build_good()
DATA = encode_message(SubmitCrosslink(GOOD))
edits = st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 255)), min_size=1, max_size=4)


@settings(max_examples=400)
@given(edits)
def test_changed_bytes_are_refused_and_the_good_submission_is_still_taken(changes):
    machine = BeaconMachine(GENESIS, CRYPTO, (), NoBlockSource())
    machine.step(Started(), GENESIS.timestamp_ms)
    data = bytearray(DATA)
    for at, value in changes:
        data[at] = value
    try:
        message = decode_message(bytes(data))
    except RemoteProtocolError:
        return
    machine.step(MessageReceived("shard-0-0", BEACON, message), GENESIS.timestamp_ms)
    if isinstance(message, SubmitCrosslink) and machine.get_submission(message.submission.crosslink.hash):
        # What nobody signs and nothing restricts yet: the claimed fullness of the inbox (X9).
        claimed = message.submission.crosslink.congestion
        crosslink = msgspec.structs.replace(GOOD.crosslink, congestion=claimed)
        assert message.submission == msgspec.structs.replace(GOOD, crosslink=crosslink)
        if message.submission != GOOD:
            return  # a twin that claims another fullness has the place: one for each parent is enough
    machine.step(MessageReceived("shard-0-0", BEACON, SubmitCrosslink(GOOD)), GENESIS.timestamp_ms)
    answers = machine.step(
        MessageReceived("shard-1-0", BEACON, CrosslinkRequest(GOOD.crosslink.hash)), GENESIS.timestamp_ms
    )
    assert len(answers) == 1


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 2), st.integers(0, 1))
def test_arbitrary_bytes_in_place_of_receipts_are_refused(data, at, block):
    outboxes = [list(outbox) for outbox in GOOD.outboxes]
    outboxes[block][at % len(outboxes[block])] = data
    forged = SubmitCrosslink(
        type(GOOD)(
            crosslink=GOOD.crosslink,
            headers=GOOD.headers,
            outboxes=tuple(tuple(outbox) for outbox in outboxes),
            proof=GOOD.proof,
        )
    )
    machine = BeaconMachine(GENESIS, CRYPTO, (), NoBlockSource())
    effects = machine.step(MessageReceived("shard-0-0", BEACON, forged), GENESIS.timestamp_ms)
    assert [effect.kind for effect in effects if isinstance(effect, Notice)] == ["refused"]
