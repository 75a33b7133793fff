"""What pyproject.toml promises is what is tested; a transformers without a hook that the trainers need is refused."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.requirements import Requirement
from packaging.version import Version
from transformers import Trainer

from tdpo.cli._machine_checks import machine_checks
from tdpo.training import PPOTrainer, TDPOTrainer, hooks

ROOT = Path(__file__).parents[2]


def floors() -> dict[str, str]:
    """What is installed with `tdpo[demo]`, and pytest and hypothesis, with the oldest version that is promised."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["train"], *extras["eval"], *extras["demo"]]
    lines += [line for line in extras["dev"] if line.startswith(("pytest>", "hypothesis>"))]
    parsed = [Requirement(line) for line in lines]
    return {r.name.lower(): str(r.specifier).removeprefix(">=") for r in parsed if r.name != "tdpo"}


def pins(file: str) -> dict[str, str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return {name.lower(): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)}


def test_every_floor_is_the_version_that_is_tested() -> None:
    oldest = pins("constraints-oldest.txt")
    for name, floor in floors().items():
        assert Version(oldest[name]) == Version(floor), f"{name}: promised from {floor} on, tested with {oldest[name]}"


def test_the_newest_tested_versions_are_no_older() -> None:
    newest = pins("constraints.txt")
    for name, floor in floors().items():
        assert name not in newest or Version(newest[name]) >= Version(floor), name


def test_trackers_are_tested_with_the_newest_tested_versions_of_what_trains() -> None:
    newest, theirs = pins("constraints.txt"), pins("constraints-trackers.txt")
    for name in ("torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "pydantic", "tensorboard"):
        assert theirs[name] == newest[name], name


def test_the_message_names_the_promised_version() -> None:
    assert floors()["transformers"] == hooks.OLDEST_TRANSFORMERS


@pytest.mark.parametrize("lacking", ["loss_is_scaled_for_ga", "_save_checkpoint"])
def test_a_transformers_without_a_hook_is_refused(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    monkeypatch.delattr(Trainer, lacking)
    with pytest.raises(ImportError, match=rf"from 5\.19 on; the installed .* has no Trainer\.{lacking}") as caught:
        hooks.check_hooks()
    assert transformers.__version__ in str(caught.value) and "pip install" in str(caught.value)
    problems = [check for check in machine_checks() if check.state == "problem"]
    assert any(lacking in check.text for check in problems)


@pytest.mark.parametrize("trainer", [TDPOTrainer, PPOTrainer])
def test_every_private_method_that_is_overridden_is_asserted(trainer: Any) -> None:
    ours = [name for kind in trainer.__mro__[: trainer.__mro__.index(Trainer)] for name in vars(kind)]
    private = {name for name in ours if name.startswith("_") and not name.startswith("__") and hasattr(Trainer, name)}
    private.discard("_abc_impl")
    assert private and private <= set(hooks.TRAINER_HOOKS)
