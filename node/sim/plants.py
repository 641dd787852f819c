"""Planted bugs: one change of one passage of ours, each breaking one rule, for hunts and mutants that must find them.

A plant is in a process from its import on: the module is compiled from its changed text, and nothing on disk changes. One
whose passage does not stand exactly once in its module is refused, so that the table says so when the code has moved on.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

import msgspec

from shardyard.errors import ConfigError


class PlantError(ConfigError):
    """A bug cannot be planted."""


class Plant(msgspec.Struct, frozen=True):
    """A bug to plant: ``old``, which stands once in the source of ``module``, becomes ``new``."""

    name: str
    rule: str
    """The rule of docs/protocol.md that it breaks."""
    module: str
    old: str
    new: str
    what: str
    """What is wrong then, in a few words."""
    is_safety: bool
    """Whether it may lead to two truths (a fork, value from nowhere, a false accusation) and not only to a halt."""
    also: "tuple[Passage, ...]" = ()
    """Where the same mistake is caught a second time, and has to be made a second time."""

    @property
    def passages(self) -> "tuple[Passage, ...]":
        """Everything that is changed."""
        return (Passage(self.module, self.old, self.new), *self.also)


class Passage(msgspec.Struct, frozen=True):
    """A change of one module: ``old``, which stands once in its source, becomes ``new``."""

    module: str
    old: str
    new: str


def apply_plant(plant: Plant, module: str, source: str) -> str:
    """Return ``source``, the text of ``module``, with the bug in it.

    Raises ``PlantError`` unless every passage of that module occurs exactly once and is changed.
    """
    for passage in plant.passages:
        if passage.module != module:
            continue
        count = source.count(passage.old)
        if count != 1 or passage.old == passage.new:
            raise PlantError(
                f"plant {plant.name}: got {count} places in {module} that read {passage.old!r}, expected exactly one to "
                "change; try: bring the table of plants in line with the module"
            )
        source = source.replace(passage.old, passage.new)
    return source


def read_module(name: str) -> str:
    """Return the source of a module of this project without importing it; raises ``PlantError`` when there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise PlantError(
            f"plant: got module {name}, expected one with source; try: shardyard sim hunt --plant list"
        )
    return Path(spec.origin).read_text(encoding="utf-8")


class _Loader(SourceFileLoader):
    """Compiles the changed text; no bytecode is read or written."""

    def __init__(self, plant: Plant, module: str, path: str) -> None:
        super().__init__(module, path)
        self._plant = plant

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the module with the bug in it."""
        path = self.get_filename(fullname)
        text = apply_plant(self._plant, fullname, self.get_data(path).decode())
        code: CodeType = compile(text, path, "exec", dont_inherit=True)
        return code


class _Finder(MetaPathFinder):
    def __init__(self, plant: Plant) -> None:
        self._plant = plant
        self._modules = {passage.module for passage in plant.passages}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the modules that are changed; all others are found as ever."""
        if fullname not in self._modules:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None, "what is planted has been read before"
        assert spec.origin is not None, "what is planted has been read before"
        spec.loader = _Loader(self._plant, fullname, spec.origin)
        return spec


def install_plant(plant: Plant) -> None:
    """Have ``plant`` in this process from now on.

    Raises ``PlantError`` when a module of it is imported already, or does not hold its passage.
    """
    for module in sorted({passage.module for passage in plant.passages}):
        if module in sys.modules:
            raise PlantError(f"plant {plant.name}: {module} is imported already, expected a fresh process")
        apply_plant(plant, module, read_module(module))
    sys.meta_path.insert(0, _Finder(plant))
