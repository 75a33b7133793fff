"""Processes of their own without the seconds that every new interpreter spends on importing torch and transformers.

A server loads these libraries once and forks; the forked process runs a module or a script as `python -m` or `python`
would, with its own streams, session, folder and environment, and can be signalled and killed. Where the start of the
interpreter itself is the point, tests start a real one.
"""

from __future__ import annotations

import array
import atexit
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

SERVER = Path(__file__).with_name("warm_server.py")


@functools.cache
def server_address() -> str:
    """The socket of this process's server, which is started on first use and ends with this process."""
    folder = tempfile.mkdtemp(prefix="tdpo-warm-")
    address = f"{folder}/socket"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(
        [sys.executable, str(SERVER), address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        start_new_session=True,
    )  # fmt: skip
    atexit.register(server.kill)  # it also ends by itself once our end of its input is closed
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    assert server.stdout is not None and server.stdout.readline() == b"ready\n", "the warm server did not start"
    return address


def ask(address: str, request: Mapping[str, Any], descriptors: Sequence[int]) -> socket.socket:
    """Send a request with the three standard streams; answers are the process's id and, later, how it ended."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    line = json.dumps(request).encode() + b"\n"
    streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    sent = connection.sendmsg([line], streams)
    connection.sendall(line[sent:])
    return connection


class WarmProcess:
    """`python -m program` or `python program`, with what a test needs of `subprocess.Popen`."""

    def __init__(
        self,
        program: str | Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        folder: Path | str | None = None,
        interpreter: Path | None = None,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
    ) -> None:
        """What the streams are not given for goes to a file of its own, which `output` and `errors` read.

        `interpreter` is what the program finds as `sys.executable` (`warm_python`); otherwise it is the real one.
        """
        self._files = tuple(tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 (closed with this object)
        out = self._files[0] if stdout is None else stdout
        err = self._files[1] if stderr is None else out if stderr == subprocess.STDOUT else stderr
        given = os.environ if environment is None else environment
        request = _request(program, arguments, given, folder or Path.cwd(), interpreter)
        with Path(os.devnull).open("rb") as nothing:
            streams = [stream if isinstance(stream, int) else stream.fileno() for stream in (nothing, out, err)]
            self._connection = ask(server_address(), request, streams)
        self._answers = self._connection.makefile("rb")
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.returncode = int(self._answers.readline())
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Wait for the end; a process that takes longer than `timeout` seconds is killed, which fails the test."""
        if self.returncode is None and not select.select([self._connection], [], [], timeout)[0]:
            self.kill()
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    @property
    def output(self) -> str:
        return _text_of(self._files[0])

    @property
    def errors(self) -> str:
        return _text_of(self._files[1])

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it wrote to both streams until its end."""
        self.wait(timeout)
        return self.output, self.errors


def _request(
    program: str | Path,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    folder: Path | str,
    interpreter: Path | None = None,
) -> dict[str, Any]:
    path = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        "module" if isinstance(program, str) else "script": str(program),
        "arguments": [str(program), *arguments],
        "environment": dict(environment),
        "folder": str(folder),
        "interpreter": interpreter and str(interpreter),
        "path": ["" if isinstance(program, str) else str(program.parent), *path],
    }


def _text_of(file: IO[bytes]) -> str:
    """All of a file whose position is shared with a process that may still write."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


# A command for the shell: it lends its streams to a warm process and ends as that does.
SHIM = """#!{python} -I
import sys
sys.path.insert(0, {tests!r})
from helpers.warm_processes import lend_streams
sys.exit(lend_streams({address!r}, {program}))
"""


def lend_streams(address: str, program: str | Path, arguments: Sequence[str]) -> int:
    """Run a module, or a script, in a warm process with the streams of this one; its exit status, as a shell has it."""
    request = _request(program, arguments, os.environ, Path.cwd())
    answers = ask(address, request, (0, 1, 2)).makefile("rb")
    answers.readline()
    status = int(answers.readline())
    return status if status >= 0 else 128 - status


def _write_shim(command: Path, program: str) -> Path:
    tests = str(Path(__file__).parents[1])
    text = SHIM.format(python=sys.executable, tests=tests, address=server_address(), program=program)
    command.write_text(text)
    command.chmod(0o755)
    return command


def folder_with_tdpo(folder: Path) -> Path:
    """A folder for $PATH whose `tdpo` does what the installed one does, without the interpreter's start."""
    folder.mkdir()
    _write_shim(folder / "tdpo", '"tdpo", sys.argv[1:]')
    return folder


def warm_python(command: Path) -> Path:
    """Make `command` an interpreter that runs scripts, and takes no options, in warm processes."""
    return _write_shim(command, '__import__("pathlib").Path(sys.argv[1]), sys.argv[2:]')
