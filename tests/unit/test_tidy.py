"""Style rules that no linter knows, checked over the source itself: what the inner rooms may not do, how long things
may be, which words and paths stay out, and that nothing lies about unused or undocumented.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INNER_ROOMS = ("shardyard", "shards", "crosslink")
ROOMS = (*INNER_ROOMS, "node")

MAX_FUNCTION_LINES = 70
MAX_FILE_LINES = 600
BANNED_MODULE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}

# Each of these either does I/O, or gives another answer in another process.
BANNED_CALLS = {
    "__import__", "breakpoint", "compile", "eval", "exec", "float", "globals", "hash", "id", "input", "open", "print",
}  # fmt: skip


def find_files(*tops: str, suffix: str = ".py") -> list[Path]:
    skipped = {"__pycache__", "target", "node_modules", "artifacts"}
    found = (path for top in tops for path in sorted((ROOT / top).rglob(f"*{suffix}")))
    return [path for path in found if not skipped.intersection(path.parts)]


def find_inner_files() -> list[Path]:
    """The inner rooms. There is no ``shardyard.testing``; were there one, it would start networks and might do everything."""
    return [path for path in find_files(*INNER_ROOMS) if "testing" not in path.relative_to(ROOT).as_posix()]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def find_tracked_texts() -> Iterator[tuple[str, str]]:
    """Every file git would publish, with its text; pictures and archives are passed over."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git clone")
    for name in listed.stdout.splitlines():
        try:
            yield name, (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue


def test_functions_fit_a_screen() -> None:
    offenders = [
        f"{name_of(path)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in [*find_files(*ROOMS, "tests"), *(ROOT / "scripts").glob("*.py")]
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not offenders


def test_files_hide_no_second_noun() -> None:
    sources = [*find_files(*ROOMS, "tests"), *find_files("native", suffix=".rs")]
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES}


def find_impurities(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in BANNED_CALLS:
                yield node.lineno, f"calls {name}()"
            case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                yield node.lineno, "waits: a step runs to completion"
            case ast.Constant(value=float()):
                yield node.lineno, f"float {node.value}: integers only"
            case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
                yield node.lineno, "true division: integers only, use //"
            case (
                ast.For(iter=ast.Set() | ast.SetComp() | ast.Call(func=ast.Name(id="set" | "frozenset")))
                | ast.comprehension(
                    iter=ast.Set() | ast.SetComp() | ast.Call(func=ast.Name(id="set" | "frozenset"))
                )
            ):
                yield node.iter.lineno, "walks over a set, whose order is another in another process"
            case _:
                pass


def test_inner_rooms_decide_and_do_nothing_else() -> None:
    offenders = [
        f"{name_of(path)}:{line} {words}"
        for path in find_inner_files()
        for line, words in find_impurities(parse(path))
    ]
    assert not offenders


@pytest.mark.parametrize(
    "source",
    [
        "print(1)", "x = 0.5", "x = a / b", "x /= 2", "for x in set(a): pass", "y = [x for x in {1, 2}]",
        "async def f(): pass", "h = hash(b'')",
    ],
)  # fmt: skip
def test_impurity_is_seen(source: str) -> None:
    assert list(find_impurities(ast.parse(source)))


def find_imports(path: Path) -> Iterator[str]:
    """Every dotted name that a file imports, and for ``from a import b`` both ``a`` and ``a.b``."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_inner_rooms_do_not_import_the_testing_facade() -> None:
    """There is none at present; its name stays kept out."""
    offenders = [
        name_of(path)
        for path in [*find_inner_files(), *find_files("node")]
        if any(name.startswith("shardyard.testing") for name in find_imports(path))
    ]
    assert not offenders


def test_no_module_is_dead() -> None:
    """A module is alive when another one imports it, or when a script, a child process or a person names it."""
    sources = find_files(*ROOMS)
    imported = {name for path in sources for name in find_imports(path) if name != module_of(path)}
    starters = [
        *sources,
        *(path for path in (ROOT / "scripts").iterdir() if path.is_file()),
        ROOT / "pyproject.toml",
    ]
    started = {
        found
        for path in starters
        for found in re.findall(
            r"\b(?:node|shards|crosslink|shardyard)(?:\.\w+)+", path.read_text(encoding="utf-8")
        )
    }
    packages = {module_of(path) for path in sources if path.name == "__init__.py"}
    public = {"shardyard.testing", *(f"{package}.__main__" for package in packages)}
    dead = {module_of(path) for path in sources} - imported - started - packages - public
    assert not dead


def test_modules_are_named_after_what_they_hold() -> None:
    offenders = [
        name_of(path)
        for path in find_files(*ROOMS)
        if BANNED_MODULE_NAMES.intersection(module_of(path).split("."))
    ]
    assert not offenders


def test_tests_wait_for_conditions_not_for_time() -> None:
    """``sleep(0)`` gives way to other tasks and is no wait; the two waiting fixtures live in conftest.py."""
    offenders = [
        f"{name_of(path)}:{node.lineno}"
        for path in find_files("tests")
        if path.name != "conftest.py"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
        and (getattr(node.func, "attr", None) == "sleep" or getattr(node.func, "id", None) == "sleep")
        and not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)
    ]
    assert not offenders


def test_nothing_is_left_unfinished() -> None:
    marks = re.compile(r"TODO\b|FIXME\b|XXX\b|NotImplementedError|todo!\(|unimplemented!\(")
    offenders = [
        f"{name_of(path)}:{number}"
        for path in [*find_files(*ROOMS, "scripts"), *find_files("native", suffix=".rs")]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line)
    ]
    assert not offenders


def test_tree_names_no_single_machine() -> None:
    paths = re.compile(r"(?<![\w.$}~])/(?:work|farm|root|tmp)/[A-Za-z]")
    hosts = re.compile(r"pypi\.org|files\.python[h]osted|registry\.npm[j]s")
    offenders = [
        f"{name}:{number} {line.strip()[:80]}"
        for name, text in find_tracked_texts()
        if not name.endswith("Cargo.lock")
        for number, line in enumerate(text.splitlines(), 1)
        if paths.search(line) or hosts.search(line)
    ]
    assert not offenders


def test_layout_page_is_what_the_modules_say() -> None:
    told = subprocess.run(
        [sys.executable, ROOT / "scripts" / "layout.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr


def test_every_declared_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\s<>=!~;\[]", text, maxsplit=1)[0].lower() for text in requirements}

    def locked(name: str) -> set[str]:
        text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
        return {found.lower() for found in re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}

    run = names(project["dependencies"])
    assert run - locked("run.txt") == set()
    assert (run | names(project["optional-dependencies"]["dev"])) - locked("dev.txt") == set()


def test_scripts_are_short_and_stop_at_the_first_failure() -> None:
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix]
    assert scripts
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("#!/usr/bin/env bash\n# "), path.name
        assert "set -euo pipefail" in text or "lib.sh" in text, path.name


@pytest.mark.parametrize("script", ["scripts/lib.sh", "scripts/build-contracts"])
def test_scripts_find_their_clone_whatever_cdpath_says(tmp_path: Path, script: str) -> None:
    (tmp_path / "scripts").mkdir()
    first = re.split(
        r"^(?:VENV|exec)", (ROOT / script).read_text(encoding="utf-8"), maxsplit=1, flags=re.MULTILINE
    )[0]
    (tmp_path / "scripts" / "first").write_text(first + 'printf "%s" "${ROOT:-$PWD}"\n', encoding="utf-8")
    told = subprocess.run(
        ["bash", "scripts/first"],
        cwd=tmp_path, env={**os.environ, "CDPATH": f"{ROOT}:."}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert told.stdout == str(tmp_path.resolve())


def find_flaw(path: Path, given_version: str = "") -> str:
    """What ``scripts/setup`` has against the environment at ``path``."""
    setup = (ROOT / "scripts" / "setup").read_text(encoding="utf-8")
    (function,) = re.findall(r"^find_flaw\(\) \{.*?^\}", setup, re.MULTILINE | re.DOTALL)
    program = f'set -euo pipefail\ngiven_version=$2\n{function}\nfind_flaw "$1"'
    words = ["bash", "-c", program, "bash", str(path), given_version]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment that nobody's ``command =`` line describes, as uv and virtualenv make them."""
    place, ours = tmp_path / "made", Path(sys.prefix)
    if not (ours / "pyvenv.cfg").exists():
        pytest.skip("this interpreter is of no environment; scripts/setup makes one")
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    (place / "bin" / "pip").write_text(f"#!{place}/bin/python\n", encoding="utf-8")
    (place / "lib").symlink_to(ours / "lib")
    (place / "pyvenv.cfg").write_text(
        f"home = {sys.base_prefix}/bin\ninclude-system-site-packages = false\n", encoding="utf-8"
    )
    return place


def test_environment_that_lies_where_it_was_made_is_kept_whichever_python_this_shell_finds(
    environment: Path,
) -> None:
    assert find_flaw(environment) == ""
    assert find_flaw(environment, sys.version) == ""
    assert find_flaw(environment, "3.99.0 (named by a person)").endswith(
        "that of PYTHON is 3.99.0 (named by a person)"
    )
    link = environment.with_name("link")
    link.symlink_to(environment)
    assert find_flaw(link) == ""


def test_environment_that_was_moved_or_is_broken_is_made_again(environment: Path) -> None:
    moved = environment.rename(environment.with_name("moved"))
    assert find_flaw(moved) == f"it was made at {environment}, and moved or copied"
    words = f"#!/bin/sh\n'''exec' \"{environment}/bin/python\" \"$0\" \"$@\"\n' '''\n"
    (moved / "bin" / "pip").write_text(words, encoding="utf-8")
    assert find_flaw(moved) == f"it was made at {environment}, and moved or copied"
    (moved / "lib").unlink()
    assert find_flaw(moved) == "it has no pip"
    assert find_flaw(environment) == "its interpreter does not run"


def test_node_process_starts_without_what_only_people_need() -> None:
    """A shard process is to be up within a second or two; a wallet library alone takes most of one."""
    program = "import sys, node.process; print(*sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert told.returncode == 0, told.stderr
    assert not {"click", "eth_account", "jinja2", "rich", "rich_click", "web3"} & set(told.stdout.split())


def test_every_ready_network_is_understood() -> None:
    from node.config import resolve_options

    networks = sorted((ROOT / "configs").glob("*.toml"))
    assert networks
    for path in networks:
        options, origin = resolve_options({}, {}, path)
        assert origin["name"] == str(path), path.name
        assert options.name != "dev", "a ready network must not land in the default one"
