"""One load run from beginning to end: fund accounts, sign ahead, send on time, drain, add up.

The first minute is signed before anything is sent; from then on signing goes on in a thread, well ahead of sending, so a run
may be as long as its caller wants: ``stop`` ends it early and it still drains. A run whose signing fell behind measured
the generator and is invalid.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from node.dev_accounts import DEV_ACCOUNTS
from node.load.client import NoAnswerError, RefusedError, RpcConnection
from node.load.keys import Account, Draft, Signer
from node.load.result import LoadResult, build_result
from node.load.sender import ShardSender
from node.load.tracker import NEVER, Tracked, Tracker
from node.load.workload import TRANSFER_GAS, Fees, Knobs, Planned, Workload
from shardyard.errors import ShardyardError
from shardyard.ids import Address

MAX_SIGNED_AHEAD = 50_000
"""Transactions, some 25 MB."""
CHUNK_S = 1.0
MAX_CHUNK = 2_000
LATE_S = 0.25
"""How far signing may fall behind before a run is invalid."""
FUNDING_TIMEOUT_S = 60.0
POLL_S = 0.1
ANSWERED_VERSION = 1

Progress = Callable[[str], None]


class LoadError(ShardyardError):
    """A run cannot be carried out."""


class LoadStoppedError(LoadError):
    """A run was stopped before it sent load; its accounts may have their money."""


class SeedUsedError(LoadError):
    """The accounts of a run have sent something before, so what it would send is not what its seed says."""


class RunOptions(msgspec.Struct, frozen=True):
    """How long a run lasts and what it waits for, in seconds."""

    duration_s: float
    warm_up_s: float = 2.0
    drain_s: float = 60.0
    scenario: str = "transfers"
    sign_ahead_s: float = 60.0
    """Seconds of load that are signed before it is due, at most ``MAX_SIGNED_AHEAD`` transactions."""
    report_every_s: float = 0.0
    """How often to say where the run is; 0 for never."""
    funder: int = 8
    """Development account that pays: far from those that people use first, and not the faucet's, which would take its nonces."""


class LoadRun:
    """A run against the shards at ``urls``, in order of shard.

    With ``replicas``, the URLs of all that serve each shard, the accounts of a shard are dealt to them in turn.
    """

    def __init__(
        self,
        urls: Sequence[str],
        knobs: Knobs,
        options: RunOptions,
        progress: Progress | None = None,
        replicas: Sequence[Sequence[str]] = (),
    ) -> None:
        if len(urls) != knobs.shards:
            raise LoadError(f"got {len(urls)} URLs for {knobs.shards} shards")
        self.knobs = knobs
        self.options = options
        self.tracked: list[Tracked] = []
        self.tracker = Tracker(urls, replicas)
        self.funding: list[tuple[int, str]] = []
        """(shard, hash) of the transactions that funded the accounts."""
        self.workload = Workload(knobs)
        self._replicas = [tuple(found) for found in replicas or [(url,) for url in urls]]
        self._senders: list[ShardSender] = []
        self._routes: dict[Address, ShardSender] = {}
        """By the account that sends: one replica gets all of it, in order."""
        for found, wallets in zip(self._replicas, self.workload.wallets, strict=True):
            senders = [
                ShardSender(url, self.tracker.forget, (*found[index + 1 :], *found[:index]))
                for index, url in enumerate(found)
            ]
            self._senders += senders
            for index, wallet in enumerate(wallets):
                self._routes[wallet.account.address] = senders[index % len(senders)]
        self._progress = progress or (lambda _: None)
        self._stop = asyncio.Event()
        self._started = NEVER
        self._late_s = 0.0
        """How far signing fell behind."""

    def stop(self) -> None:
        """Send nothing more; drain what was sent."""
        self._stop.set()
        for sender in self._senders:
            for tracked in sender.queue:
                self.tracker.forget(tracked)
            sender.queue.clear()

    @property
    def accepted(self) -> int:
        """Transactions that were answered with their hash so far."""
        return sum(item.is_accepted for item in self.tracked)

    async def run(self) -> LoadResult:
        """Carry the run out; raises ``LoadError`` when it cannot begin."""
        await self.prepare()
        return await self.send()

    async def prepare(self) -> None:
        """Fund the accounts and learn their nonces; raises ``LoadError``, ``LoadStoppedError`` soon after ``stop``."""
        preparing = asyncio.create_task(self._prepare(), name="prepare")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait((preparing, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not preparing.done():
                raise LoadStoppedError(
                    "the load was stopped before any of it was sent; what funds its accounts may be on its way"
                )
            preparing.result()
        finally:
            for task in (preparing, stopping):
                task.cancel()
            await asyncio.gather(preparing, stopping, return_exceptions=True)

    async def _prepare(self) -> None:
        started = time.monotonic()
        transactions = round(self.knobs.tps * self.options.duration_s)
        try:
            async with asyncio.TaskGroup() as group:
                for shard in range(self.knobs.shards):
                    group.create_task(self._prepare_shard(shard, transactions))
        except* LoadError as errors:
            raise errors.exceptions[0] from None
        await self.tracker.start()
        count = self.knobs.shards * self.knobs.accounts
        self._progress(f"funded {count} accounts in {time.monotonic() - started:.1f} s")

    async def _prepare_shard(self, shard: int, transactions: int) -> None:
        first, *others = self._replicas[shard]
        connection = RpcConnection(first, others=others)
        try:
            block = await connection.request_of_any("eth_getBlockByNumber", "latest", False)
            base_fee = int(block["baseFeePerGas"], 16)
            # Twice six full blocks of growth; what is not needed is not paid.
            self.workload.fees[shard] = Fees(max_fee=4 * base_fee + 10**9, tip=10**6)
            wallets = self.workload.wallets[shard]
            addresses = ["0x" + wallet.account.address.hex() for wallet in wallets]
            answers = await connection.request_batch(
                [("eth_getTransactionCount", (address, "pending")) for address in addresses]
            )
            for wallet, answer in zip(wallets, answers, strict=True):
                if answer.error is not None:
                    raise RefusedError(answer.error.code, answer.error.message)
                if answer.result != "0x0":
                    raise SeedUsedError(
                        f"the accounts of seed {self.knobs.seed} were used before; try: another --seed"
                    )
                wallet.nonce = 0
            amount = self.workload.compute_funding(transactions)
            await self._fund(connection, shard, addresses, amount)
        except (NoAnswerError, RefusedError) as error:
            raise LoadError(f"shard {shard}: {error}; try: shardyard status") from error
        finally:
            connection.close()

    async def _fund(
        self, connection: RpcConnection, shard: int, addresses: Sequence[str], amount: int
    ) -> None:
        funder = Account(DEV_ACCOUNTS[self.options.funder].private_key)
        nonce = int(
            await connection.request("eth_getTransactionCount", "0x" + funder.address.hex(), "pending"), 16
        )
        fees = self.workload.fees[shard]
        drafts = [
            Draft(
                funder,
                nonce + index,
                bytes.fromhex(address[2:]),
                amount,
                TRANSFER_GAS,
                fees.max_fee,
                fees.tip,
            )
            for index, address in enumerate(addresses)
        ]
        signed = await asyncio.to_thread(Signer(shard).sign, drafts)
        for answer in await connection.send_raw(["0x" + raw.hex() for raw, _ in signed]):
            if answer.error is not None:
                is_poor = "insufficient funds" in answer.error.message
                remedy = "; try: a lower --tps, or a shorter --duration" if is_poor else ""
                raise LoadError(f"shard {shard}: funding was refused: {answer.error.message}{remedy}")
        self.funding.extend((shard, "0x" + digest.hex()) for _, digest in signed)
        deadline = time.monotonic() + FUNDING_TIMEOUT_S
        while int(await connection.request("eth_getBalance", addresses[-1], "latest"), 16) < amount:
            if time.monotonic() > deadline:
                raise LoadError(f"shard {shard}: funding was not included within {FUNDING_TIMEOUT_S:.0f} s")
            await asyncio.sleep(POLL_S)

    async def send(self) -> LoadResult:
        """Send until the duration is over or ``stop``, drain, and return what came of it."""
        watching = asyncio.create_task(self.tracker.run(), name="tracker")
        reporting = asyncio.create_task(self._report(), name="report")
        sending = [
            asyncio.create_task(sender.run(), name=f"send-{i}") for i, sender in enumerate(self._senders)
        ]
        try:
            await self._feed()
            for sender in self._senders:
                sender.finish()
            await self._drain(sending)
            for task in (*sending, watching):
                if task.done():
                    task.result()  # raises what made it end before its time
        finally:
            for task in (*sending, watching, reporting):
                task.cancel()
            await asyncio.gather(*sending, watching, reporting, return_exceptions=True)
        return self.build_result()

    async def _report(self) -> None:
        while self.options.report_every_s > 0:
            await asyncio.sleep(self.options.report_every_s)
            sent, settled = sum(sender.sent for sender in self._senders), self.tracker.settled
            heads = " ".join(f"{head.latest}/{head.finalized}" for head in self.tracker.heads)
            self._progress(f"sent {sent}, settled {settled}; heads final/beacon-final {heads}")

    async def _feed(self) -> None:
        """Sign ahead of time and queue, until enough is queued."""
        tps = self.knobs.tps
        total = max(1, round(tps * self.options.duration_s))
        chunk = max(1, min(MAX_CHUNK, round(tps * CHUNK_S)))
        ahead = max(chunk, min(total, MAX_SIGNED_AHEAD, round(tps * self.options.sign_ahead_s)))
        plans = await self._sign(ahead, chunk)
        self._started = time.monotonic() + 0.1
        while plans and not self._stop.is_set():
            self._late_s = max(self._late_s, time.monotonic() - self._started - plans[0].due_s)
            for plan in plans:
                tracked = Tracked(plan, due=self._started + plan.due_s)
                self.tracked.append(tracked)
                self.tracker.follow(tracked)
                self._routes[plan.sender].queue.append(tracked)
            # What is signed ahead stays ``ahead``: the next chunk is signed when the first of it would be missing.
            due_s = (len(self.tracked) + chunk - ahead) / tps
            await self._pause(self._started + due_s - time.monotonic())
            plans = await self._sign(min(chunk, total - len(self.tracked)), chunk)

    async def _sign(self, count: int, chunk: int) -> list[Planned]:
        started = time.monotonic()
        plans: list[Planned] = []
        while len(plans) < count and not self._stop.is_set():
            plans += await asyncio.to_thread(self.workload.draw, min(chunk, count - len(plans)))
        if count > chunk:
            self._progress(f"signed {len(plans)} transactions in {time.monotonic() - started:.1f} s")
        return plans

    async def _pause(self, seconds: float) -> None:
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return

    async def _drain(self, sending: Sequence["asyncio.Task[None]"]) -> None:
        now = time.monotonic()
        last_due = now if self._stop.is_set() or not self.tracked else self.tracked[-1].due
        deadline = max(last_due, now) + self.options.drain_s
        while time.monotonic() < deadline:
            if all(task.done() for task in sending) and self.tracker.unsettled == 0:
                return
            await asyncio.sleep(POLL_S)
        self._progress(
            f"{self.tracker.unsettled} transactions were not settled {self.options.drain_s:.0f} s after the last"
        )

    def build_result(self) -> LoadResult:
        """Add up what is known now."""
        refusals: Counter[str] = Counter()
        for sender in self._senders:
            refusals += sender.refusals
        return build_result(
            self.tracked,
            scenario=self.options.scenario,
            seed=self.knobs.seed,
            shards=self.knobs.shards,
            target_tps=self.knobs.tps,
            cross_ratio=self.knobs.cross_ratio,
            warm_up_s=self.options.warm_up_s,
            refusals=refusals,
            retries=sum(sender.retries for sender in self._senders),
            late_s=self._late_s if self._late_s > LATE_S else 0.0,
        )

    def list_answered(self) -> list[dict[str, object]]:
        """Return every transaction whose hash a node answered with, as the auditor takes it."""
        return list(self.iterate_answered())

    def iterate_answered(self) -> Iterator[dict[str, object]]:
        """Yield what ``list_answered`` returns: of a long run that is more than needs to be in memory at once."""
        for shard, tx_hash in self.funding:
            yield {"shard": shard, "hash": tx_hash}
        for item in self.tracked:
            if item.is_accepted:
                plan = item.plan
                entry: dict[str, object] = {
                    "shard": plan.shard,
                    "hash": plan.tx_hash,
                    "sender": "0x" + plan.sender.hex(),
                    "nonce": plan.nonce,
                }
                yield entry | ({"message": plan.message, "dst": plan.dst} if plan.message else {})


def write_answered(path: Path, entries: Iterable[dict[str, object]]) -> None:
    """Write answered transactions, for ``shardyard audit --answered``."""
    with path.open("w") as file:
        file.write(f'{{"version": {ANSWERED_VERSION}, "transactions": [')
        for index, entry in enumerate(entries):
            file.write((", " if index else "") + json.dumps(entry))
        file.write("]}\n")


def write_result(path: Path, result: LoadResult) -> None:
    """Write ``result.json``."""
    path.write_text(json.dumps(msgspec.to_builtins(result) | {"valid": result.is_valid}, indent=1) + "\n")


def write_transactions(path: Path, tracked: Sequence[Tracked]) -> None:
    """Write one CSV line per transaction; moments in seconds after it was due, empty when they never came."""
    names = ("answered", "included", "final", "executed", "settled")
    with path.open("w") as file:
        file.write(f"hash,shard,dst,due_s,attempts,refusal,{','.join(names)}\n")
        for item in tracked:
            moments = (getattr(item, name) for name in names)
            texts = ["" if moment == NEVER else f"{moment - item.due:.4f}" for moment in moments]
            plan = item.plan
            refusal = item.refusal.replace(",", ";")
            cells = (plan.tx_hash, plan.shard, plan.dst, f"{plan.due_s:.3f}", item.attempts, refusal, *texts)
            file.write(",".join(str(cell) for cell in cells) + "\n")
