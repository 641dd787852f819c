"""X13: deliveries come before user transactions in every list of a block's transactions."""

from node.index.records import IndexedBlock
from shardyard.blocks import BeaconContent, ShardBody, build_genesis_block
from shardyard.codec import encode
from shardyard.ids import BEACON, ZERO_HASH

CONTENT = BeaconContent(
    crosslinks_root=ZERO_HASH, crosslink_count=0, state_root=ZERO_HASH, registry_root=ZERO_HASH
)


def test_x13_positions_count_deliveries_first_and_those_have_no_signed_bytes():
    block = IndexedBlock(
        header=build_genesis_block(ZERO_HASH, BEACON, 0, CONTENT).header,
        size=0,
        body=encode(ShardBody(raw=b"onethree", ends=(3, 8))),
        outcomes_data=b"",
        deliveries_data=(b"first", b"second", b"third"),
        outbox_data=(),
    )
    assert block.transaction_count == 5
    found = [block.get_raw_transaction(position) for position in range(5)]
    assert found == [None, None, None, b"one", b"three"]
