"""The files for `accelerate launch` say what docs/scaling.md says of them, and the launcher reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.several_processes import launch_environment

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples/accelerate").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_launcher_reads_the_file(file: Path) -> None:
    environment = launch_environment(["--config_file", str(file), "script.py"])
    shards = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no", "the recipe says what is computed in"
    if "fsdp2" in file.stem:
        assert shards.items() <= environment.items()
        assert environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    else:
        assert not shards.keys() & environment.keys()


def test_the_page_names_every_file_and_no_other() -> None:
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    assert set(re.findall(r"examples/accelerate/(\w+\.yaml)", page)) == {file.name for file in FILES}
