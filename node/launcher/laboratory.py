"""The laboratory: makes the faults in the book true, undoes them when their time is over, and keeps processes told.

What a process does to itself (links, lies, a slow disk) it is told over its control socket, and finds in a file when it
is started again; what the operating system does to it (signals, a full disk) is done here. A full disk is the kernel's:
with a file size limit of 0 every write of the process fails, index and log files included.
"""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from node.config import get_name_flag
from node.control import ControlError, ask
from node.injection import FaultFile, get_faults_path, read_fault_file, write_fault_file
from node.launcher.faults import (
    BROKER,
    Fault,
    FaultBook,
    FaultError,
    FaultRequest,
    Kind,
    compute_node_faults,
    list_warnings,
)
from node.launcher.supervisor import Child, ChildError
from node.network import Network

if TYPE_CHECKING:
    import psutil

TELL_TIMEOUT_S: Final = 5.0
"""How long a process that runs may take to hear of its faults; one that just started takes a second or two."""
TELL_AGAIN_S: Final = 0.05
LEAVE_POLL_S: Final = 0.02
_DOWN: Final = frozenset({Kind.KILL})
_SIGNALLED: Final = frozenset({Kind.KILL, Kind.PAUSE})
_DONE_HERE: Final = _SIGNALLED | {Kind.FULL_DISK}
"""What the operating system does to a process, which need not be told."""

logger = logging.getLogger("shardyard.laboratory")


class Laboratory:
    """Does to ``children`` what people ask for."""

    def __init__(self, network: Network, children: Mapping[str, Child]) -> None:
        self._network = network
        self._children = children
        self._flag = get_name_flag(network.options.name)
        self._book = FaultBook(network)
        self._timers: dict[int, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()

    @property
    def methods(self) -> dict[str, Callable[[dict[str, Any]], Awaitable[Any]]]:
        """What the launcher's control socket answers for the laboratory."""
        return {"fault": self._answer_start, "faults": self._answer_list, "heal": self._answer_heal}

    def close(self) -> None:
        """Forget every fault: the network goes down, and paused processes with it."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def verify_free(self, node: str) -> None:
        """Raise ``FaultError`` when a fault decides whether ``node`` runs: it must be healed, not started."""
        fault = self._book.find(node, _SIGNALLED)
        if fault is not None:
            raise FaultError(
                f"{node} is {'paused' if fault.kind is Kind.PAUSE else 'down'} by fault {fault.id}; "
                f"try: shardyard fault heal {fault.id}{self._flag}"
            )

    async def on_exit(self, node: str) -> None:
        """Note that a process ended: one that was stopped by a signal is so no more."""
        for fault_id in self._book.release(node):
            self._strike_out(fault_id)

    async def _answer_start(self, params: dict[str, Any]) -> dict[str, Any]:
        try:
            request = msgspec.convert(params, FaultRequest)
        except msgspec.ValidationError as error:
            raise FaultError(f"fault: {error}") from error
        async with self._turn:
            self._verify_running(request)
            fault = self._book.add(request)
            try:
                untold = await self._make_true(fault)
            except BaseException:
                self._strike_out(fault.id)
                await self._undo_all([fault])  # some processes may have it by now
                raise
            if fault.request.for_ms:
                self._timers[fault.id] = asyncio.create_task(
                    self._heal_later(fault), name=f"fault {fault.id}"
                )
        logger.info("fault %d begins: %s %s", fault.id, fault.kind, fault.describe())
        return {
            "fault": describe_fault(fault),
            "warnings": list_warnings(self._network, self._book.faults),
            "untold": untold,
        }

    async def _answer_list(self, params: dict[str, Any]) -> dict[str, Any]:
        del params
        return {
            "faults": [describe_fault(fault) for fault in self._book.faults],
            "warnings": list_warnings(self._network, self._book.faults),
        }

    async def _answer_heal(self, params: dict[str, Any]) -> dict[str, Any]:
        wanted = params.get("faults")
        chosen = [self._book.get(int(one)) for one in wanted] if wanted else self._book.faults
        return {"healed": [describe_fault(fault) for fault in chosen], "untold": await self._heal(chosen)}

    async def _heal_later(self, fault: Fault) -> None:
        await asyncio.sleep(fault.request.for_ms / 1000)
        self._timers.pop(fault.id, None)  # it is this task, which must not cancel itself
        # Nobody waits for this task: what it finds is said here or nowhere.
        try:
            untold = await self._heal([fault])
        except (OSError, ChildError, FaultError):
            logger.exception("fault %d could not be healed when its time was over", fault.id)
            return
        for node in untold:
            logger.warning(
                "fault %d is over, and %s did not hear of it; try: shardyard node restart %s%s",
                fault.id,
                node,
                node,
                self._flag,
            )

    async def _heal(self, faults: list[Fault]) -> list[str]:
        """Undo ``faults``; return which processes could not be told."""
        async with self._turn:
            # As the book has them: processes may have been let out of them since.
            struck = [fault for one in faults if (fault := self._strike_out(one.id)) is not None]
            untold = await self._undo_all(struck)
            for fault in struck:
                logger.info("fault %d is healed: %s %s", fault.id, fault.kind, fault.describe())
        return untold

    def _strike_out(self, fault_id: int) -> Fault | None:
        if (timer := self._timers.pop(fault_id, None)) is not None:
            timer.cancel()
        return self._book.remove(fault_id)

    # --- making them true ---

    def _verify_running(self, request: FaultRequest) -> None:
        """Raise ``FaultError`` when nothing could come of ``request``: the process is not there, or is gone already."""
        for side in (request.nodes, request.others):
            running = [node for node in side if node in self._children and self._children[node].pid]
            dead = [node for node in side if node in self._children and node not in running]
            if dead and (len(dead) == len(side) or request.kind in _SIGNALLED):
                fault = self._book.find(dead[0], _DOWN)
                why, remedy = (
                    (f"is down by fault {fault.id}", f"shardyard fault heal {fault.id}{self._flag}")
                    if fault is not None
                    else ("does not run", f"shardyard node start {dead[0]}{self._flag}")
                )
                raise FaultError(f"{request.kind}: {dead[0]} {why}; try: {remedy}")
        for node in request.nodes:
            if request.kind in {Kind.PAUSE, Kind.FULL_DISK} and (
                fault := self._book.find(node, {request.kind})
            ):
                raise FaultError(
                    f"{request.kind}: {node} has it already, by fault {fault.id}; "
                    f"try: shardyard fault heal {fault.id}{self._flag}"
                )

    async def _make_true(self, fault: Fault) -> list[str]:
        match fault.kind:
            case Kind.KILL:
                for node in fault.request.nodes:
                    self._children[node].kill_and_hold()
                    await self.on_exit(node)  # supervision tells only of those that it starts again
            case Kind.PAUSE:
                for node in fault.request.nodes:
                    self._children[node].pause()
                self._write_file()
            case Kind.FULL_DISK:
                for node in fault.request.nodes:
                    self._children[node].set_disk_full(full=True)
            case _:
                return await self._tell({*fault.request.nodes, *fault.request.others})
        return []

    async def _undo_all(self, faults: Sequence[Fault]) -> list[str]:
        """Undo ``faults`` for each of their processes, whatever becomes of the others; return those that could not be told.

        Each process is told once, however many faults it had: one that does not answer is waited for.
        """
        failed: set[str] = set()
        concerned: set[str] = set()
        for fault in faults:
            nodes = fault.request.nodes
            if fault.kind in _DONE_HERE:
                failed |= {node for node in nodes if not self._undo(fault.kind, node)}
            if fault.kind not in _DONE_HERE or fault.kind is Kind.PAUSE:  # those who slept heard nothing
                concerned |= {*nodes, *fault.request.others}
        return sorted(failed | set(await self._tell(concerned) if concerned else ()))

    def _undo(self, kind: Kind, node: str) -> bool:
        child = self._children[node]
        try:
            if kind is Kind.KILL:
                child.start()
            elif kind is Kind.PAUSE:
                child.resume()
            else:
                child.set_disk_full(full=False)
        except (ChildError, OSError) as error:
            logger.warning("%s of %s cannot be undone: %s", kind, node, error)
            return False
        return True

    async def _tell(self, nodes: Collection[str]) -> list[str]:
        """Tell ``nodes`` what holds now; return those that run and did not answer."""
        self._write_file()
        told = sorted({*nodes} - {BROKER})
        answers = await asyncio.gather(*(self._tell_node(node) for node in told))
        return [node for node, is_told in zip(told, answers, strict=True) if not is_told]

    async def _tell_node(self, node: str) -> bool:
        child = self._children[node]
        faults = msgspec.to_builtins(compute_node_faults(self._book.faults, node))
        deadline = asyncio.get_running_loop().time() + TELL_TIMEOUT_S
        # One that does not run, or sleeps, reads the file at its next start, or is told when it wakes.
        while child.pid is not None and not child.is_paused:
            with contextlib.suppress(ControlError):
                await ask(self._network.get_control_path(node), "faults", timeout_s=1.0, faults=faults)
                return True
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(TELL_AGAIN_S)
        return True

    def _write_file(self) -> None:
        faults = self._book.faults
        nodes = {node: compute_node_faults(faults, node) for node in self._network.nodes}
        paused = {
            name: child.pid
            for name, child in self._children.items()
            if child.is_paused and child.pid is not None
        }
        write_fault_file(self._network, FaultFile({n: f for n, f in nodes.items() if f.count}, paused))


def describe_fault(fault: Fault) -> dict[str, Any]:
    """Return a fault as people and programs read it."""
    asked: dict[str, Any] = msgspec.to_builtins(fault.request)
    return {
        "id": fault.id,
        "text": fault.describe(),
        "started_at": fault.started_at,
        "ends_at": fault.ends_at,
        **asked,
    }


def wake_orphans(network: Network, wait_s: float = 0.0) -> int:
    """Let processes go on that a launcher paused before it died: asleep, they would never notice that it is gone.

    The faults it left behind are forgotten with that. Return how many were woken; they have ``wait_s`` to leave.
    """
    import psutil

    woken: list[psutil.Process] = []
    for pid in read_fault_file(network).paused.values():
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if str(network.root) in " ".join(
                process.cmdline()
            ):  # else the number is another program's by now
                process.send_signal(signal.SIGCONT)
                woken.append(process)
    get_faults_path(network).unlink(missing_ok=True)
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and not all(map(_has_left, woken)):
        time.sleep(LEAVE_POLL_S)
    return len(woken)


def _has_left(process: "psutil.Process") -> bool:
    """Tell whether a process has ended; whoever inherited it may never ask for its status."""
    import psutil

    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
