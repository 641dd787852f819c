"""``python -m node.launcher.fork_server FD``: loads what a node needs, then forks a process for each node that is asked for.

To load a node's modules takes a third of a second of processor time, more than all the rest of its start. Here that is done
once for all nodes and all their restarts, and the pages are shared. The server has no thread, so what it forks is as whole as
what ``exec`` would make; it runs nothing itself and holds no key.

Requests and reports are lines of JSON over the socket FD, whose other end the launcher has (``node.launcher.forking``). With a
request come two descriptors: standard input of the new process, and its output. When the launcher goes, so does the server.
"""

import errno
import gc
import os
import resource
import selectors
import signal
import socket
import sys
from typing import Final

import msgspec
import setproctitle

MAX_REQUEST_BYTES: Final = 64 * 1024
PRELOADED: Final = ("node.process", "node.beacon_process", "node.shard_process")


class ForkRequest(msgspec.Struct, frozen=True):
    """Start a node with these arguments of ``python -m node.process``."""

    arguments: list[str]
    is_disk_full: bool = False
    """Whether every write of the new process to a file is to fail."""


class Report(msgspec.Struct, frozen=True):
    """A process began, or one ended with ``code``: its exit status, or the number of its signal, negative.

    With ``errno``, the system would not make one.
    """

    pid: int
    code: int | None = None
    errno: int = 0


class ForkServer:
    """Forks on request, reaps, and tells both."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def serve(self) -> ForkRequest | None:
        """Return what to run in a new process; in the server itself return None, once the launcher is gone."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._wake_read in ready:
                    self._reap()
                if self._channel not in ready:
                    continue
                data, descriptors, _, _ = socket.recv_fds(self._channel, MAX_REQUEST_BYTES, 2)
                if not data:
                    return None
                request = msgspec.json.decode(data, type=ForkRequest)
                if self._fork(descriptors):
                    return request

    def _fork(self, descriptors: list[int]) -> bool:
        """Tell whether this is the new process."""
        try:
            pid = os.fork()
        except OSError as error:  # too many processes, or no memory
            pid = -1
            self._tell(Report(pid, errno=error.errno or errno.EAGAIN))
        if pid > 0:
            self._tell(Report(pid))
        elif pid == 0:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._channel.close()
            standard_input, output = descriptors
            for source, target in ((standard_input, 0), (output, 1), (output, 2)):
                os.dup2(source, target)
        for descriptor in descriptors:
            os.close(descriptor)
        return pid == 0

    def _reap(self) -> None:
        while os.read(self._wake_read, 4096) == b"\0" * 4096:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._tell(Report(pid, os.waitstatus_to_exitcode(status)))

    def _tell(self, report: Report) -> None:
        self._channel.sendall(msgspec.json.encode(report) + b"\n")


def main() -> int:
    """Serve the launcher; in every process that is forked, run its node."""
    server = ForkServer(socket.socket(fileno=int(sys.argv[1])))
    for module in PRELOADED:
        __import__(module)
    gc.collect()
    gc.freeze()  # no collection writes to pages that all nodes share
    request = server.serve()
    if request is None:
        return 0
    from node import process

    setproctitle.setproctitle(" ".join(["python -m node.process", *request.arguments]))
    if request.is_disk_full:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    return process.main(request.arguments)


if __name__ == "__main__":
    sys.exit(main())
