"""The mempool under generated traffic: caps hold, runs are offered in order, refusals change nothing (I14)."""

from hypothesis import given
from hypothesis import strategies as st

from shards.mempool import Mempool, MempoolEntry, MempoolError, MempoolLimits
from shardyard.ids import Address, Hash32
from tests.property.shards.plain_mempool import PlainMempool

SENDERS = 4
LIMITS = MempoolLimits(max_transactions=12, max_bytes=900, max_per_sender=6, max_gap=3)

adding = st.tuples(
    st.just("add"),
    st.integers(0, SENDERS - 1),
    st.integers(0, 12),  # nonce
    st.integers(1, 40),  # max fee
    st.integers(0, 40),  # tip
    st.integers(1, 120),  # bytes
)
advancing = st.tuples(st.just("final"), st.integers(0, SENDERS - 1), st.integers(0, 3), st.integers(0, 30))
removing = st.tuples(st.just("remove"), st.integers(0, 30))
including = st.tuples(st.just("include"), st.integers(0, 5))
discarding = st.tuples(st.just("discard"), st.integers(0, 5))
actions = st.lists(st.one_of(adding, adding, adding, advancing, removing, including, discarding), max_size=60)


class Model:
    """Accounts beside a pool."""

    def __init__(self):
        self.pool = Mempool(LIMITS)
        self.nonces = [0] * SENDERS
        self.balances = [10**6] * SENDERS
        self.count = 0
        self.blocks = []

    def run(self, action):
        match action:
            case ("add", sender, nonce, fee, tip, size):
                self.add(sender, nonce, fee, tip, size)
            case ("final", sender, steps, cut):
                self.nonces[sender] += steps
                self.balances[sender] = max(0, self.balances[sender] - cut * 10**4)
                account = (address(sender), self.nonces[sender], self.balances[sender])
                gone = self.pool.on_final(Hash32(bytes(32)), [account])
                assert not any(tx_hash in self.pool for tx_hash in gone)
            case ("remove", index):
                entries = list(self.pool)
                if entries:
                    self.pool.remove([entries[index % len(entries)].hash])
            case ("include", index):
                block = Hash32(bytes((index,)) * 32)
                self.blocks.append(block)
                self.pool.mark_included(block, self.pool.select(1, 60_000, 10**6, self.blocks)[2])
            case ("discard", index):
                block = Hash32(bytes((index,)) * 32)
                self.blocks = [other for other in self.blocks if other != block]
                self.pool.on_discarded(block)

    def add(self, sender, nonce, fee, tip, size):
        self.count += 1
        entry = MempoolEntry(
            hash=Hash32(self.count.to_bytes(32, "big")),
            sender=address(sender),
            nonce=nonce,
            gas_limit=21_000,
            max_fee=fee,
            tip=min(tip, fee),
            cost=21_000 * fee,
            raw=bytes(size),
        )
        before = set(self.pool)
        stale = {old for old in before if old.nonce < self.nonces[SENDER_OF[old.sender]]}
        try:
            removed = self.pool.add(entry, self.nonces[sender], self.balances[sender])
        except MempoolError:
            assert before - stale <= set(self.pool) <= before
        else:
            assert entry.hash in self.pool
            assert not any(tx_hash in self.pool for tx_hash in removed)

    def check(self):
        entries = list(self.pool)
        assert len(entries) == len(self.pool) <= LIMITS.max_transactions
        assert sum(len(entry.raw) for entry in entries) == self.pool.size_bytes <= LIMITS.max_bytes
        pending, queued = self.pool.get_content()
        assert self.pool.get_status() == (
            sum(len(run) for run in pending.values()),
            sum(len(rest) for rest in queued.values()),
        )
        for sender in range(SENDERS):
            run = [entry.nonce for entry in pending.get(address(sender), [])]
            rest = [entry.nonce for entry in queued.get(address(sender), [])]
            assert len(run) + len(rest) <= LIMITS.max_per_sender
            assert run == list(range(run[0], run[0] + len(run))) if run else True
            assert not rest or not run or rest[0] > run[-1] + 1
        self.check_selection()

    def check_selection(self):
        raw, ends, hashes = self.pool.select(5, 100_000, 300)
        chosen = [self.pool.get(tx_hash) for tx_hash in hashes]
        assert len(set(hashes)) == len(hashes) == len(ends)
        assert len(raw) == (ends[-1] if ends else 0) <= 300
        assert sum(entry.gas_limit for entry in chosen) <= 100_000
        assert all(entry.max_fee >= 5 for entry in chosen)
        pending, _ = self.pool.get_content()
        for sender, run in pending.items():
            mine = [entry for entry in chosen if entry.sender == sender]
            assert mine == run[: len(mine)]


def address(sender):
    return Address(bytes((sender + 1,)) * 20)


SENDER_OF = {address(sender): sender for sender in range(SENDERS)}


@given(actions)
def test_caps_hold_and_runs_are_offered_in_order(script):
    model = Model()
    for action in script:
        model.run(action)
        model.check()


def run_on(pool, script):
    """Run a script on one kind of pool; return everything it answered."""
    nonces, balances, blocks, story = [0] * SENDERS, [10**6] * SENDERS, [], []
    for number, action in enumerate(script):
        match action:
            case ("add", sender, nonce, fee, tip, size):
                entry = MempoolEntry(
                    hash=Hash32(number.to_bytes(32, "big")),
                    sender=address(sender),
                    nonce=nonce,
                    gas_limit=21_000,
                    max_fee=fee,
                    tip=min(tip, fee),
                    cost=21_000 * fee,
                    raw=bytes(size),
                )
                try:
                    story.append(pool.add(entry, nonces[sender], balances[sender]))
                except MempoolError as error:
                    story.append(str(error))
            case ("final", sender, steps, cut):
                nonces[sender] += steps
                balances[sender] = max(0, balances[sender] - cut * 10**4)
                account = (address(sender), nonces[sender], balances[sender])
                story.append(pool.on_final(Hash32(bytes(32)), [account]))
            case ("remove", index):
                entries = list(pool)
                pool.remove([entries[index % len(entries)].hash] if entries else [])
            case ("include", index):
                block = Hash32(bytes((index,)) * 32)
                blocks.append(block)
                chosen = pool.select(1, 60_000, 10**6, blocks)
                story.append(chosen)
                pool.mark_included(block, chosen[2])
            case ("discard", index):
                block = Hash32(bytes((index,)) * 32)
                blocks = [other for other in blocks if other != block]
                pool.on_discarded(block)
        story.append((list(pool), pool.get_status(), pool.size_bytes, pool.select(5, 10**6, 600, blocks)))
    return story


@given(actions)
def test_native_tables_answer_as_the_plain_rules_do(script):
    assert run_on(Mempool(LIMITS), script) == run_on(PlainMempool(LIMITS), script)
