"""Training on two processes as `accelerate launch` starts them, and processes that may be killed."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from helpers.warm_processes import WarmProcess

# What every process runs: functions of a test module, one after another, on a folder.
PROGRAM = """
import sys
sys.path[:0] = {folders!r}
import torch
torch.set_num_threads(1)
from pathlib import Path
import {module} as module
for name in {functions!r}:
    getattr(module, name)(Path(sys.argv[1]))
"""
# (`--cpu` would start one process, whatever it is asked for.)
TWO_ON_CPUS = ("--num_processes", "2", "--num_machines", "1", "--dynamo_backend", "no", "--main_process_port", "0")
PLAIN = ("--multi_gpu", "--mixed_precision", "no", *TWO_ON_CPUS)


def import_folders(module: str) -> list[str]:
    """Where another process finds a test module of this one, and what it imports."""
    file = sys.modules[module].__file__
    assert file is not None
    return [str(Path(file).parent), str(Path(__file__).parents[1])]


def write_program(module: str, folder: Path, functions: Sequence[str]) -> Path:
    """Make `folder` and, beside it, the script that calls the functions with it."""
    folder.mkdir()
    script = folder.with_suffix(".py")
    text = PROGRAM.format(folders=import_folders(module), module=module, functions=tuple(functions))
    script.write_text(text)
    return script


def run_two_processes(
    module: str, folder: Path, functions: Sequence[str] = ("distributed_run",), options: Sequence[str] = PLAIN
) -> None:
    """Call functions of `module` with `folder` on two warm CPU processes with gloo, as `accelerate launch` starts them.

    They have the environment that the launcher would give them (tests/training/test_launching.py).
    """
    script = write_program(module, folder, functions)
    environments = launch_environments([*options, str(script)])
    started = [WarmProcess(script, str(folder), environment=rank, stderr=subprocess.STDOUT) for rank in environments]
    for process in started:
        said, _ = process.communicate()
        assert process.returncode == 0, said[-6000:]


def launch_environments(options: Sequence[str]) -> list[dict[str, str]]:
    """All environment variables of the first process and of the second."""
    environment = {**on_cpus(), **launch_environment(options)}
    return [{**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def on_cpus() -> dict[str, str]:
    hidden = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    return {**os.environ, **hidden, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def launch_environment(options: Sequence[str]) -> Mapping[str, str]:
    """What the launcher tells its processes, all but their numbers."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(list(options)))
        environment = prepare_multi_gpu_env(arguments)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    sizes = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    return {**environment, **sizes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


@contextmanager
def clean_processes(module: str) -> Iterator[Any]:
    """Processes forked from a clean one that has imported everything once; each is a victim's own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    with pytest.MonkeyPatch.context() as patch:
        # Python 3.11's server does not inherit sys.path, and a package under test may stand in PYTHONPATH alone.
        folders = [*import_folders(module), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))
        # What asks CUDA itself whether there is a GPU cannot use one in the processes that it forks.
        patch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        forkserver.ensure_running()
    yield context
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
