"""Checks of the installation and the machine for `tdpo doctor`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from ..installation import extra_command


@dataclass(frozen=True)
class Check:
    """The result of one check. A note is worth knowing; a problem would stop a run."""

    name: str
    state: Literal["ok", "note", "problem"]
    text: str


EXTRAS = {
    "train": "training and the command line",
    "eval": "evaluation and reports",
    "demo": "the bundled model",
}


def machine_checks() -> Iterator[Check]:
    """Check versions, extras, devices, memory, disk and the bundled model."""
    from ..runs import versions

    yield Check("versions", "ok", ", ".join(f"{name} {number}" for name, number in versions().items() if number))
    for extra, purpose in EXTRAS.items():
        yield _extra(extra, purpose)
    yield from _trainer_hooks()
    yield from _hardware()
    yield _bundled_model()


def _extra(extra: str, purpose: str) -> Check:
    """Check that every package of the extra is installed in a version that the extra allows."""
    missing = [text for text in map(_lacking, _requirements(extra)) if text]
    if not missing:
        return Check(f"extra {extra}", "ok", f"complete: {purpose}")
    state: Literal["note", "problem"] = "problem" if extra == "train" else "note"
    return Check(f"extra {extra}", state, f"missing {', '.join(missing)}; {extra_command(extra)} ({purpose})")


def _requirements(extra: str) -> list[str]:
    """Return the requirements of `extra`, each as `name specifiers`, from the metadata of the installed package."""
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
    """Return what is wrong with a requirement, or None if it is met."""
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
    """Report a problem if the trainers cannot be imported with the installed transformers."""
    try:
        from ..training.hooks import check_hooks

        check_hooks()
    except ModuleNotFoundError:
        return  # the check of the extra says so
    except ImportError as error:
        yield Check("transformers", "problem", str(error))


def _hardware() -> Iterator[Check]:
    from ..records.caches import readable_bytes
    from ..runs import hardware

    machine = hardware()
    memory = f"{readable_bytes(machine['memory_gib'] * 2**30)} memory" if machine["memory_gib"] else "memory unknown"
    yield Check("cpu", "ok", f"{machine['cpu']}, {machine['cores']} usable cores, {memory}")
    sizes = [f" ({readable_bytes(d['memory_gib'] * 2**30)})" if d["memory_gib"] else "" for d in machine["gpu"]]
    devices = [f"{device['name']}{size}" for device, size in zip(machine["gpu"], sizes, strict=True)]
    yield Check("accelerators", "ok", ", ".join(devices) or "none: models run on the CPU")
    yield _products()
    free = shutil.disk_usage(Path.cwd()).free
    state: Literal["ok", "note"] = "ok" if free > 5e9 else "note"
    yield Check(
        "disk", state, f"{readable_bytes(free)} free here" + ("" if state == "ok" else "; checkpoints need room")
    )
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        yield Check("network", "note", "HF_HUB_OFFLINE=1: models and data are taken from the local cache only")


def _products() -> Check:
    """Say how fast products are. It is measured, as flags of a processor do not say it."""
    from ..models.devices import device_of
    from ..models.product_speed import product_speed

    speed = product_speed(device_of())
    verdict = {(True, False): "bfloat16 is faster", (False, True): "float32 is faster"}.get(
        (speed.prefers_half, speed.is_slower), "about the same"
    )
    return Check("products", "ok", f"measured, of one core or device: {speed.describe()}; {verdict}")


def _bundled_model() -> Check:
    from ..models import BUNDLED
    from ..models.bundled import converted_folder
    from ..records.caches import cache_folder

    try:
        converted_folder()
    except FileNotFoundError as error:
        return Check(BUNDLED, "note", str(error))
    copies = sorted((cache_folder() / "models").glob(f"{BUNDLED}-*/config.json"))
    if copies:
        return Check(BUNDLED, "ok", f"here, converted copy in {copies[-1].parent}")
    return Check(BUNDLED, "ok", "installed; its first use converts it, which takes some 20 s")
