"""The section `model`: the policy, its adapter, and the bits of its base."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ._sections import PositiveFloat, PositiveInt, Section, Text
from .training_defaults import trains_adapter


class Lora(Section):
    """Low-rank adapters: a few trainable matrices beside frozen weights."""

    rank: PositiveInt = 16
    """Rank of each adapter; its parameters grow in proportion."""
    alpha: PositiveFloat = 32.0
    """Adapters are scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapters' inputs dropped in training."""
    targets: Text | Annotated[list[Text], Field(min_length=1)] = "all-linear"
    """Modules that get an adapter: `all-linear` (every linear layer but the head) or a list of module names."""


EIGHT_BITS_IN_NO_CACHE = (
    "eight-bit layers round activations, so what the reference says of a token changes with the batch, and no cache "
    "can hold it; remove the key, or set model.quantization.bits 4"
)


class Quantization(Section):
    """The base of an adapter in few bits, by bitsandbytes (the extra `quantization`): QLoRA."""

    bits: Literal[4, 8] = 4
    """Bits of a weight. With 8 each token's activations are rounded to 8 bits too. The head and the embedding stay in
    `model.dtype`."""
    type: Literal["nf4", "fp4"] | None = None
    """How 4 bits are used; null is nf4."""
    nested: bool | None = None
    """Whether the scales of 4-bit weights are quantised too, which saves 0.4 bits a weight; null is true."""

    @field_validator("type", "nested")
    @classmethod
    def _of_four_bits(cls, value: Any, info: ValidationInfo) -> Any:
        bits = info.data.get("bits")
        if value is not None and bits == 8:
            raise ValueError(f"has no effect with model.quantization.bits 8; remove {info.field_name}")
        default = {"type": "nf4", "nested": True}[str(info.field_name)]
        return default if value is None and bits == 4 else value


class Model(Section):
    """The policy, and the reference that it is held against."""

    name: Text = "smollm2-135m"
    """`smollm2-135m` (bundled, no download), a Hugging Face name, or a local folder."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the weights are loaded in; auto takes what the model was saved in. Where all of them are trained, the
    key `precision` of the training says what they are then held in."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """Where models run, in training, sampling and evaluation: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes a GPU where
    there is one, and of several processes each has its own. Workers of a study share the GPUs in turn
    (docs/the_study.md)."""
    trust_remote_code: bool = False
    """Allow the models that the recipe names, a reward model and a critic included, to run Python code of their own."""
    reference: Text | None = None
    """Name or folder of another reference model; null is the policy as it was before training."""
    lora: Lora | None = Lora()
    """Null trains all weights instead."""
    quantization: Quantization | None = None
    """Loads the base in four or eight bits, with the adapter on top; the reference is this base with the adapter off.
    `model.reference` and other models are not quantised. Null loads it in `dtype`, and the base of a saved adapter as
    it was when the adapter was trained."""

    @field_validator("quantization")
    @classmethod
    def _is_under_an_adapter(cls, quantization: Quantization | None, info: ValidationInfo) -> Quantization | None:
        name, lora = info.data.get("name"), info.data.get("lora")
        if quantization is None or name is None or "lora" not in info.data:
            return quantization
        if not trains_adapter(name, lora is not None):
            raise ValueError(
                "quantised weights cannot be trained themselves, and model.lora is null; set model.lora, or remove "
                "model.quantization"
            )
        return quantization

    @property
    def reference_rounds_activations(self) -> bool:
        """Whether the reference is a base in eight bits, whose layers round what they are given too."""
        return self.reference is None and self.quantization is not None and self.quantization.bits == 8
