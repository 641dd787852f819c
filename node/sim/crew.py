"""Several workers side by side: recipes in, results out as they come, the same seed twice for I15."""

import queue
import threading
from collections.abc import Generator, Iterable
from itertools import islice
from types import TracebackType
from typing import Final, Self

import msgspec

from node.sim.recipe import Recipe
from node.sim.run import Result
from node.sim.worker import Worker

OTHER_HASH_SEED: Final = "12345"


class Crew:
    """``jobs`` processes that run recipes, all with the same bug planted if any."""

    def __init__(self, jobs: int, plant: str = "", *, repeat_every: int = 0) -> None:
        """One recipe in ``repeat_every`` of all that the crew runs, the first included, runs again under another hash seed;
        0 means none.
        """
        self._workers = [Worker(plant) for _ in range(jobs)]
        self._repeaters = [Worker(plant, OTHER_HASH_SEED) for _ in range(jobs)]
        self._repeat_every = repeat_every
        self._taken = 0
        """Recipes taken so far, over all calls of ``run``."""
        self.repeated = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, whatever they run."""
        for worker in [*self._workers, *self._repeaters]:
            worker.close()

    def run(self, recipes: Iterable[Recipe]) -> Generator[Result]:
        """Run ``recipes``, taken one by one as workers are free; give up the rest when the caller stops listening."""
        waiting = iter(recipes)
        taking = threading.Lock()
        results: queue.SimpleQueue[Result | BaseException | None] = queue.SimpleQueue()
        is_over = threading.Event()

        def work(worker: Worker, repeater: Worker) -> None:
            try:
                while not is_over.is_set():
                    with taking:
                        recipe = next(waiting, None)
                        number = self._taken
                        self._taken += recipe is not None
                    if recipe is None:
                        break
                    result = worker.run(recipe)
                    if self._repeat_every and number % self._repeat_every == 0:
                        result = self._repeat(repeater, result)
                    results.put(result)
            except Exception as error:  # noqa: BLE001  # raised again where the results are read
                if not is_over.is_set():
                    results.put(error)
            finally:
                results.put(None)

        threads = [
            threading.Thread(target=work, args=pair, daemon=True)
            for pair in zip(self._workers, self._repeaters, strict=True)
        ]
        for thread in threads:
            thread.start()
        at_work = len(threads)
        try:
            while at_work:
                item = results.get()
                if item is None:
                    at_work -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            is_over.set()
            is_early = at_work > 0
            if is_early:
                for worker in [*self._workers, *self._repeaters]:
                    worker.kill()
            for thread in threads:
                thread.join()
            if is_early:  # what was killed is dead, at work or idle: the next run begins with new processes
                self.close()

    def tell(self, recipe: Recipe) -> Result:
        """Return the result of ``recipe`` with its story."""
        return self._workers[0].run(recipe, tells=True)

    def find_first(self, recipes: Iterable[Recipe], invariant: str) -> Result | None:
        """Return the result of the first of ``recipes`` that breaks ``invariant``; later ones may not be run."""
        waiting = iter(recipes)
        while batch := list(islice(waiting, len(self._workers))):
            found = {result.recipe: result for result in self.run(batch)}
            for recipe in batch:
                if found[recipe].invariant == invariant:
                    return found[recipe]
        return None

    def _repeat(self, repeater: Worker, result: Result) -> Result:
        """I15: the same seed, the same trace."""
        if result.report is None:
            return result
        again = repeater.run(result.recipe)
        self.repeated += 1
        elsewhere = again.report.trace_hash if again.report is not None else again.violation
        if elsewhere == result.report.trace_hash:
            return result
        text = f"I15: trace {result.report.trace_hash} here, {elsewhere} in another process"
        return msgspec.structs.replace(result, violation=text)
