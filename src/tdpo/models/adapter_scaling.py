"""An adapter times a factor: a policy on the line between the reference, at 0, and the trained model, at 1."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..records.folders import staged_folder
from ..records.json_files import read_json
from ..records.names import TRAINER_FILE
from .folder_files import CARD_FILE, model_files

WEIGHTS_FILE = "adapter_model.safetensors"
# Ways of peft to begin an adapter that take from the base what the adapter adds: at 0 there is another model.
CHANGING_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
LAST_FACTORS = ("lora_B", "lora_embedding_B")  # a LoRA layer adds scale·B·A·x, so a factor on B is one on the sum


@contextmanager
def scaling_adapter(model: nn.Module) -> Iterator[Callable[[float], None]]:
    """A context with a function that multiplies what the LoRA adapters of `model` add by a factor.

    A factor counts from the adapter as it was; afterwards each weight is that again, to the last bit.

    Raises:
        ValueError: an adapter is more than plain LoRA, so that no factor leads back to the reference on a line.
    """
    weights = list(_last_factors(model))
    were = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def scale(factor: float) -> None:
        for weight, was in zip(weights, were, strict=True):
            weight.copy_(was * factor)

    try:
        yield scale
    finally:
        scale(1.0)


def _last_factors(model: nn.Module) -> Iterator[Tensor]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found = False
    for name, module in model.named_modules():
        plain = not isinstance(module, AuxiliaryTrainingWrapper)
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            plain = hasattr(layer, "lora_B") and not layer.lora_variant and not any(layer.lora_bias.values())
            if plain:
                found = True
                yield from (part.weight for part in layer.lora_B.values())
                yield from layer.lora_embedding_B.values()
        if not plain:
            raise ValueError(f"{name} is trained by more than plain LoRA: no factor scales what it adds")
    if not found:
        raise ValueError("this model has no LoRA adapter that could be scaled")


def check_plain_lora(folder: Path) -> None:
    """Raise ValueError where the adapter in `folder` is more than plain LoRA."""
    if more := _beside_lora(folder):
        raise ValueError(f"the adapter in {folder} is more than plain LoRA ({more}): no factor scales what it adds")


def save_scaled_adapter(folder: Path, out: Path, factor: float) -> None:
    """Copy an adapter, tokenizer and all, from `folder` to `out`, with the adapter times `factor`. `out` appears whole
    or not at all.

    Of a checkpoint nothing is copied that training would go on from: it belongs to the adapter as it was. The card says
    what was done, since its numbers do too.

    Raises:
        ValueError: the adapter is more than plain LoRA.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    check_plain_lora(folder)
    files = model_files(folder)
    if (record := folder / TRAINER_FILE).is_file():
        files[TRAINER_FILE] = record
    with staged_folder(out, out.with_name(f"{out.name}.partial")) as staging:
        for name, file in files.items():
            (staging / name).parent.mkdir(exist_ok=True)
            shutil.copy2(file, staging / name)
        with safe_open(folder / WEIGHTS_FILE, "pt") as stored:
            weights, metadata = {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata()  # noqa: SIM118
        scaled = {name: weight * factor if _is_last(name) else weight for name, weight in weights.items()}
        save_file(scaled, staging / WEIGHTS_FILE, metadata)
        _remark_on_card(staging / CARD_FILE, factor)


def _remark_on_card(card: Path, factor: float) -> None:
    """Say below the title of a model card that its adapter was scaled; a folder without a card gets one."""
    text = card.read_text(encoding="utf-8") if card.is_file() else "# A scaled adapter\n"
    remark = (
        f"Scaled by tdpo: what this adapter adds to its base was multiplied by {factor:.4g} after training. What "
        "follows is about the adapter before that."
    )
    title = re.search(r"^# .*\n", text, re.MULTILINE)
    at = len(text) if title is None else title.end()
    card.write_text(f"{text[:at]}\n{remark}\n{text[at:]}", encoding="utf-8")


def _beside_lora(folder: Path) -> str:
    """What the configuration of an adapter asks for beside plain LoRA, by its name; empty for nothing."""
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        return str(config.get("peft_type"))
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGING_THE_BASE):
        return f"init_lora_weights {start}, which changes the base"
    options = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices")
    trained = [name for name in options if config.get(name)]
    return ", ".join([*trained, *([] if config.get("bias", "none") == "none" else ["bias"])])


def _is_last(name: str) -> bool:
    return any(part in LAST_FACTORS for part in name.split("."))
