"""What `tdpo doctor` says about the installation and the machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One finding: a note is worth knowing, a problem stops a run."""

    name: str
    state: Literal["ok", "note", "problem"]
    text: str


EXTRAS = {
    "train": "training and the command line",
    "eval": "evaluation and reports",
    "demo": "the bundled model",
}


def machine_checks() -> Iterator[Check]:
    """Versions, extras, devices, memory, disk, the bundled model."""
    from ..runs import versions

    found = {name: v for name, v in versions().items() if v}
    yield Check("versions", "ok", ", ".join(f"{name} {v}" for name, v in found.items()))
    for extra, purpose in EXTRAS.items():
        yield _extra(extra, purpose)
    yield from _trainer_hooks()
    yield from _hardware()
    yield _bundled_model()


def _extra(extra: str, purpose: str) -> Check:
    """Whether everything that the extra lists is installed, in a version that it allows."""
    missing = [text for text in map(_lacking, _requirements(extra)) if text]
    if not missing:
        return Check(f"extra {extra}", "ok", f"complete: {purpose}")
    state: Literal["note", "problem"] = "problem" if extra == "train" else "note"
    return Check(f"extra {extra}", state, f"missing {', '.join(missing)}; pip install 'tdpo[{extra}]' ({purpose})")


def _requirements(extra: str) -> list[str]:
    """The requirements of `extra` itself, each as `name specifiers`, from the installed package's metadata."""
    from packaging.requirements import Requirement

    try:
        lines = requires("tdpo") or []
    except PackageNotFoundError:
        return []
    parsed = [Requirement(line) for line in lines]
    return [
        f"{r.name} {r.specifier}"
        for r in parsed
        if r.marker is not None and r.name != "tdpo" and r.marker.evaluate({"extra": extra})
    ]


def _lacking(requirement: str) -> str | None:
    """None if the requirement is met, else what is wrong."""
    from packaging.specifiers import SpecifierSet

    name, _, specifiers = requirement.partition(" ")
    try:
        installed = version(name)
    except PackageNotFoundError:
        return name
    if not SpecifierSet(specifiers).contains(installed, prereleases=True):
        return f"{name} {specifiers} (installed: {installed})"
    return None


def _trainer_hooks() -> Iterator[Check]:
    """A problem where the trainers could not be imported with the installed transformers."""
    try:
        from ..training.hooks import check_hooks

        check_hooks()
    except ModuleNotFoundError:
        return  # which is said of the extra
    except ImportError as error:
        yield Check("transformers", "problem", str(error))


def _hardware() -> Iterator[Check]:
    from ..runs import hardware

    found = hardware()
    memory = f"{found['memory_gib']} GiB memory" if found["memory_gib"] else "memory unknown"
    yield Check("cpu", "ok", f"{found['cpu']}, {found['cores']} usable cores, {memory}")
    devices = [f"{d['name']}" + (f" ({d['memory_gib']} GiB)" if d["memory_gib"] else "") for d in found["gpu"]]
    yield Check("accelerators", "ok", ", ".join(devices) or "none: training runs on the CPU")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    state: Literal["ok", "note"] = "ok" if free > 5 else "note"
    yield Check("disk", state, f"{free:.1f} GiB free here" + ("" if state == "ok" else "; checkpoints need room"))
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        yield Check("network", "note", "HF_HUB_OFFLINE=1: models and data are taken from the local cache only")


def _bundled_model() -> Check:
    from ..models import BUNDLED
    from ..models.bundled import bundled_file, cache_folder

    try:
        bundled_file()
    except FileNotFoundError as error:
        return Check(BUNDLED, "note", str(error))
    converted = sorted((cache_folder() / "models").glob(f"{BUNDLED}-*/config.json"))
    if converted:
        return Check(BUNDLED, "ok", f"installed, converted copy in {converted[-1].parent}")
    return Check(BUNDLED, "ok", "installed; its first use converts it, which takes some 20 s")
