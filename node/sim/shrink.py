"""Makes a failing run small: fewer strikes, calmer knobs, fewer shards and processes, less load, less time.

Delta debugging (Zeller and Hildebrandt, 2002) over the strikes, then every other part of the recipe in turn, over and over
until nothing can be taken away or the budget is spent. What counts as the same failure is the number of the invariant.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from node.sim.crew import Crew
from node.sim.recipe import Recipe, list_knobs
from node.sim.run import Result
from node.sim.strikes import Strike, draw_strikes

MAX_RUNS: Final = 400


class Shrunk(msgspec.Struct, frozen=True):
    """What became of a failing run."""

    before: Result
    after: Result
    runs: int

    @property
    def strikes(self) -> list[Strike]:
        """The strikes that are left."""
        return list_strikes(self.after)


def list_strikes(result: Result) -> list[Strike]:
    """Return the strikes that hit in a run before it ended, by their instant."""
    scenario = result.scenario
    drawn = draw_strikes(result.seed, scenario.profile, scenario.fault_ms)
    hit = [
        strike
        for strike in drawn
        if scenario.has_strike(strike.index)
        and strike.at_ms <= min(result.simulated_s * 1000, scenario.calm_ms)
    ]
    return sorted(hit, key=lambda strike: (strike.at_ms, strike.index))


class Shrinker:
    """Shrinks one failing run."""

    def __init__(
        self,
        crew: Crew,
        result: Result,
        say: Callable[[int, Result], None] | None = None,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        """``say`` hears of every smaller run that still fails, with the number of runs so far; ``is_over`` ends the search."""
        self._crew = crew
        self._best = result
        self._say = say
        self._is_over = is_over
        self._runs = 0
        self._seen: set[Recipe] = {result.recipe}

    def shrink(self) -> Shrunk:
        """Return the smallest failing run found."""
        before = self._best
        while self._runs < MAX_RUNS and not self._is_over():
            start = self._best.recipe
            self._take_first(self._propose_ends)  # first, for it makes all other tries short
            self._shrink_strikes()
            self._take_first(self._propose_knobs)
            self._take_first(self._propose_shapes)
            if self._best.recipe == start:
                break
        return Shrunk(before, self._crew.tell(self._best.recipe), self._runs)

    def _try(self, recipes: Sequence[Recipe]) -> bool:
        """Go on from the first of ``recipes`` that fails in the same way; tell whether one does."""
        fresh = [recipe for recipe in dict.fromkeys(recipes) if recipe not in self._seen]
        found = self._crew.find_first(self._count(fresh), self._best.invariant)
        if found is None:
            return False
        self._best = found
        if self._say is not None:
            self._say(self._runs, found)
        return True

    def _count(self, recipes: Iterable[Recipe]) -> Iterator[Recipe]:
        """Yield ``recipes`` as long as the budget lasts."""
        for recipe in recipes:
            if self._runs >= MAX_RUNS or self._is_over():
                break
            self._seen.add(recipe)
            self._runs += 1
            yield recipe

    def _take_first(self, propose: Callable[[], Iterator[Recipe]]) -> None:
        """Take what ``propose`` offers as long as something of it still fails."""
        while self._try(list(propose())):
            pass

    def _with_strikes(self, kept: Sequence[Strike]) -> Recipe:
        indices = tuple(sorted(strike.index for strike in kept))
        return msgspec.structs.replace(self._best.recipe, only_strikes=indices)

    def _shrink_strikes(self) -> None:
        """Delta debugging: halves, then quarters, …, each alone and each left out."""
        kept = list_strikes(self._best)
        if not kept or self._try([self._with_strikes([])]):
            return
        self._try([self._with_strikes(kept)])  # those that came too late to matter
        parts = 2
        while len(kept) > 1:
            size = -(-len(kept) // parts)
            chunks = [kept[at : at + size] for at in range(0, len(kept), size)]
            rests = [[strike for strike in kept if strike not in chunk] for chunk in chunks]
            if self._try([self._with_strikes(chosen) for chosen in (*chunks, *rests)]):
                left = set(self._best.recipe.only_strikes or ())
                kept = [strike for strike in kept if strike.index in left]
                parts = max(2, min(parts - 1, len(kept)))
            elif parts >= len(kept):
                return
            else:
                parts = min(2 * parts, len(kept))

    def _propose_knobs(self) -> Iterator[Recipe]:
        recipe = self._best.recipe
        knobs = list_knobs(self._best.scenario.profile)
        if len(knobs) > 1:
            yield msgspec.structs.replace(recipe, calm=(*recipe.calm, *knobs))
        for name in knobs:
            yield msgspec.structs.replace(recipe, calm=(*recipe.calm, name))

    def _propose_shapes(self) -> Iterator[Recipe]:
        recipe, scenario = self._best.recipe, self._best.scenario
        for count in range(1, scenario.shards):
            yield msgspec.structs.replace(recipe, shards=count)
        for count in (1, 2):
            if count < scenario.replicas:
                yield msgspec.structs.replace(recipe, replicas=count)
            if count < scenario.beacon_replicas:
                yield msgspec.structs.replace(recipe, beacon_replicas=count)
        for tps in (0.0, 0.5):
            if tps < scenario.tps:
                yield msgspec.structs.replace(recipe, tps=tps)

    def _propose_ends(self) -> Iterator[Recipe]:
        """Faults and load that end earlier."""
        result = self._best
        calm_s = result.scenario.calm_ms / 1000
        if result.simulated_s < calm_s:  # it broke off: what would have come later does not matter
            ends = [result.simulated_s + 1]
        elif result.simulated_s * 1000 < result.scenario.end_ms:
            ends = []
        else:
            ends = [calm_s * share for share in (0.125, 0.25, 0.5, 0.75, 0.9)]
        for end_s in ends:
            rounded = float(max(1, round(end_s)))
            if rounded < calm_s:
                yield msgspec.structs.replace(result.recipe, calm_from_s=rounded)


def describe_shrunk(shrunk: Shrunk) -> list[str]:
    """Return what was taken away, what is left, and the command that shows it, as lines."""
    before, after = shrunk.before, shrunk.after
    knobs = list_knobs(after.scenario.profile)
    sizes = [
        _describe_change("strikes", len(list_strikes(before)), len(shrunk.strikes)),
        _describe_change("knobs", len(list_knobs(before.scenario.profile)), len(knobs)),
        _describe_change("shards", before.scenario.shards, after.scenario.shards),
        _describe_change("processes per shard", before.scenario.replicas, after.scenario.replicas),
        _describe_change("beacon processes", before.scenario.beacon_replicas, after.scenario.beacon_replicas),
        _describe_change("transactions per second", before.scenario.tps, after.scenario.tps),
        _describe_change("seconds", round(before.simulated_s, 1), round(after.simulated_s, 1)),
    ]
    lines = [f"shrunk in {shrunk.runs} runs: {', '.join(sizes)}"]
    if knobs:
        values = ", ".join(
            f"{name} {_describe_value(getattr(after.scenario.profile, name))}" for name in knobs
        )
        lines.append(f"  all along: {values}")
    lines += [f"  {line}" for line in after.story]
    lines.append(f"  {after.simulated_s:9.3f}  {after.violation}")
    return [*lines, f"replay: {after.command}"]


def _describe_change(what: str, before: float, after: float) -> str:
    return f"{before:g} {what}" if before == after else f"{before:g} -> {after:g} {what}"


def _describe_value(value: object) -> str:
    return "–".join(map(str, value)) if isinstance(value, tuple) else str(value)
