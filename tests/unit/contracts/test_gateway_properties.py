"""Whatever is sent, the gateway agrees with a model of ten lines, and escrow is exactly what was paid (X2)."""

from dataclasses import dataclass

from eth_abi import encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardyard.ids import GATEWAY
from shardyard.receipts import compute_escrow
from tests.unit.contracts.chain import SHARD_COUNT, Chain, encode_interop, selector

GWEI = 10**9
BASE_FEE_OF_2 = 700 * GWEI
LIMIT = 16_000_000


@dataclass(frozen=True)
class Request:
    dst: int
    gas_limit: int
    gas_price: int
    reply_gas: int
    deadline: int
    value: int
    payload: bytes

    @property
    def cost(self) -> int:
        return (self.gas_limit + self.reply_gas) * self.gas_price

    def is_acceptable(self) -> bool:
        return (
            1 <= self.dst < SHARD_COUNT
            and self.gas_limit <= LIMIT
            and self.reply_gas <= LIMIT
            and (BASE_FEE_OF_2 if self.dst == 2 else 0) <= self.gas_price < 1 << 64
            and self.deadline < 1 << 64
            and self.value >= self.cost
        )

    def encode(self) -> bytes:
        words = {
            "gasLimit(uint256)": self.gas_limit,
            "gasPrice(uint256)": self.gas_price,
            "replyGas(uint256)": self.reply_gas,
            "deadline(uint256)": self.deadline,
        }
        attributes = [selector(name) + word.to_bytes(32, "big") for name, word in words.items()]
        recipient = encode_interop(31337 + self.dst, b"\xcc" * 20)
        return selector("sendMessage(bytes,bytes,bytes[])") + encode(
            ["bytes", "bytes", "bytes[]"], [recipient, self.payload, attributes]
        )


def around(*edges: int) -> st.SearchStrategy[int]:
    return st.sampled_from([value for edge in edges for value in (edge - 1, edge, edge + 1) if value >= 0])


gas = st.one_of(st.integers(0, 300_000), around(LIMIT))
requests = st.builds(
    Request,
    dst=st.integers(0, SHARD_COUNT),
    gas_limit=gas,
    gas_price=st.one_of(st.integers(0, 1_000 * GWEI), around(BASE_FEE_OF_2, 1 << 64)),
    reply_gas=gas,
    deadline=st.one_of(st.just(0), st.integers(0, 1 << 32), around(1 << 64)),
    value=st.one_of(st.integers(0, GWEI), st.integers(0, 10**19)),
    payload=st.binary(max_size=100),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests, pays_exactly=st.booleans())
def test_a_send_is_taken_iff_the_model_takes_it_and_escrow_is_what_was_paid(
    chain: Chain, request: Request, pays_exactly: bool
) -> None:
    if pays_exactly and request.cost < 10**20:
        request = Request(**{**vars(request), "value": request.cost})
    # One chain serves all examples: each send stands on the state the last one left.
    if chain.read(GATEWAY, "baseFeeOf(uint256)", 2) == 0:
        chain.execute(link_base_fees=[(2, BASE_FEE_OF_2)])
    answer = chain.call(GATEWAY, request.encode(), value=request.value)
    assert (answer.status == "success") == request.is_acceptable()
    if answer.status != "success" or request.value > 10**18:  # account 0 has 10^22 wei for all examples
        return
    (receipt,) = chain.transact(GATEWAY, request.encode(), value=request.value).receipts
    assert compute_escrow(receipt) == request.value
    assert (receipt.dst, receipt.gas_limit, receipt.gas_price) == (
        request.dst,
        request.gas_limit,
        request.gas_price,
    )
    assert (receipt.reply_gas, receipt.deadline, receipt.payload) == (
        request.reply_gas,
        request.deadline,
        request.payload,
    )
    assert receipt.id == answer.output
    assert chain.balance(GATEWAY) == 0
