"""``scripts/conformance FILE``: run state tests alone and inside parallel blocks, and say what passed.

Exit status 0 when every vector passed or is skipped for a reason on the list, 1 when one failed, 2 for wrong usage or a
file that holds no state tests.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from node.conformance.archive import ArchiveError, Document, read_documents
from node.conformance.tally import Report, Tally, decode_reports, load_skips
from shardyard import _native

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
MODES = ("alone", "parallel")
MAX_THREADS = 64
SHOWN_FAILURES = 40
SAY_EVERY_S = 15.0
Verdict = tuple[str, list[Report] | str]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/conformance",
        description="Run Ethereum's GeneralStateTests through the executor and print passed, failed, skipped.",
    )
    parser.add_argument(
        "place", type=Path, metavar="FILE", help="an archive (.tar.xz), a folder or one .json"
    )
    parser.add_argument(
        "--threads", type=int, default=2, metavar="N", help="of a parallel block, 2 to 64 (default 2)"
    )
    parser.add_argument(
        "--mode", choices=(*MODES, "both"), default="both", help="alone, parallel or both (default)"
    )
    parser.add_argument(
        "--only", metavar="GLOB", help="documents whose name or end of name matches: 'stCreate2/*'"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the report here")
    return parser


def _judge(document: Document, threads: int) -> Verdict:
    try:
        return document.name, decode_reports(_native.run_state_tests(document.text, threads))
    except _native.CoreError as error:
        return document.name, str(error)


def _verdicts(documents: list[Document], mode: str, threads: int) -> Iterator[Verdict]:
    if mode == "parallel":
        # One block at a time has all the threads.
        yield from (_judge(document, threads) for document in documents)
        return
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from pool.map(lambda document: _judge(document, 0), documents)
        finally:
            pool.shutdown(cancel_futures=True)


def run_mode(documents: list[Document], mode: str, threads: int) -> Tally:
    """Run all documents in one mode, telling a person now and then how far it is."""
    tally, started = Tally(mode, load_skips()), time.monotonic()
    said = started
    for number, (name, verdict) in enumerate(_verdicts(documents, mode, threads), start=1):
        if isinstance(verdict, str):
            tally.add_unreadable(name, verdict)
        else:
            tally.add(name, verdict)
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            _say(
                f"{mode}: {number} of {len(documents)} files, {tally.passed} vectors passed, {len(tally.failures)} failed"
            )
    tally.seconds = time.monotonic() - started
    return tally


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def print_tallies(tallies: list[Tally]) -> None:
    """Print the table, every reason for a skip, and the first failures."""
    write = sys.stdout.write
    write(
        f"{'mode':<10}{'vectors':>9}{'passed':>9}{'failed':>9}{'skipped':>9}{'in parallel blocks':>20}{'seconds':>10}\n"
    )
    for tally in tallies:
        counts = f"{tally.vectors:>9}{tally.passed:>9}{len(tally.failures):>9}{tally.skipped.total():>9}"
        write(f"{tally.mode:<10}{counts}{tally.parallel:>20}{tally.seconds:>10.1f}\n")
    skipped = {
        pair: max(tally.skipped[pair] for tally in tallies) for tally in tallies for pair in tally.skipped
    }
    for reason in sorted({reason for _, reason in skipped}):
        write(f"skipped: {reason}\n")
        for (name, why), count in sorted(skipped.items()):
            if why == reason:
                write(f"  {name}: {count}\n")
    failures = [failure for tally in tallies for failure in tally.failures]
    for failure in failures[:SHOWN_FAILURES]:
        place = "/".join(str(failure[key]) for key in ("data", "gas", "value") if key in failure)
        where = f"{failure['file']} {failure['test']} {failure['fork']} {place}"
        write(f"FAILED {failure['mode']} {where}: {failure['reason']}\n")
    if len(failures) > SHOWN_FAILURES:
        write(f"and {len(failures) - SHOWN_FAILURES} more. try: --json PATH for all of them\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not 2 <= options.threads <= MAX_THREADS:
        parser.error(f"--threads is 2 to {MAX_THREADS}, got {options.threads}")
    try:
        documents = list(read_documents(options.place, options.only))
        if not documents:
            raise ArchiveError(
                f"no document of {options.place} matches {options.only!r}. try: without --only"
            )
        modes = MODES if options.mode == "both" else (options.mode,)
        tallies = [run_mode(documents, mode, options.threads) for mode in modes]
    except ArchiveError as error:
        _say(f"error: {error}")
        return EXIT_USAGE
    except KeyboardInterrupt:
        _say("interrupted; nothing was written")
        return EXIT_INTERRUPTED
    print_tallies(tallies)
    if options.json is not None:
        report = {
            "file": options.place.name,
            "documents": len(documents),
            "threads": options.threads,
            "modes": [tally.as_dict() for tally in tallies],
        }
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return EXIT_FAILED if any(tally.failures for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
