"""`make test-gpu` computes on the GPU, and every other target on the CPU: neither passes by testing the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from helpers import devices

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
# What ties a test to the CPU whatever there is. The helpers ask `helpers/devices.py`.
TIES = re.compile(r"""use_cpu["']?\s*[=:]\s*True|device\s*=\s*["']cpu|model\.device[=:]\s*cpu""")


def gpu_tests() -> list[Path]:
    [listed] = re.findall(r"^GPU_TESTS = \$\(addprefix tests/, (.*?)\)$", MAKEFILE, re.M | re.S)
    return [ROOT / "tests" / name for name in listed.replace("\\\n", "").split()]


def test_what_runs_on_a_gpu_is_not_tied_to_the_cpu() -> None:
    listed = gpu_tests()
    assert len(listed) > 10 and all(path.exists() for path in listed), listed
    files = [file for path in listed for file in ([path] if path.is_file() else path.glob("*.py"))]
    helpers = [file for file in (ROOT / "tests/helpers").glob("*.py") if file.name != "devices.py"]
    tied = {
        f"{file.name}:{number}": line
        for file in [*files, *helpers]
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if TIES.search(line)
    }
    assert not tied
    assert TIES.search('"use_cpu": True,') and TIES.search("use_cpu=True)"), "it can find one"


def test_models_of_tests_go_where_torch_sees_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, name, room in ((True, "cuda", 10.0), (False, "cpu", 1.0)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert (devices.device(), devices.rounding()) == (name, room)


def test_every_other_target_hides_the_gpu() -> None:
    assert re.search(r"^ON_CPU = CUDA_VISIBLE_DEVICES= ", MAKEFILE, re.M)
    for target in ("test", "test-fast", "test-oldest", "test-gpu"):
        [recipe] = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)
        [line] = [line for line in recipe.splitlines() if "-m pytest" in line]
        assert line.startswith("\t$(ON_CPU) ") == (target != "test-gpu"), target
