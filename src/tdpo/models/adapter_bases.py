"""The base model that an adapter names: noted when it is saved so that it can be found again, and found when it loads.

A folder is noted by its absolute path, a model of the hub by its name and revision, and the bundled model by its name.
A name without a revision may be a folder's, as earlier versions and other programs noted it. It is looked for as a
folder first; of a run's adapter it is not fetched from the hub, where a stranger's model may have that name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..records.caches import cache_folder
from ..records.names import RECIPE_FILE, STATUS_FILE
from .bundled import BUNDLED
from .folder_files import is_adapter_folder, read_json_object

CONFIG = "adapter_config.json"
# The bundled model's converted copy in somebody's cache, as earlier versions noted it.
BUNDLED_COPY = re.compile(rf".*[/\\]models[/\\]{re.escape(BUNDLED)}-[^/\\]+[/\\]?")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_SNAPSHOT = re.compile(r".*/models--(?P<name>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})")
WITH_REVISION = re.compile(rf"(?P<name>{HUB_NAME.pattern})@(?P<revision>[\w./-]+)")


def note_base(model: Any) -> None:
    """Make the adapters of a peft model name their base so that it can be found again when they are saved.

    A base that was made in memory has no name, and keeps the one that it has in the adapter's configuration.
    """
    base = model.get_base_model()
    name = str(getattr(base, "name_or_path", "") or "")
    if not name:
        return
    found, revision = findable_base(name)
    for config in model.peft_config.values():
        config.base_model_name_or_path = found
        if config.revision is None and not _is_local(found):
            config.revision = revision or _revision_of(base, found)


def findable_base(name: str) -> tuple[str, str | None]:
    """`name` as it can be found from anywhere, and its revision where the name tells it.

    That is a folder's absolute path, the bundled model's name, or a hub name, also for a folder in the cache of these.
    """
    if not _is_local(name):
        match = WITH_REVISION.fullmatch(name)
        return (match["name"], match["revision"]) if match else (name, None)
    path = Path(name).expanduser().absolute()  # links stay what the user made them
    if name == BUNDLED or _is_bundled_copy(path):
        return BUNDLED, None
    if match := HUB_SNAPSHOT.fullmatch(path.as_posix()):
        return match["name"].replace("--", "/"), match["revision"]
    return str(path), None


def note_revision(model: Any, name: str) -> None:
    """Note on a model that was just loaded from the hub which revision it is: the newest that this machine knows."""
    cached = None if _is_local(name) else _cached_configuration(name)
    if cached is not None:
        model.hub_revision = cached.parent.name


def _revision_of(base: Any, name: str) -> str | None:
    """The revision of a loaded hub model as it was noted, or the only one on this machine.

    Current versions of transformers note none, so where there are several and somebody else loaded it, none is certain.
    """
    if noted := getattr(base, "hub_revision", None) or getattr(base.config, "_commit_hash", None):
        return str(noted)
    cached = _cached_configuration(name)
    revisions = [] if cached is None else [place.name for place in cached.parent.parent.iterdir()]
    return revisions[0] if len(revisions) == 1 else None


def _cached_configuration(name: str) -> Path | None:
    """The config.json of a hub model that is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    return Path(cached) if isinstance(cached, str) else None


def _is_local(name: str) -> bool:
    return name == BUNDLED or Path(name).expanduser().is_dir()


def _is_bundled_copy(path: Path) -> bool:
    if not path.name.startswith(f"{BUNDLED}-"):
        return False
    return path.parent.resolve() == (cache_folder() / "models").resolve()


def adapter_base(folder: str | Path) -> str:
    """Where the base model of an adapter's folder is: a folder, the bundled name, or a hub name, perhaps "@revision".

    Raises:
        ValueError: it names no model, itself, or another adapter.
        FileNotFoundError: it names a folder that is not there, or a name of which it cannot be told that it is one of
            the hub.
    """
    file = Path(folder) / CONFIG
    facts = read_json_object(file)
    base, revision = facts.get("base_model_name_or_path"), facts.get("revision")
    if not isinstance(base, str) or not base.strip():
        raise ValueError(
            f"{file} names no base model: set base_model_name_or_path to the folder or the hub name of the model that "
            "the adapter was trained on"
        )
    place = _folder_of(base, Path(folder))
    if place is None:
        return _elsewhere(base, revision, file)
    if not is_adapter_folder(place):
        return base if place == Path(base) else str(place)
    if place.resolve() == Path(folder).resolve():
        raise ValueError(
            f"{file} names the adapter itself as its base model ({base}): set base_model_name_or_path to the model "
            "that the adapter was trained on"
        )
    raise ValueError(
        f"{file} names {base} as its base model, which is an adapter too. Merge that one first (tdpo merge {base} "
        "MERGED) and set base_model_name_or_path to the merged folder."
    )


def _folder_of(base: str, adapter: Path) -> Path | None:
    """The folder that `base` names: from here, or from a folder around the adapter, as relative paths were noted."""
    path = Path(base).expanduser()
    if path.is_dir():
        return path
    around = [] if path.is_absolute() else [parent / path for parent in adapter.resolve().parents]
    return next((place for place in around if (place / "config.json").is_file()), None)


def _elsewhere(base: str, revision: Any, file: Path) -> str:
    """The name to load a base by that is no folder."""
    if base == BUNDLED or BUNDLED_COPY.fullmatch(base):
        return BUNDLED
    if not HUB_NAME.fullmatch(base) or base.startswith("."):
        return base  # a path, and whoever loads it says that there is nothing
    if isinstance(revision, str) and revision:
        return f"{base}@{revision}"
    if _is_of_a_run(file.parent) and _cached_configuration(base) is None:
        raise FileNotFoundError(
            f"no model at {base}: there is no such folder in {Path.cwd()} or around the adapter, and no model of the "
            f"hub of that name on this machine. If it is one of the hub, let {file} say so by a revision "
            '("revision": "main")'
        )
    return base


def _is_of_a_run(adapter: Path) -> bool:
    """Whether tdpo wrote the adapter: it is the model or a checkpoint of a run directory."""
    return all((adapter.resolve().parent / name).is_file() for name in (RECIPE_FILE, STATUS_FILE))


def snapshot(name: str) -> str | None:
    """The folder of a hub model "name@revision", fetched where it is not on this machine; None for any other name.

    Raises:
        FileNotFoundError: it is not on this machine and cannot be fetched.
    """
    match = WITH_REVISION.fullmatch(name)
    if match is None:
        return None
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py"]
    try:
        return str(snapshot_download(match["name"], revision=match["revision"], allow_patterns=patterns))
    except Exception as error:  # no network, no such revision, a gated model: each raises another class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"the model {match['name']} at revision {match['revision']} is not in the cache of hub models on this "
            f"machine and cannot be fetched: {reason} Fetch it where there is a network: hf download {match['name']} "
            f"--revision {match['revision']}"
        ) from error
