"""Making a cache: in a folder beside its final place, chunk by chunk.

A process that is killed loses one chunk at most, and nobody reads a cache that is not finished. Where n processes share
the work, each takes every n-th chunk. They wait for each other through files alone, so that no collective operation can
time out while a large cache is made.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..batches import PromptResponses
from ..records.caches import LIMIT_VARIABLE, make_room, note_about, readable_bytes, room_left
from ..records.files import free_bytes, write_text
from ..records.folders import remove
from ..records.full_disk import telling_of_a_full_disk
from ..records.json_files import write_json
from ..records.locks import waiting_lock
from .fingerprint import Fingerprint
from .storage import MANIFEST, BrokenCache, CacheLayout, ReferenceCache, as_array, checksum, manifest_of, open_field

# The values of each field for the flat tokens of a batch of prompts, in the order of `CacheLayout.rows`.
Compute = Callable[[Sequence[PromptResponses]], dict[str, Tensor]]
Progress = Callable[[int, int, str], None]  # prompts (pairs, that is) done, how many there are, a note
Say = Callable[[str], None]

SPARE = 1 << 28  # bytes left free on the disk, whatever is written
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class CachePlan:
    """Where a cache is or will be, what it belongs to, and what it will take.

    Args:
        root: the folder of all caches.
        fingerprint: what it belongs to.
        layout: its rows.
        about: model, data and run in words, for people who look through their caches.
        limit: the bytes that all caches in `root` may take; None for no limit.
    """

    root: Path
    fingerprint: Fingerprint
    layout: CacheLayout
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)
    limit: int | None = None

    @property
    def folder(self) -> Path:
        return self.root / self.fingerprint.key

    @property
    def staging(self) -> Path:
        return self.root / f"{self.fingerprint.key}.partial"

    @property
    def is_finished(self) -> bool:
        return (self.folder / MANIFEST).exists()

    @property
    def missing_bytes(self) -> int:
        """What the disk still has to hold."""
        bytes_on_disk = sum(p.stat().st_size for p in self.staging.glob("*.bin")) if self.staging.is_dir() else 0
        return 0 if self.is_finished else max(0, self.layout.bytes - bytes_on_disk)

    @property
    def fits(self) -> bool:
        return self.missing_bytes == 0 or self.missing_bytes + SPARE <= free_bytes(self.root)

    @property
    def is_within_limit(self) -> bool:
        """Whether there is room for it beside the caches that processes use now."""
        return self.limit is None or self.layout.bytes <= room_left(self.root, self.limit, self.folder)

    def size(self) -> str:
        """For people: "336 pairs, 21,504 response tokens, 75 MB"."""
        layout = self.layout
        return f"{len(layout.prompts):,} pairs, {layout.tokens:,} response tokens, {readable_bytes(layout.bytes)}"


def build_cache(
    plan: CachePlan,
    compute: Compute,
    *,
    batch_size: int,
    rank: int = 0,
    processes: int = 1,
    say: Say = lambda _: None,
    progress: Progress | None = None,
) -> ReferenceCache:
    """The finished cache of `plan`, made where it is not there yet; a damaged one is named and made again.

    Args:
        plan: where and what.
        compute: runs the reference on a few prompts with their responses.
        batch_size: prompts of one call.
        rank, processes: this process among those that share the work and call this at the same time.
        say: told what happens, in sentences.
        progress: called after each chunk with the number of prompts that are done.

    Raises:
        OSError: the disk cannot hold it.
        ForeignCache: the folder is there, but belongs to something else.
    """
    opened = _open_finished(plan, rank, say)
    if opened is not None:
        return opened
    if rank == 0:
        _keep_the_limit(plan, say)
    if rank == 0 and not plan.fits:
        raise OSError(
            f"the reference cache ({plan.size()}) needs {readable_bytes(plan.missing_bytes)} in {plan.root}, where "
            f"{readable_bytes(free_bytes(plan.root))} are free and {readable_bytes(SPARE)} stay so. Free some, name a "
            "folder on a larger disk (reference_cache_dir), or keep the reference in memory (reference: model)."
        )
    started = time.perf_counter()
    with _alone(plan, rank, say), telling_of_a_full_disk(plan.staging, plan.missing_bytes):
        if not plan.is_finished:  # another run may have made it while this one waited
            builder = _Builder(plan, compute, batch_size, rank, processes, say, progress)
            builder.build()
    cache = ReferenceCache(plan.folder, plan.fingerprint, plan.layout)
    cache.seconds_to_make = time.perf_counter() - started
    return cache


def _keep_the_limit(plan: CachePlan, say: Say) -> None:
    """Make room for the cache within the limit. Raises OSError where what is in use leaves none."""
    if plan.limit is None:
        return
    limit = f"{readable_bytes(plan.limit)} ({LIMIT_VARIABLE})"
    if not plan.is_within_limit:
        raise OSError(
            f"the reference cache ({plan.size()}) would exceed the limit of the caches in {plan.root}, {limit}. Raise "
            "it, name a folder of your own (reference_cache_dir), or keep the reference in memory (reference: model)."
        )
    for cache in make_room(plan.root, plan.layout.bytes, plan.limit, plan.folder):
        say(
            f"Deleted the reference cache {cache.folder.name} ({cache.model}, {cache.data}, "
            f"{readable_bytes(cache.bytes)}, last used {cache.last_used_on}): the limit of the caches is {limit}."
        )


def _open_finished(plan: CachePlan, rank: int, say: Say) -> ReferenceCache | None:
    if not plan.is_finished:
        return None
    try:
        cache = ReferenceCache(plan.folder, plan.fingerprint, plan.layout)
    except BrokenCache as error:
        if rank == 0:
            say(f"The reference cache is damaged: {error}. It is made again.")
            remove(plan.folder)
        else:
            spoiled = _identity(plan.folder / MANIFEST)
            _wait(lambda: _identity(plan.folder / MANIFEST) != spoiled)
        return None
    say(f"Reference cache: {plan.size()}, read from {plan.folder}.")
    return cache


def _alone(plan: CachePlan, rank: int, say: Say) -> AbstractContextManager[Any]:
    """A context in which no other run makes this cache; who has to wait for it finds the cache finished then."""
    if rank:
        return nullcontext()
    return waiting_lock(
        plan.root / f"{plan.fingerprint.key}.lock",
        lambda: say(f"Another run is making this reference cache ({plan.folder}); waiting for it."),
    )


class _Builder:
    def __init__(
        self,
        plan: CachePlan,
        compute: Compute,
        batch_size: int,
        rank: int,
        processes: int,
        say: Say,
        progress: Progress | None,
    ) -> None:
        self.plan, self.compute, self.batch_size = plan, compute, batch_size
        self.rank, self.processes = rank, processes
        self.say, self.progress = say, progress

    def build(self) -> None:
        layout, ready = self.plan.layout, self.plan.staging / "ready"
        if self.rank == 0:
            self._allocate(ready)
        else:
            _wait(lambda: self.plan.is_finished or (ready.exists() and ready.read_text() == _launch()))
        if self.plan.is_finished:
            return
        maps = {f.name: open_field(self.plan.staging, f, layout.tokens, "r+") for f in layout.fields}
        started, computed = time.perf_counter(), 0
        for number in range(self.rank, len(layout.chunks), self.processes):
            if self._mark(number).exists():
                continue
            self._write_chunk(number, maps)
            computed += len(layout.chunks[number])
            if self.rank == 0:
                self._report(number, computed / (time.perf_counter() - started))
        del maps
        if self.rank:
            _wait(lambda: self.plan.is_finished)
            return
        _wait(lambda: self._done() == len(layout.chunks))
        self._finish()

    def _allocate(self, ready: Path) -> None:
        """Files of their final size, so that a full disk shows now and not in the middle."""
        self.plan.staging.mkdir(parents=True, exist_ok=True)
        note_about(self.plan.staging, self.plan.about)
        done = self._done()
        for field in self.plan.layout.fields:
            with field.file(self.plan.staging).open("ab") as file:
                size = self.plan.layout.tokens * field.bytes_per_token
                if size and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                file.truncate(size)
        write_text(ready, _launch())
        resumed = f"; {done} of {len(self.plan.layout.chunks)} parts are there already" if done else ""
        self.say(
            f"Reference cache: the reference runs once over {self.plan.size()}, kept in {self.plan.folder} for every "
            f"run with this model and these pairs{resumed}."
        )

    def _write_chunk(self, number: int, maps: dict[str, Any]) -> None:
        layout = self.plan.layout
        chunk = layout.chunks[number]
        for first in range(chunk.start, chunk.stop, self.batch_size):
            prompts = layout.prompts[first : min(first + self.batch_size, chunk.stop)]
            rows = layout.rows(prompts)
            assert rows is not None
            values = self.compute(prompts)
            for field in layout.fields:
                maps[field.name][rows.numpy()] = as_array(values[field.name], field)
        for values in maps.values():
            if hasattr(values, "flush"):
                values.flush()
        self._mark(number).touch()

    def _report(self, number: int, prompts_per_second: float) -> None:
        chunks = self.plan.layout.chunks
        done = sum(len(chunks[i]) for i in range(len(chunks)) if self._mark(i).exists())
        seconds_left = (len(self.plan.layout.prompts) - done) / (prompts_per_second * self.processes)
        if number == 0 and seconds_left > 5:
            self.say(f"Reference cache: about {seconds_left:.0f} s.")
        if self.progress is not None:
            self.progress(done, len(self.plan.layout.prompts), "reference cache")

    def _mark(self, number: int) -> Path:
        return self.plan.staging / f"done-{number:06d}"

    def _done(self) -> int:
        return len(list(self.plan.staging.glob("done-*")))

    def _finish(self) -> None:
        """Checksums and manifest, then the folder appears under its name."""
        layout, staging = self.plan.layout, self.plan.staging
        sums = [checksum(staging, layout.fields, layout.chunk_rows(chunk)) for chunk in layout.chunks]
        for mark in [staging / "ready", *staging.glob("done-*")]:
            mark.unlink()
        write_json(staging / MANIFEST, manifest_of(self.plan.fingerprint, layout, sums))
        staging.rename(self.plan.folder)


def _identity(path: Path) -> tuple[int, int] | None:
    """Tells a file from the one that takes its place; None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _launch() -> str:
    """What the processes of one launch have in common, and no other launch on this machine has."""
    return ":".join(os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"))


def _wait(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(POLL_SECONDS)
