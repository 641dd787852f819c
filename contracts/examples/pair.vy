# pragma version 0.4.3
# pragma evm-version prague
"""
@title Pair: a constant-product market between two tokens it keeps the books of
@license Apache-2.0
@notice
    Balances live in the pair itself, so a swap is one call that reads and writes both reserves and two
    balances: every swap of a pair depends on the one before. The load of benchmarks and of the demo.
"""

event Swapped:
    trader: indexed(address)
    sold: uint256
    bought: uint256
    is_zero_for_one: bool

FEE_PERMILLE: constant(uint256) = 3

reserve0: public(uint256)
reserve1: public(uint256)
balance0: public(HashMap[address, uint256])
balance1: public(HashMap[address, uint256])
cumulative_price: public(uint256)
last_update: public(uint256)


@deploy
def __init__(reserve0: uint256, reserve1: uint256):
    self.reserve0 = reserve0
    self.reserve1 = reserve1


@external
def deposit(amount0: uint256, amount1: uint256):
    """
    @notice Credit the caller with play money of both kinds
    """
    self.balance0[msg.sender] += amount0
    self.balance1[msg.sender] += amount1


@external
def swap(sold: uint256, least: uint256, is_zero_for_one: bool) -> uint256:
    """
    @notice Sell `sold` of one kind for at least `least` of the other
    """
    have: uint256 = self.reserve0
    give: uint256 = self.reserve1
    if not is_zero_for_one:
        have = self.reserve1
        give = self.reserve0
    paid: uint256 = sold * (1000 - FEE_PERMILLE)
    bought: uint256 = paid * give // (have * 1000 + paid)
    assert bought >= least and bought > 0, "pair: too little"
    assert (have + sold) * (give - bought) >= have * give, "pair: k"
    if is_zero_for_one:
        self.balance0[msg.sender] -= sold
        self.balance1[msg.sender] += bought
        self.reserve0 = have + sold
        self.reserve1 = give - bought
    else:
        self.balance1[msg.sender] -= sold
        self.balance0[msg.sender] += bought
        self.reserve1 = have + sold
        self.reserve0 = give - bought
    self.cumulative_price += (self.reserve1 << 112) // self.reserve0 * (block.timestamp - self.last_update)
    self.last_update = block.timestamp
    log Swapped(trader=msg.sender, sold=sold, bought=bought, is_zero_for_one=is_zero_for_one)
    return bought
