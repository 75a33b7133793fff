"""How a saved model is loaded by tdpo and without it: lines of its card."""

from __future__ import annotations

from ..models import BUNDLED, configuration_of
from ..models.adapter_bases import findable_base
from ..models.configurations import auto_class

# The model from which the bundled one was made. Its own weights were rounded since (GGUF, Q4_1).
BUNDLED_ORIGIN = "HuggingFaceTB/SmolLM2-135M-Instruct"
FOLDER = '"this folder"'
CAUSAL = "AutoModelForCausalLM"


def how_to_load(base: str | None, is_adapter: bool, is_quantized: bool = False) -> list[str]:
    """Lines of Markdown for a model that was trained from `base`, None where that has no name.

    `is_quantized`: the base was loaded in few bits, which peft does not know of.
    """
    by_tdpo = "With tdpo: `tdpo generate RUN` or, in Python, `load_causal_lm` and `load_tokenizer` of `tdpo.models`."
    auto = _auto_name(base)
    if not is_adapter:
        return [by_tdpo, "", *_code(f"from transformers import {auto}", f"model = {_plain(FOLDER, auto)}")]
    merging = "`tdpo merge RUN OUT` writes one plain model that needs neither peft nor the base."
    if is_quantized:
        merging += (
            " The adapter goes into the base dequantised, since it was trained on that one: `base_quantization.json` "
            "says how it was quantised. Loaded by the code below, without its settings, the adapter lies on another "
            "base."
        )
    if base is not None and findable_base(base)[0] == BUNDLED:
        code = _code(
            "from peft import PeftModel",
            "from tdpo.models import bundled_folder",
            "from transformers import AutoModelForCausalLM",
            "",
            f"base = {_plain('bundled_folder()')}",
            f"model = PeftModel.from_pretrained(base, {FOLDER})",
        )
        why = (
            f"The base is `{BUNDLED}`, which comes with tdpo's package of it and is no name of the hub: plain peft has "
            "to be given it. Its weights are not quite those of the hub's "
            f"`{BUNDLED_ORIGIN}`, so the adapter belongs to the bundled ones."
        )
        return [by_tdpo, merging, why, "", *code]
    code = _code(
        "from peft import AutoPeftModelForCausalLM", "", f"model = AutoPeftModelForCausalLM.from_pretrained({FOLDER})"
    )
    if auto != CAUSAL:  # which peft has no class for
        code = _code(
            "from peft import PeftConfig, PeftModel",
            f"from transformers import {auto}",
            "",
            f"base = {auto}.from_pretrained(PeftConfig.from_pretrained({FOLDER}).base_model_name_or_path)",
            f"model = PeftModel.from_pretrained(base, {FOLDER})",
        )
    return [by_tdpo, merging, "The base is where adapter_config.json says.", "", *code]


def base_of_card(name: str) -> str:
    """The base model as a card's metadata name it: as the recipe does, and for the bundled one by a name of the hub."""
    return BUNDLED_ORIGIN if findable_base(name)[0] == BUNDLED else name


def _auto_name(base: str | None) -> str:
    """The name of transformers' class that loads models like `base`, as far as that can be told."""
    try:
        auto = None if base is None else auto_class(configuration_of(base))
    except (OSError, ValueError):
        return CAUSAL
    return CAUSAL if auto is None else str(auto.__name__)


def _plain(place: str, auto: str = CAUSAL) -> str:
    return f"{auto}.from_pretrained({place})"


def _code(*lines: str) -> list[str]:
    return ["```python", *lines, "```"]
