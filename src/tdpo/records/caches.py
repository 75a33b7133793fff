"""What tdpo keeps to save work and can make again: where it lies, how large it is, who uses it, how it is deleted.

A cache is a folder. `about.json` says of which model and data it is, and the time of its file `in_use.lock` is that of
its last use; whoever uses it holds that lock, shared with others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from .files import now
from .folders import remove
from .json_files import read_json, write_json
from .locks import is_locked, is_shared, lock, shared_lock

ABOUT, IN_USE, MANIFEST = "about.json", "in_use.lock", "cache.json"
REFERENCE, UNFINISHED, COPY = "reference cache", "unfinished reference cache", "converted model"
LIMIT_VARIABLE, DEFAULT_LIMIT = "TDPO_CACHE_LIMIT", 100_000_000_000
_KEY = re.compile(r"[0-9a-f]{32}")
_BEING_DELETED = ".being-deleted"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([kMGT]?B?)\s*", re.IGNORECASE)


def cache_folder() -> Path:
    """The folder for files that tdpo can make again: $TDPO_CACHE, else $XDG_CACHE_HOME/tdpo, else ~/.cache/tdpo."""
    if folder := os.environ.get("TDPO_CACHE"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tdpo"


@dataclass(frozen=True)
class Cache:
    """One cache on disk. `bytes` is what its files take; `about` may be empty, as earlier versions wrote none."""

    folder: Path
    kind: str
    bytes: int
    about: Mapping[str, Any]
    last_used: float  # seconds since 1970
    in_use: bool

    @property
    def model(self) -> str:
        return str(self.about.get("model", "unknown model"))

    @property
    def data(self) -> str:
        return str(self.about.get("data", "unknown data"))

    @property
    def last_used_on(self) -> str:
        return datetime.fromtimestamp(self.last_used, UTC).strftime("%Y-%m-%d")


def note_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Say in a new cache of which model and data it is."""
    write_json(folder / ABOUT, {**about, "made": now()})


def use(folder: Path) -> IO[Any] | None:
    """Mark a cache as used now, and as in use for as long as the file that is returned is open.

    None where the disk allows no mark: a cache that is only to be read can also not be deleted from here.
    """
    return shared_lock(folder / IN_USE)


def reference_caches(root: Path) -> list[Cache]:
    """The finished and unfinished reference caches directly inside `root`, the least recently used first."""
    if not root.is_dir():
        return []
    found = [cache for entry in root.iterdir() if (cache := _reference_cache(entry)) is not None]
    return sorted(found, key=lambda cache: (cache.last_used, cache.folder.name))


def _reference_cache(folder: Path) -> Cache | None:
    key, _, rest = folder.name.partition(".")
    if folder.is_symlink() or not folder.is_dir() or not _KEY.fullmatch(key):
        return None
    if rest == "" and (folder / MANIFEST).is_file():
        manifest = _read(folder / MANIFEST)
        fingerprint = manifest.get("fingerprint")
        digest = str(fingerprint.get("model", "?"))[:8] if isinstance(fingerprint, dict) else "?"
        of_earlier_versions = {"model": f"unknown (digest {digest})", "data": f"{manifest.get('pairs', '?')} pairs"}
        about = {**of_earlier_versions, **_read(folder / ABOUT)}
        return _cache(folder, REFERENCE, about, is_shared(folder / IN_USE))
    if rest == "partial":
        return _cache(folder, UNFINISHED, _read(folder / ABOUT), is_locked(folder.with_name(f"{key}.lock")) is True)
    return _cache(folder, UNFINISHED, {}, False) if rest == _BEING_DELETED[1:] else None


def converted_models(root: Path) -> list[Cache]:
    """The converted copies of bundled models in `root`."""
    if not root.is_dir():
        return []
    folders = [folder for folder in sorted(root.iterdir()) if (folder / "config.json").is_file()]
    return [_cache(folder, COPY, {"model": folder.name, "data": "–"}, is_shared(folder / IN_USE)) for folder in folders]


def _cache(folder: Path, kind: str, about: Mapping[str, Any], in_use: bool) -> Cache:
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes, times = 0, [folder.stat().st_mtime]
    for path in files:
        with suppress(FileNotFoundError):  # it is deleted at this moment
            sizes += path.stat().st_size
            times += [path.stat().st_mtime] if path.name in (IN_USE, MANIFEST) else []
    return Cache(folder, kind, sizes, about, max(times), in_use)


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = read_json(path)
        return content if isinstance(content, dict) else {}
    return {}


def delete(cache: Cache) -> bool:
    """Delete a cache, unless a process uses or makes it; returns whether it is gone."""
    if not cache.folder.exists():
        return True
    makers = cache.folder.with_name(f"{cache.folder.name.partition('.')[0]}.lock")
    guard = cache.folder / IN_USE if cache.kind != UNFINISHED else makers
    with lock(guard) as is_free:
        if not is_free:
            return False
        going = cache.folder.with_name(f"{cache.folder.name.partition('.')[0]}{_BEING_DELETED}")
        if going != cache.folder:
            remove(going)
            cache.folder.rename(going)  # nobody finds half of it
        remove(going)
    return True


def room_left(root: Path, limit: int, own_folder: Path) -> int:
    """The bytes that a cache in `own_folder` of `root` may take: the limit less what processes use now."""
    return limit - sum(cache.bytes for cache in _others(root, own_folder) if cache.in_use)


def make_room(root: Path, needed: int, limit: int, own_folder: Path) -> list[Cache]:
    """Delete caches in `root`, the least recently used first, until `needed` more bytes stay within the limit.

    Caches in use stay, and so does what lies there of `own_folder`. Returns those that were deleted.
    """
    others = _others(root, own_folder)
    total, deleted = sum(cache.bytes for cache in others) + needed, []
    for cache in others:
        if total <= limit:
            break
        if not cache.in_use and delete(cache):
            total -= cache.bytes
            deleted.append(cache)
    return deleted


def _others(root: Path, own_folder: Path) -> Iterable[Cache]:
    return [cache for cache in reference_caches(root) if cache.folder.name.partition(".")[0] != own_folder.name]


def cache_limit() -> int:
    """The bytes that the reference caches in the user's cache folder may take: $TDPO_CACHE_LIMIT, by default 100 GB.

    Raises:
        ValueError: the variable holds no size.
    """
    text = os.environ.get(LIMIT_VARIABLE)
    return DEFAULT_LIMIT if not text else size_of(text, LIMIT_VARIABLE)


def size_of(text: str, what: str) -> int:
    """The bytes in "20 GB", "500MB" or "1000000".

    Raises:
        ValueError: the text is no size; `what` says where it came from.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{what} is {text!r}, expected a size such as 20GB, 500MB or a number of bytes")
    unit = match[2].upper()
    return int(float(match[1]) * _UNITS[unit if unit in _UNITS else f"{unit}B"])


def readable_bytes(count: float) -> str:
    """For people: "75 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
