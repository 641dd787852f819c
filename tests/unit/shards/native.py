"""The executor of a shard over the native core and the mempool, for machines in virtual time: what ``node`` does, at once."""

import msgspec
from eth_abi import encode as abi_encode
from eth_account import Account
from eth_utils import to_checksum_address

from node.dev_accounts import DEV_ACCOUNTS
from node.executor import build_native_env, decode_body, summarise
from node.genesis_alloc import build_alloc, compute_alloc_supply, encode_alloc, get_dev_balances
from shards.mempool import Mempool, MempoolLimits
from shardyard import _native
from shardyard.events import Built, Executed
from shardyard.genesis import ShardGenesis
from shardyard.ids import GATEWAY, compute_chain_id
from tests.unit.shards.world import build_genesis

GWEI = 10**9


def build_native_genesis(shard_count=2):
    """Return a genesis whose shards start from the usual predeploys and development accounts, and their alloc."""
    alloc = build_alloc(shard_count=shard_count, balances=get_dev_balances())
    supply = compute_alloc_supply(alloc).to_bytes(32, "big")
    alloc_json = encode_alloc(alloc)
    roots = [
        _native.Core(chain_id=compute_chain_id(shard), shard=shard).init_genesis(alloc_json)
        for shard in range(shard_count)
    ]
    genesis = build_genesis(shard_count)
    shards = tuple(ShardGenesis(root, supply) for root in roots)
    return msgspec.structs.replace(genesis, shards=shards), alloc_json


def sign_transaction(shard, account, nonce, to, data, *, value, gas):
    fields = {
        "type": 2,
        "chainId": compute_chain_id(shard),
        "nonce": nonce,
        "gas": gas,
        "maxFeePerGas": 10 * GWEI,
        "maxPriorityFeePerGas": GWEI,
        "value": value,
        "data": data,
    }
    if to is not None:
        fields["to"] = to_checksum_address(to)
    return bytes(Account.sign_transaction(fields, account.private_key).raw_transaction)


def sign_shard_transfer(shard, nonce, dst, to, value, account=DEV_ACCOUNTS[0]):
    """Return a signed call of the gateway that moves ``value`` to ``to`` on shard ``dst``."""
    data = _native.keccak256(b"transfer(uint256,address)")[:4] + dst.to_bytes(32, "big") + to.rjust(32, b"\0")
    return sign_transaction(shard, account, nonce, GATEWAY, data, value=value, gas=300_000)


def sign_message(shard, nonce, dst, to, value, account=DEV_ACCOUNTS[0]):
    """Return a signed call of the gateway that sends a message with ``value`` to a contract on shard ``dst``."""
    recipient = bytes.fromhex("0001000002") + compute_chain_id(dst).to_bytes(2, "big") + b"\x14" + to
    selector = _native.keccak256(b"sendMessage(bytes,bytes,bytes[])")[:4]
    data = selector + abi_encode(["bytes", "bytes", "bytes[]"], [recipient, b"hello", []])
    return sign_transaction(shard, account, nonce, GATEWAY, data, value=value, gas=500_000)


class NativeExecutor:
    """Executes blocks of one shard with the native core; transactions come from a mempool."""

    def __init__(self, genesis, shard, alloc_json, threads=1):
        self.threads = threads
        self.genesis, self.shard, self.alloc_json = genesis, shard, alloc_json
        self.pool = Mempool(MempoolLimits(max_gas=genesis.preset.block_gas))
        self.get_ancestors = lambda _: ()
        self.results = {}
        self.built = {}
        self.replayed = []
        self.core = self._open()
        self.base = genesis.build_shard_block(shard).hash

    def _open(self):
        core = _native.Core(chain_id=compute_chain_id(self.shard), shard=self.shard, threads=self.threads)
        core.init_genesis(self.alloc_json)
        core.set_base(self.genesis.build_shard_block(self.shard).hash, 0)
        return core

    def submit(self, *raws):
        raw = b"".join(raws)
        ends = [sum(map(len, raws[: index + 1])) for index in range(len(raws))]
        batch = self.core.prepare(raw, [0, *ends])
        assert not any(batch.status), [batch.error(index) for index in range(len(raws))]
        self.pool.start_at(self.base)
        admitted = self.pool.admit(self.core, batch)
        problems = [admitted.error(index) for index in range(len(raws))]
        assert not any(problems), problems

    def get_balance(self, address):
        found = self.core.account(self.base, address)
        return int.from_bytes(found[1], "big") if found else 0

    def build(self, effect):
        env = effect.env
        ancestors = self.get_ancestors(env.parent_hash)
        batch = self.pool.select_batch(env.base_fee, env.gas_limit, effect.max_body_bytes, ancestors)
        native_env = build_native_env(env)
        try:
            result = self.core.execute(env.parent_hash, batch, native_env, "build", effect.inbox)
        except _native.UnknownParent:
            return Built(effect.request, b"", None)
        self.built[effect.request] = (result, batch)
        summary = summarise(result, len(result.included) // 4)
        return Built(effect.request, batch.encode_body(result.included), summary, result.access_list)

    def adopt(self, effect):
        result, batch = self.built.pop(effect.request)
        self._keep(effect.block_hash, effect.height, result, batch)

    def execute(self, effect):
        block = effect.block
        try:
            body = decode_body(block.body, self.genesis.preset.max_body_bytes)
            batch = self.core.prepare(body.raw, (0, *body.ends))
            native_env = build_native_env(effect.env)
            given = effect.access_list or None
            result = self.core.execute(
                block.header.parent, batch, native_env, "validate", effect.inbox, given
            )
        except _native.CoreError as error:
            return Executed(block.hash, None, repr(error))
        if given is not None:
            self.replayed.append(block.hash)
        self._keep(block.hash, block.header.height, result, batch)
        return Executed(block.hash, summarise(result, len(batch)), "")

    def _keep(self, block_hash, height, result, batch):
        self.core.adopt(result, block_hash, height)
        self.results[block_hash] = (height, result, batch)
        self.pool.mark_batch(block_hash, batch, result.included)

    def finalise(self, effect):
        block_hash = effect.block.hash
        self.core.finalise(block_hash)
        self.base = block_hash
        self.pool.settle(self.core, block_hash)

    def discard(self, effect):
        self.core.discard(effect.block_hash)
        self.pool.on_discarded(effect.block_hash)

    def restore(self, block_hash):
        """Open the core again and replay the diffs of final blocks up to ``block_hash``, as a restart does."""
        self.core = self._open()
        self.built = {}
        if block_hash not in self.results:
            return
        last = self.results[block_hash][0]
        by_height = {}
        for final_hash, (height, result, _) in self.results.items():
            by_height.setdefault(height, (final_hash, result))
        for height in range(1, last + 1):
            final_hash, result = by_height[height]
            assert self.core.apply_diff(final_hash, height, result.diff) == result.state_root
        assert self.core.has(block_hash)
