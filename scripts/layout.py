"""Writes docs/layout.md: every module of the project in one line, taken from the first sentence it says of itself.

The page is made, not kept, so it cannot rot: ``scripts/layout.py`` writes it, ``--check`` exits 1 when it would change,
and the tidy test does the same. Python modules speak by their docstring, Rust files by their ``//!`` lines, scripts by
their first comment.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "layout.md"

HEAD = """\
# Layout

Every module in one line. Made by `scripts/layout.py` from what each file says of itself: edit the files,
not this page.

Import arrows: `node -> {shards | crosslink} -> shardyard`. The three inner rooms do no I/O, `shards` and `crosslink`
never import each other, and only `node/bus` speaks MQTT; `scripts/check` enforces all of it.
"""

ROOMS = (
    ("shardyard", "the kernel: the only thing every room may import, pure"),
    ("shards", "one shard's chain, pure"),
    ("crosslink", "what ties shards together, pure"),
    ("node", "the shell: the only room with asyncio, files, sockets and processes"),
    ("native", "the Rust core, imported as `shardyard._native`"),
    ("contracts", "our own contracts, in Vyper"),
    ("configs", "ready networks, for `shardyard up -c FILE`"),
    ("scripts", "thin entry points; each sets up what it needs"),
    ("tests", "named after the claims they make"),
)

SKIPPED = {"target", "node_modules", "__pycache__", "artifacts"}


def first_sentence(text: str) -> str:
    """Return the text up to the first full stop that ends a sentence, on one line."""
    flat = " ".join(text.split("\n\n", 1)[0].split())
    match = re.match(r"(.+?[.!?])(?=\s+[A-Z`]|$)", flat)
    return (match.group(1) if match else flat).strip()


def describe_python(path: Path) -> str:
    return first_sentence(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")


def describe_rust(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    said = [line[3:].strip() for line in lines if line.startswith("//!")]
    return first_sentence("\n".join(said))


def describe_hashed(path: Path) -> str:
    """Read the first block of ``#`` comments, after a shebang or a version pragma."""
    said: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(("#!", "# pragma", "#pragma")):
            continue
        if line.startswith("#"):
            said.append(line.lstrip("# "))
        elif said or line.strip():
            break
    return first_sentence("\n".join(said))


def describe_vyper(path: Path) -> str:
    """Read the NatSpec ``@title`` of the contract."""
    match = re.search(r"@title\s+(.+)", path.read_text(encoding="utf-8"))
    return match.group(1).strip() if match else describe_hashed(path)


def describe(path: Path) -> str:
    if path.suffix == ".py":
        return describe_python(path)
    if path.suffix == ".rs":
        return describe_rust(path)
    if path.suffix in {".vy", ".sol"}:
        return describe_vyper(path)
    return describe_hashed(path)


def find_modules(room: str) -> list[Path]:
    """Return the files of a room that carry code; an empty ``__init__.py`` has nothing to say."""
    top = ROOT / room
    found: list[Path] = []
    suffixes = {".py", ".rs", ".vy", ".sol", ".toml"} if room == "configs" else {".py", ".rs", ".vy", ".sol"}
    for path in sorted(top.rglob("*")):
        inside = path.relative_to(top).parts
        if not path.is_file() or SKIPPED.intersection(inside) or path.name == "conftest.py":
            continue
        if path.suffix in suffixes or (room == "scripts" and not path.suffix) or path.name == "lib.sh":
            found.append(path)
    return [path for path in found if path.name != "__init__.py" or path.stat().st_size]


def render() -> str:
    parts = [HEAD]
    for room, words in ROOMS:
        modules = find_modules(room) if (ROOT / room).is_dir() else []
        if not modules:
            continue
        parts.append(f"\n## {room}/: {words}\n\n")
        parts.extend(f"- `{path.relative_to(ROOT).as_posix()}`: {describe(path)}\n" for path in modules)
    return "".join(parts)


def find_silent() -> list[str]:
    """Return the modules that say nothing of themselves."""
    every = (path for room, _ in ROOMS if (ROOT / room).is_dir() for path in find_modules(room))
    return [path.relative_to(ROOT).as_posix() for path in every if not describe(path)]


def main() -> int:
    silent = find_silent()
    for name in silent:
        sys.stderr.write(f"{name}: says nothing of itself; open it with a sentence on what it decides\n")
    page = render()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
            sys.stderr.write("docs/layout.md is not what the modules say. try: python3 scripts/layout.py\n")
            return 1
        return 1 if silent else 0
    PAGE.write_text(page, encoding="utf-8")
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
