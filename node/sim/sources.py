"""Which sources decide a run: their hash is the key under which a ledger holds what was found with them.

The three inner rooms, whatever of ``node`` the simulated world imports, the contracts of genesis, and the native core: what
the library that runs says of the sources it was built from. A simulated shard has one thread, so how a core uses several does
not count, nor which compiler built it. Of Python what is hashed is the syntax tree without its docstrings: words and layout
may change and every seed in the ledger still counts.

Real processes have several threads: with them the built library itself counts and, in a clone, all of its Rust sources.
"""

import ast
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Final

from shardyard import _native

ROOT: Final = Path(__file__).resolve().parents[2]
INNER_ROOMS: Final = ("shardyard", "shards", "crosslink")
WORLD: Final = "node.sim.run"


@cache
def compute_sources_hash(programs: tuple[str, ...] = (WORLD,)) -> str:
    """Return the hash of all sources that decide what ``programs`` do, 16 hexadecimal digits."""
    hasher = blake2b(_native.SEQUENTIAL_SOURCES.encode(), digest_size=8)
    for path in sorted(set(find_sources(programs))):
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        content = path.read_bytes()
        code = _dump_code(content) if path.suffix == ".py" else content
        hasher.update(b"%s %s\n" % (name.encode(), blake2b(code).digest()))
    return hasher.hexdigest()


def _dump_code(source: bytes) -> bytes:
    """Return the syntax of a module, without positions, comments, and expressions that are only text."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [item for item in node.body if not _is_text(item)]
    return ast.dump(tree).encode()


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def find_sources(programs: tuple[str, ...] = (WORLD,)) -> Iterator[Path]:
    """Find the files that decide what ``programs``, modules of ``node``, do; of the native core those of real processes only."""
    for room in INNER_ROOMS:
        yield from (ROOT / room).rglob("*.py")
    for program in programs:
        yield from _find_imported(program)
    yield from (ROOT / "node" / "artifacts").glob("*.json")
    if programs == (WORLD,):
        return
    rust = list((ROOT / "native").glob("*/src/**/*.rs"))
    yield from [*rust, ROOT / "native" / "Cargo.lock"] if rust else []
    yield Path(str(_native.__file__))  # what runs, which may be older than its sources


@cache
def _list_sources() -> frozenset[Path]:
    return frozenset(find_sources())


def is_simulated(module: str) -> bool:
    """Tell whether the simulated world runs ``module``; all others are the shell of real processes."""
    place = ROOT.joinpath(*module.split("."))
    return not _list_sources().isdisjoint({place.with_suffix(".py"), place / "__init__.py"})


def _find_imported(name: str) -> Iterable[Path]:
    """Find the modules of ``node`` that ``name`` imports, itself included."""
    found: dict[str, Path] = {}
    waiting = [name]
    while waiting:
        module = waiting.pop()
        path = _find_module(module)
        if path is None or module in found:
            continue
        found[module] = path
        for node in ast.walk(ast.parse(path.read_bytes())):
            match node:
                case ast.Import(names=names):
                    waiting.extend(alias.name for alias in names)
                case ast.ImportFrom(module=str(base), names=names, level=0):
                    waiting += [base, *(f"{base}.{alias.name}" for alias in names)]
                case _:
                    pass
    return found.values()


def _find_module(name: str) -> Path | None:
    if not name.startswith("node"):
        return None
    place = ROOT.joinpath(*name.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


@cache
def describe_commit() -> str:
    """Return the commit of this clone, with a plus when files differ from it; "unknown" outside of a clone."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--exclude=*", "--dirty=+"],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
