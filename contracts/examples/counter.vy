# pragma version 0.4.3
# pragma evm-version prague
"""
@title Counter: the smallest contract that takes messages from other shards
@license Apache-2.0
@notice
    increment() counts on its own shard. A message from another shard counts too: the gateway calls
    receiveMessage with the sender's ERC-7930 address, the payload and the message's value. Only the gateway
    may call it: it alone knows that the sender is who the message says.
"""

event Counted:
    count: uint256
    chainId: indexed(uint256)
    account: indexed(address)

event MessageReceived:
    receiveId: indexed(bytes32)
    sender: Bytes[64]
    payload: Bytes[1024]
    value: uint256

GATEWAY: constant(address) = 0x0000000000000000000000000000000000005a7D
# The answer ERC-7786 asks for: anything else bounces the message.
RECEIVED: constant(bytes4) = method_id("receiveMessage(bytes32,bytes,bytes)", output_type=bytes4)

count: public(uint256)
received: public(uint256)
lastChainId: public(uint256)
lastSender: public(address)


@external
def increment() -> uint256:
    """
    @notice Count once, from this shard
    """
    return self._count(chain.id, msg.sender)


@external
@payable
def receiveMessage(receiveId: bytes32, sender: Bytes[64], payload: Bytes[1024]) -> bytes4:
    """
    @notice Count once, from another shard (ERC-7786)
    @param sender ERC-7930 address: 0x0001 0000 02 <chain id, 2 bytes> 14 <address, 20 bytes>
    """
    assert msg.sender == GATEWAY, "only the gateway delivers messages"
    assert len(sender) == 28, "sender: expected 28 bytes of ERC-7930"
    word: uint256 = convert(slice(sender, 0, 28), uint256)
    self.received += 1
    chain_id: uint256 = (word >> 168) & 65535
    account: address = convert(convert(word & convert(max_value(uint160), uint256), uint160), address)
    self.lastChainId = chain_id
    self.lastSender = account
    self._count(chain_id, account)
    log MessageReceived(receiveId=receiveId, sender=sender, payload=payload, value=msg.value)
    return RECEIVED


@internal
def _count(chain_id: uint256, account: address) -> uint256:
    self.count += 1
    log Counted(count=self.count, chainId=chain_id, account=account)
    return self.count
