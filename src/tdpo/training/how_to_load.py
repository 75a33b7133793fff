"""How a saved model is loaded by tdpo and without it: lines of its card."""

from __future__ import annotations

from ..models import BUNDLED
from ..models.adapter_bases import findable_base

# The model from which the bundled one was made. Its own weights were rounded since (GGUF, Q4_1).
BUNDLED_ORIGIN = "HuggingFaceTB/SmolLM2-135M-Instruct"
FOLDER = '"this folder"'


def how_to_load(base: str | None, is_adapter: bool, is_quantized: bool = False) -> list[str]:
    """Lines of Markdown for a model that was trained from `base`, None where that has no name.

    `is_quantized`: the base was loaded in few bits, which peft does not know of.
    """
    by_tdpo = "With tdpo: `tdpo generate RUN` or, in Python, `load_causal_lm` and `load_tokenizer` of `tdpo.models`."
    if not is_adapter:
        return [by_tdpo, "", *_code("from transformers import AutoModelForCausalLM", f"model = {_plain(FOLDER)}")]
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
    return [by_tdpo, merging, "The base is where adapter_config.json says.", "", *code]


def base_of_card(name: str) -> str:
    """The base model as a card's metadata name it: as the recipe does, and for the bundled one by a name of the hub."""
    return BUNDLED_ORIGIN if findable_base(name)[0] == BUNDLED else name


def _plain(place: str) -> str:
    return f"AutoModelForCausalLM.from_pretrained({place})"


def _code(*lines: str) -> list[str]:
    return ["```python", *lines, "```"]
