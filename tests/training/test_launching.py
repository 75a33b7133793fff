"""Tests on two processes start them without `accelerate launch`: with what it would have given them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers.several_processes import PLAIN, launch_environments, on_cpus
from helpers.sharding_on_cpus import SHARDED
from helpers.warm_processes import WarmProcess

PROGRAM = """
import json, os, pathlib, sys
pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text(json.dumps(dict(os.environ)))
"""
# The launcher's own: where its processes meet, and what its supervisor and the threads' libraries are told besides.
OTHERWISE = ("MASTER_ADDR", "MASTER_PORT")


@pytest.mark.slow
@pytest.mark.parametrize("options", [PLAIN, SHARDED], ids=["plain", "sharded"])
def test_processes_are_told_what_the_launcher_tells_them(options: Sequence[str], tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    launched = WarmProcess(
        "accelerate.commands.launch", *options, str(script), str(tmp_path), environment=on_cpus(), folder=tmp_path
    )
    said = launched.communicate(timeout=120)
    assert launched.returncode == 0, said
    for rank, ours in enumerate(launch_environments([*options, str(script)])):
        theirs = json.loads((tmp_path / str(rank)).read_text())
        differing = {k: (v, theirs.get(k)) for k, v in ours.items() if theirs.get(k) != v and k not in OTHERWISE}
        assert differing == {}
        told = {name for name in theirs.keys() - ours.keys() if name.startswith(("ACCELERATE", "FSDP", "DYNAMO"))}
        assert told == set()
