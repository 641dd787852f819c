"""``GET /metrics`` on the JSON-RPC port: what a shard's process counts, in Prometheus' text form.

Names follow Prometheus' habits: base units, ``_total`` for what only grows. Of one process and one shard, so replicas are
told apart by the scraper's own ``instance`` label.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.backend import ShardBackend

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"


class ShardCollector(Collector):
    """Reads a backend whenever somebody asks."""

    def __init__(self, backend: ShardBackend) -> None:
        self._backend = backend

    def collect(self) -> Iterable[Metric]:
        """Yield every metric of the shard."""
        yield from self._collect_execution()
        yield from self._collect_chain()

    def _collect_execution(self) -> Iterator[Metric]:
        history = self._backend.execution
        totals, recent = history.totals, history.recent
        yield self._gauge("executors", "Threads that a block is given.", history.executors)
        yield self._counter("executed_blocks", "Blocks executed, own builds included.", totals.blocks)
        yield self._counter("parallel_blocks", "Blocks executed on several threads.", totals.parallel_blocks)
        yield self._counter("validated_blocks", "Blocks of others executed here.", totals.validated_blocks)
        yield self._counter(
            "replayed_blocks", "Blocks of others executed by their access list.", totals.replayed_blocks
        )
        yield self._counter("executed_items", "Transactions and deliveries executed.", totals.items)
        yield self._counter(
            "incarnations",
            "Executions of items in parallel blocks, repeated ones included.",
            totals.incarnations,
        )
        yield self._counter(
            "aborts", "Executions thrown away because what they read had changed.", totals.aborts
        )
        yield self._counter("at_turn", "Items that ran only at their turn to commit.", totals.at_turn)
        yield self._counter("solos", "Times that speculation gave way to one worker.", totals.solos)
        for name, text, value in (
            ("execute_seconds", "Time in which blocks were executed.", totals.execute_us),
            ("commit_seconds", "Time for outcomes, roots and diffs after it.", totals.commit_us),
            ("work_seconds", "What the items alone took, over all threads.", totals.work_us),
        ):
            yield self._counter(name, text, value / 1e6)
        if recent.speed_up is not None:
            yield self._gauge(
                "recent_speed_up", "Work over time of execution, newest blocks.", recent.speed_up
            )
        if recent.abort_rate is not None:
            yield self._gauge("recent_abort_rate", "Aborts per item, newest blocks.", recent.abort_rate)

    def _collect_chain(self) -> Iterator[Metric]:
        backend = self._backend
        pending, queued = backend.mempool.get_status()
        yield self._gauge("latest_height", "Height of the newest final block.", backend.latest.height)
        yield self._gauge(
            "finalized_height",
            "Height up to which the beacon has final crosslinks.",
            backend.finalized_height,
        )
        yield self._gauge("mempool_pending", "Transactions that can run now.", pending)
        yield self._gauge("mempool_queued", "Transactions that wait for an earlier nonce.", queued)

    def _counter(self, name: str, text: str, value: float) -> Metric:
        metric = CounterMetricFamily(f"shardyard_{name}", text, labels=("shard",))
        metric.add_metric((str(self._backend.shard),), value)
        return metric

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        metric = GaugeMetricFamily(f"shardyard_{name}", text, labels=("shard",))
        metric.add_metric((str(self._backend.shard),), value)
        return metric


class MetricsPage:
    """What ``GET /metrics`` answers."""

    def __init__(self, backend: ShardBackend) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(ShardCollector(backend))

    def render(self) -> bytes:
        """Return the metrics as they are now."""
        return generate_latest(self._registry)
