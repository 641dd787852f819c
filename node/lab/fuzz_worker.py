"""The process that fuzzes one target: atheris (libFuzzer) around it, our modules instrumented for coverage on import."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import atheris
import msgspec

with atheris.instrument_imports(include=["shardyard", "shards", "crosslink", "node"]):
    from node.lab.fuzz_probe import Probe, Tally
    from node.lab.fuzz_targets import Target, get_target

RSS_LIMIT_MB: Final = 2048


def fuzz_target(target: Target, directory: Path, budget_s: float) -> None:
    """Fuzz until the processor time is used up; ends the process. A finding ends it too, and lies in ``directory``."""
    tally_path = directory / "tally.json"

    def write(probe: Probe) -> None:
        tally_path.write_bytes(
            msgspec.json.encode(
                Tally(target.name, probe.inputs, probe.cpu_s, probe.growth_bytes, len(list(corpus.iterdir())))
            )
        )

    def end(probe: Probe) -> None:
        write(probe)
        sys.stdout.flush()
        os._exit(0)  # libFuzzer has no other end by processor time; its corpus is on disk already

    corpus = directory / "corpus"
    probe = Probe(target, budget_s, end)

    def feed(data: bytes) -> None:
        try:
            probe.feed(data)
        except BaseException:
            write(probe)
            raise

    options = [
        f"-artifact_prefix={directory / 'findings'}/",
        f"-max_len={target.max_bytes}",
        f"-rss_limit_mb={RSS_LIMIT_MB}",
        "-timeout=300",  # real time, on a machine that may be busy: only for what never ends
        "-print_final_stats=0",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], feed, enable_python_coverage=True)
    atheris.Fuzz()


def serve(arguments: Sequence[str]) -> None:
    """Fuzz the target that the command line names, in the directory and for the seconds that it names."""
    name, directory, budget_s = arguments
    fuzz_target(get_target(name), Path(directory), float(budget_s))


if __name__ == "__main__":
    serve(sys.argv[1:])
