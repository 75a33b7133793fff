"""Saving models and checkpoints: a full disk says which file it could not take."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..models import load_causal_lm, load_tokenizer, logits_distance, merge_adapter, probe_logits
from ..records.files import FULL, free_bytes, full_disk, naming
from ..records.folders import staged_folder

# How libraries that write by themselves say that a disk is full; torch says only that a write failed.
WORDS_OF_A_FULL_DISK = ("No space left", "StorageFull", "os error 28", "Disk quota exceeded")
TORCH_WRITE_FAILED = ("PytorchStreamWriter failed", "unexpected pos", "basic_ios::clear", "iostream error")
RELOADING_TOLERANCE = 1e-5  # of a merged model's logits, relative to the largest of them
NEARLY_FULL = 1 << 20  # a write of more than what is left fails, and leaves some


@contextmanager
def telling_of_a_full_disk(place: Path) -> Iterator[None]:
    """Inside, an error of a disk that is full, from whatever library, becomes an OSError that names the file or folder
    and how much is free."""
    try:
        with naming(place):
            yield
    except OSError as error:
        if error.errno in FULL or not _is_of_a_full_disk(error, place):
            raise
        raise full_disk(place, errno.ENOSPC) from error
    except Exception as error:
        if not _is_of_a_full_disk(error, place):
            raise
        raise full_disk(place, errno.ENOSPC) from error


def _is_of_a_full_disk(error: Exception, place: Path) -> bool:
    text = str(error)
    if any(words in text for words in WORDS_OF_A_FULL_DISK):
        return True
    return any(words in text for words in TORCH_WRITE_FAILED) and free_bytes(place) < NEARLY_FULL


def save_merged(folder: str | Path, out: str | Path) -> None:
    """Merge the adapter in `folder`; write model and tokenizer to the new folder `out`, whole or not at all.

    What was written is loaded again and must say what the adapter's model says.

    Raises:
        ValueError: as `merge_adapter`, or the written model says something else.
        FileExistsError: `out` is there and not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; name a new folder")
    tokenizer = load_tokenizer(folder)
    merged = merge_adapter(load_causal_lm(folder))
    expected = probe_logits(merged)
    out.parent.mkdir(parents=True, exist_ok=True)
    with telling_of_a_full_disk(out), staged_folder(out, out.with_name(f".{out.name}.being-merged")) as staging:
        merged.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        del merged  # two models at once are more memory than training took
        off = logits_distance(expected, probe_logits(load_causal_lm(staging)))
        if off > RELOADING_TOLERANCE:
            raise ValueError(
                f"the merged model of {folder} says something else once it is loaded again: its logits differ by "
                f"{off:.2g} (relative), so nothing was written to {out}. Use the adapter as it is."
            )
