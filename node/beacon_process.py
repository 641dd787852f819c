"""The beacon's process: its machine, its log, its signer, its bus. It executes nothing; it orders and checks.

There is exactly one, and it runs every validator of the beacon (P3).
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from crosslink.beacon import BeaconMachine
from node.ballots import BallotBook
from node.bus.mqtt import MqttBus
from node.bus.watch import WatchMirror
from node.driver import Driver
from node.injection import Injection
from node.network import Network, get_local_validators
from node.runtime import (
    HaltedError,
    LagMeter,
    begin_watch,
    build_bus,
    describe_bus,
    describe_evidence,
    open_signer,
    pump_messages,
    run_until_ended,
    serve_control,
    take_node_data,
    watch_for_end,
)
from node.signer import Signer
from node.storage.log import BlockLog, EntryKind, LogEntry
from node.testimony import list_beacon_methods, list_chain_methods
from shardyard import effects as fx
from shardyard.codec import decode
from shardyard.crosslinks import BeaconBody
from shardyard.ids import BEACON
from shardyard.keys import BlsCrypto

logger = logging.getLogger("shardyard.beacon")


class BeaconHost:
    """What the beacon's driver needs of its process: somebody to watch."""

    def __init__(self, mirror: WatchMirror, signer: Signer, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._mirror = mirror
        self._signer = signer
        self.evidence: Counter[str] = Counter()
        """Conflicting signatures that were seen, by validator and kinds."""

    def start_build(self, effect: fx.Build) -> None:
        """Never asked: the beacon machine builds in its step."""
        raise AssertionError(f"the beacon executes nothing, got {effect!r}")

    def adopt(self, effect: fx.Adopt) -> None:
        """Never asked."""
        raise AssertionError(f"the beacon executes nothing, got {effect!r}")

    def start_execute(self, effect: fx.Execute) -> None:
        """Never asked."""
        raise AssertionError(f"the beacon executes nothing, got {effect!r}")

    async def finalise(self, effect: fx.Finalise) -> None:
        """Forget what was signed up to the final slot; sign again above it when the block says that we may."""
        rejoins = decode(effect.block.body, BeaconBody, max_bytes=self._max_body_bytes).rejoins
        await self._signer.on_final(effect.block.header.slot, rejoins)

    def discard(self, effect: fx.Discard) -> None:
        """Nothing is kept for a block that is dropped."""

    def observe(self, notice: fx.Notice) -> None:
        """Mirror the notice for people."""
        if notice.kind == "halted":
            raise HaltedError(f"beacon halted: {notice.data}")
        if notice.kind == "evidence":
            self.evidence[describe_evidence(notice)] += 1
        self._mirror.publish(notice)


def describe_beacon(
    network: Network, machine: BeaconMachine, driver: Driver, bus: MqttBus, lag: LagMeter, started: float
) -> dict[str, Any]:
    """Return what ``shardyard status`` shows of the beacon."""
    supply = machine.get_supply()
    header = machine.final_block.header
    return {
        "height": header.height,
        "slot": header.slot,
        "timestamp_ms": header.timestamp_ms,
        "hash": header.hash.hex(),
        "supply_holds": supply.total == supply.genesis,
        "supply": {
            key: str(value) if isinstance(value, int) else [str(part) for part in value]
            for key, value in msgspec.structs.asdict(supply).items()
        },
        "uptime_s": round(time.monotonic() - started, 1),
        "loop_lag_ms": lag.read_ms(),
        "bus": describe_bus(bus, network),
        "driver": dict(driver.counters),
    }


def check_covers(signer: Signer) -> Callable[[LogEntry], None]:
    """Return what compares the signer's record with the log's entries (K1): the machine is to know if the record is lost."""
    check = signer.begin_cover_check()

    def take(entry: LogEntry) -> None:
        if entry.kind is EntryKind.KERNEL and not entry.is_body:
            check(entry.decode_record())

    return take


async def run_beacon(network: Network, node: str) -> None:
    """Run the beacon until it is told to end."""
    started = time.monotonic()
    ended = watch_for_end()
    validators = get_local_validators(network, node)
    with (
        await take_node_data(network, node, BEACON, ended) as data,
        open_signer(network, node, data) as signer,
        BlockLog(data.log_path, data.owner, on_entry=check_covers(signer)) as log,
    ):
        machine = BeaconMachine(
            network.genesis,
            BlsCrypto(),
            validators,
            log,
            submissions=log,
            rejoins=signer.build_rejoins(),
        )
        machine.recover(entry.decode_record() for entry in log.iterate() if entry.kind is EntryKind.KERNEL)
        async with build_bus(network, node, BEACON, data) as bus:
            injection = Injection(network, node, bus)
            ballots = BallotBook(
                BEACON, len(network.genesis.committees[BEACON]), lambda: machine.final_block.header.slot
            )
            driver = Driver(
                chain=BEACON,
                machine=machine,
                bus=injection.bus,
                log=log,
                signer=signer,
                on_records=signer.take_records,
                on_signed=ballots.on_signed,
            )
            watch = begin_watch(network, BEACON, signer, data, lambda: machine.final_block.header.height)
            host = BeaconHost(WatchMirror(bus), signer, network.genesis.preset.max_body_bytes)
            driver.attach(host)
            lag = LagMeter()
            methods = {
                "faults": injection.answer,
                "ballots": ballots.answer,
                **list_chain_methods(machine.engine),
                **list_beacon_methods(machine),
            }

            def describe() -> dict[str, Any]:
                found = describe_beacon(network, machine, driver, bus, lag, started)
                own = {"signer": signer.describe(), "faults": injection.describe()}
                return found | own | {"evidence": dict(host.evidence)}

            async with serve_control(network, node, describe, methods):
                logger.info(
                    "beacon at height %d, ready after %.2f s",
                    machine.final_block.header.height,
                    time.monotonic() - started,
                )
                await run_until_ended(
                    ended, driver.run(), pump_messages(bus, driver, watch, ballots), lag.run()
                )
