# pragma version 0.4.3
# pragma evm-version prague
# pragma optimize gas
"""
@title Gateway: where cross-shard messages leave a shard, and where refused replies are claimed
@license Apache-2.0
@notice
    Predeployed at 0x0000000000000000000000000000000000005a7d on every shard (P2), without a constructor. A
    send is an ordinary call: the gateway checks the message, numbers it, burns RECEIPT_GAS (X2) and logs
    Outbox. When the transaction commits, the executor turns each Outbox log into a receipt, gives it its
    place on the link (X1) and takes the escrow out of this contract's balance.

    The executor owns some of the storage: it writes base_fees and last_seq and credits claimable. The slots
    are part of the protocol, so the order of the storage variables is fixed. A send writes one slot only,
    its sender's nonce: sends by different accounts do not conflict in the parallel executor.

    Errors are strings, apart from ERC-7786's UnsupportedAttribute(bytes4). Arguments beyond their declared
    size (payload 16 KiB, 8 attributes of 128 bytes) are refused while decoding, with no reason given.
"""

event MessageSent:  # ERC-7786
    sendId: indexed(bytes32)
    sender: Bytes[28]
    recipient: Bytes[64]
    payload: Bytes[MAX_PAYLOAD]
    value: uint256
    attributes: DynArray[Bytes[MAX_ATTRIBUTE], MAX_ATTRIBUTES]

event Outbox:  # read by the executor: changing it changes the protocol
    id: indexed(bytes32)
    kind: uint8
    dst: uint32
    sender: address
    target: address
    value: uint256
    gas_limit: uint64
    gas_price: uint64
    reply_gas: uint64
    refund_to: address
    deadline: uint64
    payload: Bytes[MAX_PAYLOAD]

event Claimed:
    account: indexed(address)
    amount: uint256

struct Terms:
    gas_limit: uint256  # for receiveMessage at the destination
    gas_price: uint256  # wei per gas, for the delivery and for the reply
    reply_gas: uint256  # for receiveReply back here
    refund_to: address  # takes unspent gas, and the value of a reply that nobody takes
    deadline: uint256  # last beacon height at which the destination may execute; 0 = none

KIND_CALL: constant(uint8) = 1
KIND_TRANSFER: constant(uint8) = 2

CHAIN_ID_BASE: constant(uint256) = 31337  # chain id of shard 0 (P1)
MAX_PAYLOAD: constant(uint256) = 16384
MAX_ATTRIBUTE: constant(uint256) = 128
MAX_ATTRIBUTES: constant(uint256) = 8
MAX_RECEIPT_GAS: constant(uint256) = 16_000_000  # X5: no receipt may block the head of an inbox

DEFAULT_GAS_LIMIT: constant(uint256) = 200_000
DEFAULT_REPLY_GAS: constant(uint256) = 100_000
MIN_DEFAULT_GAS_PRICE: constant(uint256) = 10**9

# X2: a flat price for carrying, proving and executing a receipt, burnt as gas where it is emitted.
CALL_RECEIPT_GAS: constant(uint256) = 40_000
TRANSFER_RECEIPT_GAS: constant(uint256) = 25_000
BURNER: constant(address) = 0x0000000000000000000000000000000000005a7E  # its code is INVALID

MESSAGE_TAG: constant(Bytes[20]) = b"shardyard/message/v1"
# ERC-7930: 0x0001 (version 1) 0000 (chain type eip155) 02 (bytes of chain id), the chain id, 14, the address.
# Two bytes name every shard below 34,199; genesis refuses more.
INTEROP_HEADER: constant(uint256) = 16777218
INTEROP_LENGTH: constant(uint256) = 28

ATTRIBUTE_GAS_LIMIT: constant(bytes4) = method_id("gasLimit(uint256)", output_type=bytes4)
ATTRIBUTE_GAS_PRICE: constant(bytes4) = method_id("gasPrice(uint256)", output_type=bytes4)
ATTRIBUTE_REPLY_GAS: constant(bytes4) = method_id("replyGas(uint256)", output_type=bytes4)
ATTRIBUTE_REFUND_TO: constant(bytes4) = method_id("refundTo(address)", output_type=bytes4)
ATTRIBUTE_DEADLINE: constant(bytes4) = method_id("deadline(uint256)", output_type=bytes4)

nonces: HashMap[address, uint256]  # slot 0, written here, by the sender's own sends
base_fees: HashMap[uint256, uint256]  # slot 1, destination -> wei, written by the executor
claimable: HashMap[address, uint256]  # slot 2, credited by the executor, cleared by claim()
last_seq: HashMap[uint256, uint256]  # slot 3, destination -> last place on that link, written by the executor
shard_count: uint256  # slot 4, set in genesis


@external
@payable
def sendMessage(
    recipient: Bytes[64],
    payload: Bytes[MAX_PAYLOAD],
    attributes: DynArray[Bytes[MAX_ATTRIBUTE], MAX_ATTRIBUTES],
) -> bytes32:
    """
    @notice Send a message to a contract on another shard (ERC-7786). It answers with one receiveReply.
    @dev The message's value is what msg.value leaves after (gasLimit + replyGas) * gasPrice.
         Without attributes: gasLimit 200,000, replyGas 100,000, gasPrice twice the destination's base fee but
         at least 1 gwei, refundTo the sender, no deadline. Of a repeated attribute the last one counts.
    @param recipient ERC-7930 address: 0x0001 0000 02 <chain id, 2 bytes> 14 <address, 20 bytes>
    @param attributes each the selector and ABI word of gasLimit(uint256), gasPrice(uint256),
         replyGas(uint256), refundTo(address) or deadline(uint256), a beacon height
    @return Id of the message, handed to receiveMessage and receiveReply
    """
    dst: uint256 = 0
    target: address = empty(address)
    dst, target = self._read_recipient(recipient)
    self._require_other_shard(dst)

    base_fee: uint256 = self.base_fees[dst]
    terms: Terms = self._read_terms(attributes, self._default_gas_price(base_fee))
    assert terms.gas_limit <= MAX_RECEIPT_GAS, "gasLimit above the limit of a receipt"
    assert terms.reply_gas <= MAX_RECEIPT_GAS, "replyGas above the limit of a receipt"
    assert terms.gas_price <= convert(max_value(uint64), uint256), "gasPrice too high"
    assert terms.gas_price >= base_fee, "gasPrice below the base fee of the destination"
    assert terms.deadline <= convert(max_value(uint64), uint256), "deadline too high"
    # No overflow: 2^25 times 2^64 at most.
    gas_cost: uint256 = unsafe_mul(unsafe_add(terms.gas_limit, terms.reply_gas), terms.gas_price)
    assert msg.value >= gas_cost, "msg.value does not cover the gas of delivery and reply"
    value: uint256 = unsafe_sub(msg.value, gas_cost)

    id: bytes32 = self._take_id()
    self._burn_gas(CALL_RECEIPT_GAS)
    log MessageSent(
        sendId=id,
        sender=self._interop_sender(),
        recipient=recipient,
        payload=payload,
        value=value,
        attributes=attributes,
    )
    log Outbox(
        id=id,
        kind=KIND_CALL,
        dst=convert(dst, uint32),
        sender=msg.sender,
        target=target,
        value=value,
        gas_limit=convert(terms.gas_limit, uint64),
        gas_price=convert(terms.gas_price, uint64),
        reply_gas=convert(terms.reply_gas, uint64),
        refund_to=terms.refund_to,
        deadline=convert(terms.deadline, uint64),
        payload=payload,
    )
    return id


@external
@payable
def transfer(dstShard: uint256, to: address) -> bytes32:
    """
    @notice Credit `to` on another shard with msg.value. No code runs there and no reply comes back.
    @return Id of the message
    """
    assert msg.value != 0, "nothing to transfer"
    assert to != empty(address), "transfer to the zero address"
    self._require_other_shard(dstShard)
    id: bytes32 = self._take_id()
    self._burn_gas(TRANSFER_RECEIPT_GAS)
    log Outbox(
        id=id,
        kind=KIND_TRANSFER,
        dst=convert(dstShard, uint32),
        sender=msg.sender,
        target=to,
        value=msg.value,
        gas_limit=0,
        gas_price=0,
        reply_gas=0,
        refund_to=msg.sender,
        deadline=0,
        payload=b"",
    )
    return id


@external
@nonreentrant
def claim() -> uint256:
    """
    @notice Pay out what replies left here for the caller: value that its contract could not take (X8).
    @return The amount paid, in wei
    """
    amount: uint256 = self.claimable[msg.sender]
    assert amount != 0, "nothing to claim"
    self.claimable[msg.sender] = 0
    log Claimed(account=msg.sender, amount=amount)
    raw_call(msg.sender, b"", value=amount)
    return amount


@external
@pure
def supportsAttribute(selector: bytes4) -> bool:
    """
    @notice Whether sendMessage knows the attribute (ERC-7786)
    """
    return selector in [
        ATTRIBUTE_GAS_LIMIT,
        ATTRIBUTE_GAS_PRICE,
        ATTRIBUTE_REPLY_GAS,
        ATTRIBUTE_REFUND_TO,
        ATTRIBUTE_DEADLINE,
    ]


@external
@view
def quote(dstShard: uint256, gasLimit: uint256, replyGas: uint256) -> uint256:
    """
    @notice Wei to send on top of a message's value when its gasPrice is left to the gateway
    """
    self._require_other_shard(dstShard)
    return (gasLimit + replyGas) * self._default_gas_price(self.base_fees[dstShard])


@external
@view
def nonceOf(account: address) -> uint256:
    """
    @notice Number of messages `account` has sent from this shard, and the nonce of its next one
    """
    return self.nonces[account]


@external
@view
def computeId(account: address, nonce: uint256) -> bytes32:
    """
    @notice Id of the message that `account` sends from this shard with this gateway nonce
    """
    return self._compute_id(account, nonce)


@external
@view
def claimableOf(account: address) -> uint256:
    """
    @notice Wei that claim() would pay to `account`
    """
    return self.claimable[account]


@external
@view
def baseFeeOf(dstShard: uint256) -> uint256:
    """
    @notice The lowest gasPrice a message to `dstShard` may offer, in wei
    """
    return self.base_fees[dstShard]


@external
@view
def lastSequenceOf(dstShard: uint256) -> uint256:
    """
    @notice Place of the last receipt on the link to `dstShard`; the first is 1
    """
    return self.last_seq[dstShard]


@external
@view
def shardCount() -> uint256:
    """
    @notice Number of shards of this network
    """
    return self.shard_count


@internal
@pure
def _read_recipient(recipient: Bytes[64]) -> (uint256, address):
    assert len(recipient) == INTEROP_LENGTH, "recipient: expected 28 bytes of ERC-7930"
    word: uint256 = convert(slice(recipient, 0, INTEROP_LENGTH), uint256)
    # Version 1, eip155, two bytes of chain id; then, behind the chain id, the length of the address.
    assert word >> 184 == INTEROP_HEADER and (word >> 160) & 255 == 20, "recipient: not a shard's ERC-7930"
    chain_id: uint256 = (word >> 168) & 65535
    assert chain_id >= CHAIN_ID_BASE, "unknown shard"
    target: uint160 = convert(word & convert(max_value(uint160), uint256), uint160)
    return unsafe_sub(chain_id, CHAIN_ID_BASE), convert(target, address)


@internal
@view
def _interop_sender() -> Bytes[28]:
    word: uint256 = (INTEROP_HEADER << 184) | (chain.id << 168) | (20 << 160) | convert(msg.sender, uint256)
    return slice(convert(word << 32, bytes32), 0, INTEROP_LENGTH)


@internal
@view
def _require_other_shard(dst: uint256):
    assert dst < self.shard_count, "unknown shard"
    assert dst != unsafe_sub(chain.id, CHAIN_ID_BASE), "the destination is this shard"


@internal
@pure
def _default_gas_price(base_fee: uint256) -> uint256:
    # Twice the base fee outlives about six full blocks of growth between sending and delivery.
    return max(2 * base_fee, MIN_DEFAULT_GAS_PRICE)


@internal
@view
def _read_terms(
    attributes: DynArray[Bytes[MAX_ATTRIBUTE], MAX_ATTRIBUTES], default_gas_price: uint256
) -> Terms:
    terms: Terms = Terms(
        gas_limit=DEFAULT_GAS_LIMIT,
        gas_price=default_gas_price,
        reply_gas=DEFAULT_REPLY_GAS,
        refund_to=msg.sender,
        deadline=0,
    )
    for attribute: Bytes[MAX_ATTRIBUTE] in attributes:
        assert len(attribute) >= 4, "attribute: no selector"
        selector: bytes4 = convert(slice(attribute, 0, 4), bytes4)
        if not (
            selector
            in [
                ATTRIBUTE_GAS_LIMIT,
                ATTRIBUTE_GAS_PRICE,
                ATTRIBUTE_REPLY_GAS,
                ATTRIBUTE_REFUND_TO,
                ATTRIBUTE_DEADLINE,
            ]
        ):
            raw_revert(abi_encode(selector, method_id=method_id("UnsupportedAttribute(bytes4)")))
        assert len(attribute) == 36, "attribute: expected a selector and one word"
        argument: uint256 = extract32(attribute, 4, output_type=uint256)
        if selector == ATTRIBUTE_GAS_LIMIT:
            terms.gas_limit = argument
        elif selector == ATTRIBUTE_GAS_PRICE:
            terms.gas_price = argument
        elif selector == ATTRIBUTE_REPLY_GAS:
            terms.reply_gas = argument
        elif selector == ATTRIBUTE_DEADLINE:
            terms.deadline = argument
        else:
            assert argument <= convert(max_value(uint160), uint256), "refundTo: not an address"
            terms.refund_to = convert(convert(argument, uint160), address)
    return terms


@internal
@view
def _compute_id(account: address, nonce: uint256) -> bytes32:
    return keccak256(
        concat(MESSAGE_TAG, convert(chain.id, bytes32), convert(account, bytes20), convert(nonce, bytes32))
    )


@internal
def _take_id() -> bytes32:
    nonce: uint256 = self.nonces[msg.sender]
    self.nonces[msg.sender] = unsafe_add(nonce, 1)
    return self._compute_id(msg.sender, nonce)


@internal
def _burn_gas(amount: uint256):
    # A call passes on at most 63/64 of what is left: with less than this the burner would burn too little.
    assert msg.gas > amount + amount // 32 + 5_000, "not enough gas for the receipt"
    success: bool = raw_call(BURNER, b"", gas=amount, revert_on_failure=False)
    assert not success, "the burner does not burn"
