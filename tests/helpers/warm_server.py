"""Forks a process for every program that it is asked to run, with the large libraries loaded once for all of them.

A script of its own, started by `warm_processes`. It loads nothing of tdpo and nothing of the tests: each forked process
imports those itself, under the environment variables and in the folder that it was given.
"""

from __future__ import annotations

import array
import importlib
import json
import os
import runpy
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


def serve(address: str) -> dict[str, object]:
    """Answer requests for as long as the starting process lives; returns in the forked processes alone."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the processes in between need no wait
    print("ready", flush=True)
    while True:
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
    wanted = serve(sys.argv[1])
    if "module" in wanted:
        runpy.run_module(str(wanted["module"]), run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(wanted["script"]), run_name="__main__")
