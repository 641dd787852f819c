"""``watch``: the network live in the terminal: blocks, votes, certificates, and messages on their way between shards.

It reads the mirror topics with the observer credential; while no broker answers it asks the shards over JSON-RPC, which
shows blocks and messages but no votes. On a terminal it draws lanes, elsewhere it prints a line per event.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from node.cli.output import SCHEMA_VERSION, format_ether, network_option, say
from node.cli.root import EXIT_NOT_RUNNING, CliError
from node.cli.session import Session
from node.cli.watch_model import STAGES, WINDOW_S, Lane, WatchModel, draw_flight

if TYPE_CHECKING:
    from rich.console import Group

REFRESH_S: Final = 0.25
POLL_S: Final = 0.25
RETRY_BROKER_S: Final = 5.0
MAX_DRAWN_FLIGHTS: Final = 12


@click.command()
@click.option("--count", default=0, help="End after this many blocks of all chains together; 0 goes on.")
@click.option("--duration", "duration_s", default=0.0, help="End after this many seconds; 0 goes on.")
@click.option("--plain", is_flag=True, help="Lines instead of lanes, as when it is not a terminal.")
@network_option
def watch(*, count: int, duration_s: float, plain: bool, name: str, as_json: bool) -> int:
    """Show shards, blocks, votes and messages live in the terminal; Ctrl-C ends it."""
    session = Session(name)
    session.ask_launcher("ping")
    model = WatchModel(session.shard_count)
    watching = Watching(session, model, count, time.monotonic() + duration_s if duration_s else None)
    with contextlib.suppress(KeyboardInterrupt):
        if as_json or plain or not sys.stdout.isatty():
            asyncio.run(watching.print_lines(as_json=as_json))
        else:
            asyncio.run(watching.draw())
    return 0


class Watching:
    """One run of ``watch``."""

    def __init__(self, session: Session, model: WatchModel, count: int, deadline: float | None) -> None:
        self._session = session
        self._model = model
        self._count = count
        self._deadline = deadline
        self._source = "the broker"

    @property
    def is_over(self) -> bool:
        """Whether as much was seen as was asked for."""
        is_late = self._deadline is not None and time.monotonic() >= self._deadline
        return is_late or (self._count > 0 and self._model.blocks_seen >= self._count)

    async def print_lines(self, *, as_json: bool) -> None:
        """Print a line per event."""
        async for entry in self._read():
            lines = self._model.take(entry, time.monotonic())
            if lines and as_json:
                click.echo(json.dumps({"schema": SCHEMA_VERSION, **entry}))
            elif lines:
                stamp = time.strftime("%H:%M:%S")
                click.echo("\n".join(f"{stamp} {line}" for line in lines))
            sys.stdout.flush()
            if self.is_over:
                return

    async def draw(self) -> None:
        """Draw lanes until it is over."""
        from rich.live import Live

        with Live(self._render(), refresh_per_second=1 / REFRESH_S, screen=True) as live:
            drawn = 0.0
            async for entry in self._read():
                now = time.monotonic()
                self._model.take(entry, now)
                if now - drawn >= REFRESH_S:
                    self._model.prune(now)
                    live.update(self._render())
                    drawn = now
                if self.is_over:
                    return

    async def _read(self) -> AsyncIterator[dict[str, Any]]:
        """Yield entries, and an empty one now and then, so that the clock is looked at on a quiet network too."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=10_000)
        feeding = asyncio.create_task(self._feed(queue), name="watch")
        try:
            while not feeding.done() or not queue.empty():
                try:
                    async with asyncio.timeout(REFRESH_S):
                        yield await queue.get()
                except TimeoutError:
                    yield {"kind": "tick"}
            feeding.result()
        finally:
            feeding.cancel()

    async def _feed(self, queue: asyncio.Queue[dict[str, Any]]) -> None:
        from node.bus.watch_reader import WatchError, open_watch

        broker = self._session.endpoints["broker"]
        observer = broker["observer"]
        while True:
            try:
                async with open_watch(
                    broker["url"],
                    network=self._session.name,
                    username=observer["username"],
                    password=observer["password"],
                ) as entries:
                    self._source = "the broker"
                    async for entry in entries:
                        await queue.put(entry)
            except WatchError as error:
                if self._source == "the broker":
                    say(f"{error}; asking the shards instead, which know nothing of votes")
                self._source = "JSON-RPC"
            await self._poll(queue, time.monotonic() + RETRY_BROKER_S)

    async def _poll(self, queue: asyncio.Queue[dict[str, Any]], until: float) -> None:
        from node.cli.watch_poll import Poller

        poller = Poller(self._session)
        while time.monotonic() < until:
            entries = await asyncio.to_thread(poller.poll)
            if not entries and not await asyncio.to_thread(self._session.is_running):
                raise CliError(
                    f"network {self._session.name!r} was stopped; try: shardyard up{self._session.name_flag}",
                    EXIT_NOT_RUNNING,
                )
            for entry in entries:
                await queue.put(entry)
            await asyncio.sleep(POLL_S)

    def _render(self) -> "Group":
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        model = self._model
        lanes = Table(box=None, pad_edge=False, expand=True)
        for title in (
            "Chain",
            "Latest",
            "Beacon-final",
            "Votes/s",
            "Certs/s",
            "Blocks (transactions+deliveries)",
        ):
            lanes.add_column(title, no_wrap=True)
        for lane in model.lanes.values():
            lanes.add_row(*_describe_lane(lane))
        flights = Table(box=None, pad_edge=False)
        for title in ("Message", "Kind", "On its way", "Stage", "Ether"):
            flights.add_column(title, no_wrap=True)
        newest = sorted(model.flights.values(), key=lambda flight: -flight.since)[:MAX_DRAWN_FLIGHTS]
        for flight in newest:
            stage = STAGES[max(flight.stage, 0)]
            ether = format_ether(flight.value)
            flights.add_row(flight.id[:12] + "…", flight.kind, draw_flight(flight), stage, ether)
        under_way = sum(flight.stage < 3 for flight in model.flights.values())
        head = (
            f"{self._session.name}: {model.compute_tps():.1f} transactions/s, {under_way} messages in flight, "
            f"{model.messages_done} done   (from {self._source}; Ctrl-C ends)"
        )
        faults = [f"{lane.chain}: {lane.last_fault}" for lane in model.lanes.values() if lane.last_fault]
        return Group(
            Text(head, style="bold"),
            Text(),
            lanes,
            Text(),
            flights,
            Text("\n".join(faults[-3:]), style="red"),
        )


def _describe_lane(lane: Lane) -> tuple[str, ...]:
    is_beacon = lane.chain == "beacon"
    blocks = []
    for block in lane.blocks:
        filled = f"{block.transactions}" + (f"+{block.deliveries}" if block.deliveries else "")
        mark = "■" if block.height <= lane.finalized else "□"
        blocks.append(
            f"{mark}{block.height}({filled})"
            if block.transactions + block.deliveries
            else f"{mark}{block.height}"
        )
    return (
        lane.chain,
        str(lane.latest),
        "" if is_beacon else str(lane.finalized),
        f"{len(lane.votes) / WINDOW_S:.1f}",
        f"{len(lane.certificates) / WINDOW_S:.1f}",
        " ".join(blocks),
    )
