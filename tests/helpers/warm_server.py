"""Forks a process for every program that it is asked to run, with the large libraries loaded once for all of them.

A script of its own, started by `warm_processes`. It loads nothing of tdpo and nothing of the tests: each forked process
imports those itself, under the environment variables and in the folder that it was given.
"""

from __future__ import annotations

import array
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys

LIBRARIES = (
    "torch", "transformers", "transformers.trainer", "peft", "datasets", "accelerate", "safetensors.torch", "pydantic",
    "yaml", "typer", "rich.console", "rich.table", "rich.progress",
)  # fmt: skip
MOST = 1 << 20  # bytes of a request


def receive(connection: socket.socket) -> tuple[dict[str, object], list[int]]:
    """A request (a line of JSON) and the descriptors that come with it."""
    text, descriptors = b"", array.array("i")
    while not text.endswith(b"\n"):
        part, ancillary, _, _ = connection.recvmsg(MOST, socket.CMSG_LEN(3 * descriptors.itemsize))
        for _, _, content in ancillary:
            descriptors.frombytes(content)
        if not part:
            raise EOFError
        text += part
    return json.loads(text), list(descriptors)


def become(request: dict[str, object], descriptors: list[int]) -> None:
    """Make this process what a new one would be: session, streams, folder, environment, signals, arguments."""
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(str(request["folder"]))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.path[:] = [*request["path"], *sys.path[1:]]  # type: ignore[misc]
    sys.argv[:] = request["arguments"]  # type: ignore[index]
    sys.executable = str(request["interpreter"] or sys.executable)


def prepare_forkserver() -> None:
    """Let multiprocessing's own fork server, where the program starts one, begin with the libraries loaded as well.

    It is a child of the program as always, forked now, while the program has no threads, and idle until it is wanted.
    """
    from multiprocessing import util

    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        become_forkserver(theirs)
    theirs.close()
    start_interpreter = util.spawnv_passfds

    def start(path: object, arguments: list[object], descriptors: list[int]) -> int:
        code = str(arguments[-1])
        if not code.startswith("from multiprocessing.forkserver import main"):
            return start_interpreter(path, arguments, descriptors)  # type: ignore[arg-type]
        line = json.dumps({"code": code, "numbers": list(descriptors)}).encode() + b"\n"
        ours.sendmsg([line], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
        ours.close()
        util.spawnv_passfds = start_interpreter  # one is prepared
        return child

    util.spawnv_passfds = start  # type: ignore[assignment]


def become_forkserver(connection: socket.socket) -> None:
    """Wait for what a new interpreter would be started with, and run it; end where the program ends before."""
    try:
        request, descriptors = receive(connection)
        numbers: list[int] = request["numbers"]  # type: ignore[assignment]
        # By way of numbers that neither side uses, as one may be the other's.
        moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 100 + max(numbers)) for descriptor in descriptors]
        for descriptor, number in zip(moved, numbers, strict=True):
            os.dup2(descriptor, number)
        for descriptor in {*moved, *descriptors} - set(numbers):
            os.close(descriptor)
        exec(str(request["code"]), {"__name__": "__main__"})
    except EOFError:
        pass
    finally:
        os._exit(0)


def serve(address: str) -> dict[str, object]:
    """Answer requests for as long as the starting process lives; returns in the forked processes alone."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the processes in between need no wait
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:  # its other end is closed: nobody is left to ask
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        # A process in between waits for the program and tells how it ended.
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        request, descriptors = receive(connection)
        program = os.fork()
        if not program:
            connection.close()
            become(request, descriptors)
            prepare_forkserver()
            return request
        for descriptor in descriptors:
            os.close(descriptor)
        os.setsid()
        connection.sendall(b"%d\n" % program)
        _, status = os.waitpid(program, 0)
        try:
            connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        finally:
            os._exit(0)


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()  # collections in forked processes pass over the libraries, and so leave their memory shared
    wanted = serve(sys.argv[1])
    if "module" in wanted:
        runpy.run_module(str(wanted["module"]), run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(wanted["script"]), run_name="__main__")
