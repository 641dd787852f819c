# pragma version 0.4.3
# pragma evm-version prague
"""
@title Reverter: refuses messages and replies in every way there is
@license Apache-2.0
@notice
    The first byte of a message's payload chooses how it fails: 1 a wrong answer, 2 all gas used, 3 not at
    all, anything else a revert with a reason. Replies always revert, so the value of what this contract
    sends and gets back becomes claimable at the gateway.
"""

interface Gateway:
    def sendMessage(
        recipient: Bytes[64], payload: Bytes[1024], attributes: DynArray[Bytes[128], 8]
    ) -> bytes32: payable
    def claim() -> uint256: nonpayable

GATEWAY: constant(address) = 0x0000000000000000000000000000000000005a7D
RECEIVED: constant(bytes4) = method_id("receiveMessage(bytes32,bytes,bytes)", output_type=bytes4)

attempts: public(uint256)  # stays 0 while every message fails: a bounce rolls everything back


@external
@payable
def __default__():
    pass


@external
@payable
def send(recipient: Bytes[64], payload: Bytes[1024], attributes: DynArray[Bytes[128], 8]) -> bytes32:
    """
    @notice Send a message whose reply this contract will refuse
    """
    return extcall Gateway(GATEWAY).sendMessage(recipient, payload, attributes, value=msg.value)


@external
@payable
def receiveMessage(receiveId: bytes32, sender: Bytes[64], payload: Bytes[1024]) -> bytes4:
    """
    @notice Fail as the payload asks
    """
    self.attempts += 1
    mode: uint256 = 0
    if len(payload) != 0:
        mode = convert(slice(payload, 0, 1), uint256)
    if mode == 1:
        return 0xdeadbeef
    if mode == 2:
        raise UNREACHABLE  # the INVALID instruction: takes all gas, gives no reason
    if mode == 3:
        return RECEIVED
    raise "the reverter reverts"


@external
@payable
def receiveReply(sendId: bytes32, ok: bool, data: Bytes[1024]):
    """
    @notice Refuse the reply
    """
    raise "the reverter takes no replies"


@external
def claim() -> uint256:
    """
    @notice Fetch what the gateway holds for this contract
    """
    return extcall Gateway(GATEWAY).claim()
