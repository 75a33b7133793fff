"""Saving models and checkpoints: what they take on a disk, and merging an adapter into a folder."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..models import BUNDLED, has_adapter, load_causal_lm, load_tokenizer, logits_distance, merge_adapter, probe_logits
from ..models.quantization import in_words, is_quantized_model, settings_of
from ..records.folders import staged_folder
from ..records.full_disk import require_free, telling_of_a_full_disk
from ..records.locks import holder, lock

RELOADING_TOLERANCE = 1e-5  # of a merged model's logits, relative to the largest of them


def weights_bytes(model: Any) -> int:
    """The bytes of the weights that are written when `model` is saved: of an adapter those that are trained."""
    weights = [p for p in model.parameters() if p.requires_grad] if has_adapter(model) else model.parameters()
    return sum(p.numel() * p.element_size() for p in weights)


def optimizer_bytes(optimizer: Any) -> int:
    """The bytes of an optimiser's state; 0 before its first step, and where it keeps none as tensors."""
    entries = getattr(optimizer, "state", {}).values()
    tensors = [value for entry in entries for value in entry.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def quiet_about_the_bundled_base() -> Iterator[None]:
    """Inside, peft does not warn that it found no configuration of an adapter's base where that is the bundled model,
    whose name is neither a folder nor one of the hub."""
    with warnings.catch_warnings():
        for beginning in ("Unable to fetch remote file", "Could not find a config file"):
            warnings.filterwarnings("ignore", rf"(?s){beginning}.* in {re.escape(BUNDLED)}\b")
        yield


def save_merged(folder: str | Path, out: str | Path) -> str:
    """Merge the adapter in `folder`; write model and tokenizer to the new folder `out`, whole or not at all.

    What was written is loaded again and must say what the adapter's model says. Returns a sentence about a base that
    was quantised, which is also in the model's card; "" where it was not.

    Raises:
        ValueError: as `merge_adapter`, or the written model says something else.
        FileExistsError: `out` is there and not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    lock_file = out.with_name(f".{out.name}.lock")
    with lock(lock_file, remove=True) as is_ours:
        if not is_ours:
            raise FileExistsError(f"another process merges into {out} ({holder(lock_file)}); wait for its end")
        return _merge_into(out, folder)


def _merge_into(out: Path, folder: str | Path) -> str:
    tokenizer = load_tokenizer(folder)
    policy = load_causal_lm(folder)
    remark = _about_quantized_base(policy)
    merged = merge_adapter(policy)
    size = weights_bytes(merged)
    require_free(out, size)
    expected, place = probe_logits(merged), str(next(merged.parameters()).device)  # where a quantised base was loaded
    staged = staged_folder(out, out.with_name(f".{out.name}.being-merged"))
    with staged as staging, telling_of_a_full_disk(out, size):
        merged.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        if remark:
            (staging / "README.md").write_text(f"# A merged model\n\n{remark}\n", encoding="utf-8")
        del merged  # two models at once are more memory than training took
        off = logits_distance(expected, probe_logits(load_causal_lm(staging, device=place)))
        if off > RELOADING_TOLERANCE:
            raise ValueError(
                f"the merged model of {folder} says something else once it is loaded again: its logits differ by "
                f"{off:.2g} (relative), so nothing was written to {out}. Use the adapter as it is."
            )
    return remark


def _about_quantized_base(policy: Any) -> str:
    if not is_quantized_model(policy):
        return ""
    settings = settings_of(policy)
    rounding = " Its eight-bit layers rounded activations too, which the merged model does not." * bool(
        settings.get("load_in_8bit")
    )
    dtype = str(policy.dtype).removeprefix("torch.")
    return (
        f"The adapter was trained on a base in {in_words(settings)}. It was merged into this base dequantised, with "
        f"weights in {dtype}: the model before it was quantised is another one.{rounding}"
    )
