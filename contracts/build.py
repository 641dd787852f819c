"""Compile the project's contracts, or check that what ships is what the sources say.

    python contracts/build.py            write node/artifacts/*.json
    python contracts/build.py --check    write nothing; exit 1 and name the artifacts that differ

The pragmas pin compiler, EVM revision and optimiser, and the compiler's metadata is left out, so every
machine writes the same bytes. The artifacts are committed: a node needs no compiler. Without Vyper, `--check`
compares source hashes only.
"""

# ruff: noqa: INP001, T201 -- a stand-alone program that talks to a person

import hashlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ARTIFACTS = ROOT / "node" / "artifacts"
SOURCES = (HERE / "gateway.vy", *sorted((HERE / "examples").glob("*.vy")))
FORMATS = ("abi", "bytecode", "bytecode_runtime", "layout")

try:
    import vyper
except ImportError:
    vyper = None


def compile_contract(source: Path) -> str:
    """Return the artifact of one source file as the text of its JSON file."""
    text = source.read_text(encoding="utf-8")
    output = vyper.compile_code(
        text, contract_path=source.name, output_formats=FORMATS, no_bytecode_metadata=True
    )
    layout = output["layout"].get("storage_layout", {})
    artifact = {
        "name": source.stem,
        "source": source.relative_to(ROOT).as_posix(),
        "source_sha256": hash_source(source),
        "compiler": f"vyper {vyper.__version__}",
        "evm_version": "prague",
        "bytecode": output["bytecode"],
        "runtime": output["bytecode_runtime"],
        "storage": {name: entry["slot"] for name, entry in layout.items()},
        "abi": output["abi"],
    }
    return json.dumps(artifact, indent=1) + "\n"


def hash_source(source: Path) -> str:
    """Return the SHA-256 of a source file, in hex."""
    return hashlib.sha256(source.read_bytes()).hexdigest()


def get_artifact_path(source: Path) -> Path:
    """Return where the artifact of a source file belongs."""
    return ARTIFACTS / f"{source.stem}.json"


def is_current(source: Path) -> bool:
    """Whether the committed artifact is what its source compiles to, as far as this machine can tell."""
    path = get_artifact_path(source)
    if not path.exists():
        return False
    committed = path.read_text(encoding="utf-8")
    if vyper is None:
        return json.loads(committed)["source_sha256"] == hash_source(source)
    return committed == compile_contract(source)


def main(arguments: list[str]) -> int:
    """Build or check every contract; returns the exit code."""
    if arguments == ["--check"]:
        stale = [source for source in SOURCES if not is_current(source)]
        for source in stale:
            print(
                f"{get_artifact_path(source).relative_to(ROOT)} is not what {source.relative_to(ROOT)} says"
            )
        if stale:
            print("run scripts/build-contracts and commit node/artifacts/")
        else:
            print(
                f"{len(SOURCES)} artifacts match their sources"
                + (" (by hash: no Vyper here)" if vyper is None else "")
            )
        return 1 if stale else 0
    if arguments or vyper is None:
        print(__doc__ if arguments else "Vyper is missing: pip install the dev extra, or run scripts/setup")
        return 2
    for source in SOURCES:
        get_artifact_path(source).write_text(compile_contract(source), encoding="utf-8")
        print(f"{source.relative_to(ROOT)} -> {get_artifact_path(source).relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
