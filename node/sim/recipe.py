"""What a command line says of a run: from it the scenario follows, and from it the command line again.

A seed draws a scenario; everything else here changes what was drawn. So a run that was shrunk is still one short line.
"""

import math
from typing import Final

import msgspec

from node.sim.faults import DEFAULT_PROFILE, PEACE, FaultProfile
from node.sim.scenario import Scenario, draw_scenario
from node.sim.strikes import draw_strikes
from shardyard.errors import ConfigError

DEFAULT_MINUTES: Final = 2.0
MIN_MINUTES: Final = 0.5
"""Below this there is no time for faults and for a quiet after them in which everything must come right."""
MAX_MINUTES: Final = 24 * 60.0


class RecipeError(ConfigError):
    """A run cannot be what its command line says."""


class Recipe(msgspec.Struct, frozen=True):
    """A run. What is None is as the seed draws it."""

    seed: int
    minutes: float = DEFAULT_MINUTES
    """Of virtual time."""
    faults: bool = True
    profile: str = DEFAULT_PROFILE
    """Name of the fault profile."""
    shards: int | None = None
    validators: int | None = None
    """Per shard."""
    replicas: int | None = None
    """Processes per shard."""
    beacon_replicas: int | None = None
    tps: float | None = None
    """Transactions per second over the whole network."""
    calm: tuple[str, ...] = ()
    """Knobs of the fault profile that are put to rest, by their names in ``FaultProfile``."""
    calm_from_s: float | None = None
    """Seconds of virtual time after which faults and load are over."""
    only_strikes: tuple[int, ...] | None = None
    """Indices of the strikes that hit."""
    plant: str = ""
    """Name of the bug that is planted; it must be in the process already."""

    def build_scenario(self) -> Scenario:
        """Return the scenario of this run.

        Raises ``RecipeError`` when the line says something that this seed does not have, ``ConfigError`` for a profile that
        there is not.
        """
        if not MIN_MINUTES <= self.minutes <= MAX_MINUTES:
            raise RecipeError(
                f"--minutes: got {self.minutes:g}, expected {MIN_MINUTES:g} to {MAX_MINUTES:g}: faults need quiet after them"
            )
        for flag, value in (("--tps", self.tps), ("--calm-from", self.calm_from_s)):
            if value is not None and not math.isfinite(value):
                raise RecipeError(f"{flag}: got {value:g}, expected a finite number")
        duration_ms = int(self.minutes * 60_000)
        drawn = draw_scenario(self.seed, duration_ms, faults=self.faults, profile=self.profile)
        profile = drawn.profile
        for name in self.calm:
            if name not in FaultProfile.__struct_fields__:
                known = ", ".join(list_knobs(profile)) or "none for this seed"
                raise RecipeError(f"--calm: got {name!r}, expected knobs of the fault profile: {known}")
            profile = msgspec.structs.replace(profile, **{name: getattr(PEACE, name)})
        validators = drawn.validators if self.validators is None else self.validators
        replicas = drawn.replicas if self.replicas is None else self.replicas
        scenario = msgspec.structs.replace(
            drawn,
            shards=drawn.shards if self.shards is None else self.shards,
            validators=validators,
            replicas=min(replicas, validators),
            beacon_replicas=drawn.beacon_replicas if self.beacon_replicas is None else self.beacon_replicas,
            tps=drawn.tps if self.tps is None else self.tps,
            profile=profile,
            only_strikes=self.only_strikes,
            calm_from_ms=None if self.calm_from_s is None else int(self.calm_from_s * 1000),
        )
        self._check_strikes(scenario)
        return scenario

    def _check_strikes(self, scenario: Scenario) -> None:
        known = {strike.index for strike in draw_strikes(self.seed, scenario.profile, scenario.fault_ms)}
        unknown = sorted(set(self.only_strikes or ()) - known)
        if unknown:
            expected = f"0 to {max(known)}" if known else "none, for there are no strikes"
            whole = msgspec.structs.replace(self, only_strikes=None)
            raise RecipeError(
                f"--only-strikes: got {unknown[0]}, expected {expected}; try: {whole.command} --grep strike"
            )

    @property
    def options(self) -> list[str]:
        """The words of a command line that say what is run."""
        words = [f"--seed {self.seed}", f"--minutes {_describe_number(self.minutes)}"]
        if self.profile != DEFAULT_PROFILE:
            words.append(f"--profile {self.profile}")
        for flag, value in (
            ("--shards", self.shards),
            ("--validators", self.validators),
            ("--replicas", self.replicas),
            ("--beacon-replicas", self.beacon_replicas),
            ("--tps", self.tps),
            ("--calm-from", self.calm_from_s),
        ):
            if value is not None:
                words.append(f"{flag} {_describe_number(value)}")
        if self.calm:
            words.append(f"--calm {','.join(self.calm)}")
        if self.only_strikes is not None:
            words.append(f"--only-strikes {','.join(map(str, self.only_strikes)) or 'none'}")
        if not self.faults:
            words.append("--no-faults")
        if self.plant:
            words.append(f"--plant {self.plant}")
        return words

    @property
    def command(self) -> str:
        """The one line that shows this run step by step."""
        return " ".join(["shardyard sim replay", *self.options])


def _describe_number(value: float) -> str:
    """Return the shortest text that is read as the same number."""
    return repr(value).removesuffix(".0")


def list_knobs(profile: FaultProfile) -> list[str]:
    """Return the names of what can be put to rest in ``profile`` without renumbering its strikes."""
    return [
        name
        for name in FaultProfile.__struct_fields__
        if getattr(profile, name) != getattr(PEACE, name)
        and msgspec.structs.replace(profile, **{name: getattr(PEACE, name)}).strikes == profile.strikes
    ]
