"""The commands that install what is missing, from where this package came.

No hint names `tdpo` for an index to look up: unless the project is published there, somebody else's package may answer.
"""

from __future__ import annotations

import json
import re
import shlex
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path
from urllib.parse import unquote, urlparse

# Modules that no extra installs, by the package that a value of a recipe needs.
PACKAGES_BY_CHOICE = {
    "adamw_8bit": "bitsandbytes",
    "paged_adamw_8bit": "bitsandbytes",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "comet_ml": "comet_ml",
    "clearml": "clearml",
    "swanlab": "swanlab",
}
_PACKAGES_BY_MODULE = {"yaml": "pyyaml"}  # where they have different names
_SOURCE_TREE = Path(__file__).resolve().parents[2]


def extra_command(extra: str) -> str:
    """Return the command that installs an extra of this package, such as "eval", from where the package came.

    That is a clone, a wheel or an address as far as the installation knows it (PEP 610), and the clone's own command
    otherwise.
    """
    if (_SOURCE_TREE / "pyproject.toml").is_file() and (_SOURCE_TREE / "src" / "tdpo").is_dir():
        return _from_folder(_SOURCE_TREE, extra, editable=True)
    origin = _origin()
    url = str(origin.get("url", ""))
    if url.startswith("file:"):
        path = Path(unquote(urlparse(url).path))
        if path.is_dir():
            return _from_folder(path, extra, editable=bool(_part(origin, "dir_info").get("editable")))
        if path.is_file():
            return f"pip install {shlex.quote(f'{path}[{extra}]')}"
    elif url:
        return f"pip install {shlex.quote(f'tdpo[{extra}] @ {_with_revision(url, origin)}')}"
    return f'pip install -c constraints.txt ".[{extra}]" (in a clone of tdpo)'


def module_command(module: str) -> str:
    """Return what to do about a module that cannot be imported: the command of the extra or package that has it.

    A module that is neither may be the user's own, and a package of its name a stranger's: for it no command is given.
    """
    top = module.partition(".")[0]
    package = _PACKAGES_BY_MODULE.get(top, top)
    extra = _extra_with(package)
    if extra is not None:
        return extra_command(extra)
    if package in PACKAGES_BY_CHOICE.values():
        return f"pip install {package}"
    return "install the package that provides it, or put its folder on PYTHONPATH if it is your own"


def _from_folder(folder: Path, extra: str, *, editable: bool) -> str:
    pins = folder / "constraints.txt"
    limits = f"-c {shlex.quote(str(pins))} " if pins.is_file() else ""
    return f"pip install {limits}{'-e ' if editable else ''}{shlex.quote(f'{folder}[{extra}]')}"


def _origin() -> dict[str, object]:
    """Return where the installed package came from; {} if the installation does not know, as from an index."""
    try:
        text = distribution("tdpo").read_text("direct_url.json")
        origin = json.loads(text) if text else {}
    except (PackageNotFoundError, OSError, ValueError):
        return {}
    return origin if isinstance(origin, dict) else {}


def _with_revision(url: str, origin: dict[str, object]) -> str:
    """Return the address as pip takes it: that of a repository has its kind before it and its commit behind it."""
    vcs = _part(origin, "vcs_info")
    if not vcs:
        return url
    commit = f"@{vcs['commit_id']}" if vcs.get("commit_id") else ""
    return f"{vcs.get('vcs', 'git')}+{url}{commit}"


def _part(origin: dict[str, object], name: str) -> dict[str, object]:
    part = origin.get(name)
    return part if isinstance(part, dict) else {}


def _extra_with(package: str) -> str | None:
    """Return the extra of this package that lists `package`, or None if none does."""
    try:
        requirements = requires("tdpo") or []
    except PackageNotFoundError:
        return None
    for line in requirements:
        requirement, _, marker = line.partition(";")
        name = re.match(r"[\w.-]*", requirement)
        if name and _normalised(name.group()) == _normalised(package) and "extra ==" in marker:
            return marker.partition("extra ==")[2].strip(" '\"")
    return None


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
