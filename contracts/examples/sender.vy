# pragma version 0.4.3
# pragma evm-version prague
"""
@title Sender: a contract that sends messages and remembers how each of them ended
@license Apache-2.0
@notice
    Every message gets exactly one receiveReply: ok with the receiver's return data, or not ok with the
    reason and the message's value back. A reply that fails, or needs more than replyGas, leaves its value
    claimable at the gateway.
"""

interface Gateway:
    def sendMessage(
        recipient: Bytes[64], payload: Bytes[1024], attributes: DynArray[Bytes[128], 8]
    ) -> bytes32: payable
    def transfer(dstShard: uint256, to: address) -> bytes32: payable
    def claim() -> uint256: nonpayable

event Sent:
    sendId: indexed(bytes32)

event ReplyReceived:
    sendId: indexed(bytes32)
    ok: bool
    data: Bytes[1024]
    value: uint256

flag Status:
    PENDING
    DELIVERED
    BOUNCED

GATEWAY: constant(address) = 0x0000000000000000000000000000000000005a7D

statusOf: public(HashMap[bytes32, Status])  # 0 never sent here, 1 pending, 2 delivered, 4 bounced
sent: public(uint256)
delivered: public(uint256)
bounced: public(uint256)
lastId: public(bytes32)
lastValue: public(uint256)  # wei that came back with the last reply; what it said is in the log


@external
@payable
def __default__():
    # Takes what claim() pays out and what transfers bring.
    pass


@external
@payable
def send(recipient: Bytes[64], payload: Bytes[1024], attributes: DynArray[Bytes[128], 8]) -> bytes32:
    """
    @notice Send a message through the gateway; msg.value covers its gas, the rest travels with it
    """
    id: bytes32 = extcall Gateway(GATEWAY).sendMessage(recipient, payload, attributes, value=msg.value)
    self.statusOf[id] = Status.PENDING
    self.sent += 1
    self.lastId = id
    log Sent(sendId=id)
    return id


@external
@payable
def sendValue(dstShard: uint256, to: address) -> bytes32:
    """
    @notice Transfer msg.value to an account of another shard
    """
    return extcall Gateway(GATEWAY).transfer(dstShard, to, value=msg.value)


@external
@payable
def receiveReply(sendId: bytes32, ok: bool, data: Bytes[1024]):
    """
    @notice How the message ended; called by the gateway once for each message
    """
    assert msg.sender == GATEWAY, "only the gateway delivers replies"
    assert self.statusOf[sendId] == Status.PENDING, "no such message is pending"
    if ok:
        self.statusOf[sendId] = Status.DELIVERED
        self.delivered += 1
    else:
        self.statusOf[sendId] = Status.BOUNCED
        self.bounced += 1
    self.lastValue = msg.value
    log ReplyReceived(sendId=sendId, ok=ok, data=data, value=msg.value)


@external
def claim() -> uint256:
    """
    @notice Fetch what the gateway holds for this contract
    """
    return extcall Gateway(GATEWAY).claim()
