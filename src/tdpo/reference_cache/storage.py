"""A finished cache: one folder of memory-mapped fields, one row a response token, and a manifest with checksums."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..batches import PromptResponses, counted_tokens, sequence_order, shared_length
from ..guards.documents import parse_json
from ..records.caches import use
from .fingerprint import Fingerprint, data_digest, tokens_digest

MANIFEST = "cache.json"
CHUNK_TOKENS = 4096  # response tokens that one checksum covers, and that are computed again after a kill at most

# numpy knows no bf16; its bits are kept as they are.
STORED_AS = {torch.bfloat16: torch.int16}


class BrokenCache(ValueError):
    """Files of a cache are missing, cut short or changed."""


class ForeignCache(ValueError):
    """The folder holds a cache of another model, other data or other content."""


@dataclass(frozen=True)
class Field:
    """One value a token: a vector of `width` numbers, or a number where `width` is None."""

    name: str
    dtype: torch.dtype
    width: int | None = None

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        stored = STORED_AS.get(self.dtype, self.dtype)
        return torch.empty(0, dtype=stored).numpy().dtype

    @property
    def bytes_per_token(self) -> int:
        return self.stored_dtype.itemsize * (1 if self.width is None else self.width)

    def shape(self, tokens: int) -> tuple[int, ...]:
        return (tokens,) if self.width is None else (tokens, self.width)

    def file(self, folder: Path) -> Path:
        return folder / f"{self.name}.bin"


@dataclass(frozen=True)
class CacheLayout:
    """Which rows hold which tokens. It is the same for everybody with the same prompts and responses, in any order.

    Args:
        fields: what each row holds.
        prompts: the distinct prompts with their responses, shortest first.
        starts: the first row of each, by its digest; the rows of its responses follow one another.
        tokens: rows in all.
    """

    fields: tuple[Field, ...]
    prompts: tuple[PromptResponses, ...]
    starts: Mapping[bytes, int]
    tokens: int

    @classmethod
    def of(cls, prompts: Sequence[PromptResponses], fields: Sequence[Field]) -> CacheLayout:
        distinct = {tokens_digest(prompt): prompt for prompt in prompts}
        order = sorted(distinct, key=lambda digest: (shared_length(distinct[digest]), digest))
        starts, row = {}, 0
        for digest in order:
            starts[digest] = row
            row += sum(counted_tokens(distinct[digest]))
        return cls(tuple(fields), tuple(distinct[digest] for digest in order), starts, row)

    @property
    def data_digest(self) -> str:
        return data_digest(self.starts)

    @property
    def bytes(self) -> int:
        return self.tokens * sum(field.bytes_per_token for field in self.fields)

    @cached_property
    def chunks(self) -> tuple[range, ...]:
        """Ranges of indices into `prompts`, one after the other, of about CHUNK_TOKENS response tokens each."""
        chunks, first, tokens = [], 0, 0
        for i, prompt in enumerate(self.prompts):
            tokens += sum(counted_tokens(prompt))
            if tokens >= CHUNK_TOKENS or i == len(self.prompts) - 1:
                chunks.append(range(first, i + 1))
                first, tokens = i + 1, 0
        return tuple(chunks)

    def chunk_rows(self, chunk: range) -> range:
        first = self.starts[tokens_digest(self.prompts[chunk.start])]
        last = self.prompts[chunk.stop - 1]
        return range(first, self.starts[tokens_digest(last)] + sum(counted_tokens(last)))

    def rows(self, prompts: Sequence[PromptResponses]) -> Tensor | None:
        """The row `[N]` of each flat token of a batch of these prompts; None where one of them is not in the cache."""
        rows: dict[tuple[int, int], Tensor] = {}
        for p, prompt in enumerate(prompts):
            row = self.starts.get(tokens_digest(prompt))
            if row is None:
                return None
            for k, count in enumerate(counted_tokens(prompt)):
                rows[p, k] = torch.arange(row, row + count)
                row += count
        return torch.cat([rows[place] for place in sequence_order(prompts)])


class CacheReader:
    """Reads what a finished cache says about prompts with their responses, in any process.

    Args:
        folder: of the cache, which somebody else has checked and holds.
        layout: which rows hold which tokens.
    """

    def __init__(self, folder: Path, layout: CacheLayout) -> None:
        self.folder, self.layout = folder, layout

    def __call__(self, prompts: Sequence[PromptResponses]) -> dict[str, Tensor] | None:
        """Each field's values for the flat tokens `[N]` of a batch of these prompts; None where one is not there."""
        rows = self.layout.rows(prompts)
        return None if rows is None else self.fetch(rows)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """Each field's values at `rows` `[N]`, copied to memory."""
        index = rows.numpy()
        return {f.name: as_tensor(self._maps[f.name][index], f) for f in self.layout.fields}

    @cached_property
    def _maps(self) -> dict[str, np.ndarray[Any, Any]]:
        return {f.name: open_field(self.folder, f, self.layout.tokens, "r") for f in self.layout.fields}

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the files itself: pickled, they would be copied whole.
        return {"folder": self.folder, "layout": self.layout}


class ReferenceCache:
    """Read access to a finished cache.

    Attributes:
        seconds_to_make: how long this process worked on it or waited for it; 0 where it was there already.

    Raises:
        ForeignCache: the folder belongs to another model, other data or other content.
        BrokenCache: a file is missing, cut short or does not have its checksum.
    """

    def __init__(self, folder: Path, fingerprint: Fingerprint, layout: CacheLayout) -> None:
        self.folder, self.layout = folder, layout
        self.seconds_to_make = 0.0
        self._lock = use(folder)  # held as long as this object lives
        self._check(fingerprint)
        self._reader = CacheReader(folder, layout)

    def rows(self, prompts: Sequence[PromptResponses]) -> Tensor | None:
        """As `CacheLayout.rows`."""
        return self.layout.rows(prompts)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """As `CacheReader.fetch`."""
        return self._reader.fetch(rows)

    def reader(self) -> CacheReader:
        """What reads this cache; valid while this object lives, which holds the folder."""
        return self._reader

    def _check(self, fingerprint: Fingerprint) -> None:
        manifest = read_manifest(self.folder)
        if wrong := fingerprint.differences(manifest.get("fingerprint", {})):
            raise ForeignCache(
                f"the reference cache in {self.folder} was made for another {' and another '.join(wrong)}, so it says "
                "nothing about this run. Caches are found by name: undo the renaming, or delete the folder."
            )
        sums = manifest.get("checksums", [])
        if len(sums) != len(self.layout.chunks):
            raise BrokenCache(f"{self.folder / MANIFEST} lists {len(sums)} of {len(self.layout.chunks)} checksums")
        try:
            self._check_files(sums)
        except FileNotFoundError as error:  # another process has found the damage and is about to mend it
            raise BrokenCache(f"{error.filename} went away while it was read") from error

    def _check_files(self, sums: Sequence[int]) -> None:
        for field in self.layout.fields:
            check_size(field.file(self.folder), field, self.layout.tokens)
        for chunk, expected in zip(self.layout.chunks, sums, strict=True):
            rows = self.layout.chunk_rows(chunk)
            if checksum(self.folder, self.layout.fields, rows) != expected:
                raise BrokenCache(f"rows {rows.start} to {rows.stop - 1} of {self.folder} were changed or spoiled")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished cache.

    Raises:
        BrokenCache: it is missing or no JSON.
    """
    try:
        manifest = parse_json((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenCache(f"{folder / MANIFEST} cannot be read ({error})") from error
    if not isinstance(manifest, dict):
        raise BrokenCache(f"{folder / MANIFEST} holds {type(manifest).__name__}, expected an object")
    return manifest


def manifest_of(fingerprint: Fingerprint, layout: CacheLayout, checksums: Sequence[int]) -> dict[str, Any]:
    return {
        "what": "tdpo reference cache; may be deleted at any time, the next run makes it again",
        "fingerprint": asdict(fingerprint),
        "pairs": len(layout.prompts),
        "response_tokens": layout.tokens,
        "bytes": layout.bytes,
        "fields": {f.name: {"dtype": str(f.dtype), "width": f.width} for f in layout.fields},
        "checksums": list(checksums),
    }


def open_field(folder: Path, field: Field, tokens: int, mode: Any) -> np.ndarray[Any, Any]:
    if tokens == 0:
        return np.empty(field.shape(0), dtype=field.stored_dtype)
    return np.memmap(field.file(folder), dtype=field.stored_dtype, mode=mode, shape=field.shape(tokens))


def as_tensor(values: np.ndarray[Any, Any], field: Field) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.view(field.dtype) if field.dtype in STORED_AS else tensor


def as_array(tensor: Tensor, field: Field) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu().to(field.dtype).contiguous()
    return tensor.view(STORED_AS.get(field.dtype, field.dtype)).numpy()


def check_size(path: Path, field: Field, tokens: int) -> None:
    expected = tokens * field.bytes_per_token
    size = path.stat().st_size if path.exists() else None
    if size != expected:
        state = "is missing" if size is None else f"has {size:,} bytes"
        raise BrokenCache(f"{path} {state}, expected {expected:,} bytes")


def checksum(folder: Path, fields: Sequence[Field], rows: range) -> int:
    """CRC-32 of some rows of all fields, read as a file: mapping them would count as memory of this process."""
    total = 0
    for field in fields:
        size = field.bytes_per_token
        for block in _read(field.file(folder), rows.start * size, len(rows) * size):
            total = zlib.crc32(block, total)
    return total


def _read(path: Path, offset: int, length: int, block: int = 1 << 22) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while length > 0 and (data := file.read(min(block, length))):
            length -= len(data)
            yield data
