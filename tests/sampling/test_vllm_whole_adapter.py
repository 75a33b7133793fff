"""Layers of an adapter that a server takes and does not compute are found before any work."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

from helpers.tiny_models import build_model, build_tokenizer
from helpers.vllm_stand_in import VLLM, connected, running_vllm, with_adapter
from tdpo.models import LoraSettings, add_lora
from tdpo.sampling.sampler import SamplingSettings
from tdpo.sampling.vllm import adapter_checks
from tdpo.sampling.vllm.adapter_checks import ALL, Comparison, layers_by_kind, random_adapter
from tdpo.sampling.vllm.client import WrongServer

SETTINGS = SamplingSettings(max_new_tokens=8)
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

pytestmark = pytest.mark.usefixtures("impatient")


def untrained() -> Any:
    """A product of zeros, as at the start of a training: no completion with it tells what is left out."""
    return add_lora(build_model("llama"), LoraSettings(rank=2, alpha=4.0))


def prepare(vllm: VLLM, folder: Path, policy: Any) -> None:
    connected(vllm, folder).prepare(policy, build_tokenizer(), [5, 6, 7], SETTINGS)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_kind_of_layer_that_is_left_out_is_named(vllm: VLLM, tmp_path: Path, layer: str) -> None:
    vllm.left_out = rf"\.{layer}\."
    with pytest.raises(WrongServer, match=rf"does not compute all of it.* nats on average.*without model\.layers\.\*"
                       rf"\.\w+\.{layer} by .*--lora-target-modules.*model\.lora\.targets.*built-in"):  # fmt: skip
        prepare(vllm, tmp_path, untrained())


@pytest.mark.parametrize("left_out", [LAYERS, ["k_proj", "gate_proj", "up_proj", "down_proj"]])
def test_all_kinds_that_are_left_out_are_named(vllm: VLLM, tmp_path: Path, left_out: list[str]) -> None:
    vllm.left_out = "|".join(left_out)
    with pytest.raises(WrongServer, match=r"does not compute all of it.*without .* by [\d.e-]+\. Start") as caught:
        prepare(vllm, tmp_path, untrained())
    assert [name for name in LAYERS if re.search(rf"{name}(,| by)", str(caught.value))] == left_out


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1])
def test_an_adapter_that_is_scaled_otherwise_is_found(vllm: VLLM, tmp_path: Path, factor: float) -> None:
    vllm.adapter_factor = factor
    with pytest.raises(WrongServer, match=r"does not compute all of it.*allowed: 0\.002"):
        prepare(vllm, tmp_path, untrained())


def test_it_is_found_in_bfloat16_too(tmp_path: Path) -> None:
    policy = add_lora(build_model("llama", dtype=torch.bfloat16), LoraSettings(rank=2, alpha=4.0))
    with running_vllm(build_model("llama", dtype=torch.bfloat16), logp_shift=-0.002) as vllm:
        prepare(vllm, tmp_path, policy)
        vllm.left_out = "up_proj"
        with pytest.raises(WrongServer, match="does not compute all of it"):
            prepare(vllm, tmp_path, policy)


def test_the_adapter_is_the_same_bits_afterwards(vllm: VLLM, tmp_path: Path) -> None:
    policy = with_adapter()
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    prepare(vllm, tmp_path, policy)
    vllm.left_out = "v_proj"
    with pytest.raises(WrongServer):
        prepare(vllm, tmp_path, policy)
    for name, weight in policy.named_parameters():
        assert torch.equal(weight, before[name]) and weight.requires_grad == (name in trained)


def test_random_weights_have_their_strength() -> None:
    policy = untrained()
    kinds = layers_by_kind(policy)
    assert sorted(kinds) == sorted([ALL, *(name for name in kinds if name.startswith("model.layers.*."))])
    assert len(kinds) == 1 + len(LAYERS) and len(kinds[ALL]) == 2 * len(LAYERS)
    with random_adapter(kinds[ALL], "default", 0.2), torch.no_grad():
        for layer in kinds[ALL]:
            added = layer.get_delta_weight("default").norm() / layer.get_base_layer().weight.norm()
            assert float(added) == pytest.approx(0.2, rel=1e-4)


def test_layers_that_rounding_hides_are_a_warning(
    vllm: VLLM, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that rounds like another one in float32, and layers that change as little."""
    monkeypatch.setattr(adapter_checks, "STRENGTHS", (1e-5, 2e-5))
    vllm.logp_shift = -1e-3
    with caplog.at_level(logging.WARNING):
        prepare(vllm, tmp_path, untrained())
    assert "cannot be told" in caplog.text and "model.layers.*.mlp.up_proj" in caplog.text


def test_what_a_comparison_says() -> None:
    ours = torch.tensor([-1.0, -2.0, -0.5])
    without = {"a": ours + 0.4, "b": ours - 0.1, "never passed": ours.clone()}
    honest = Comparison.of(ours + 0.01, ours, without)
    assert honest.left_out() == [] and honest.unsure() == []
    rounded = Comparison.of(ours + 0.05, ours, without)  # more than a third of what b changes
    assert rounded.left_out() == [] and rounded.unsure() == ["b"]
    without_a = Comparison.of(ours + 0.39, ours, without)
    assert without_a.left_out() == ["a"]


def mixture() -> Any:
    torch.manual_seed(0)
    small = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "eos_token_id": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
    return hf.MixtralForCausalLM(hf.MixtralConfig(**small, **heads)).eval()


def test_adapters_on_experts_are_refused(vllm: VLLM, tmp_path: Path) -> None:
    experts = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    refused = r"target_parameters: model\.layers\.\*\.mlp\.experts\.down_proj\).*built-in.*model\.lora\.targets: \["
    with pytest.raises(WrongServer, match=refused):
        prepare(vllm, tmp_path, get_peft_model(mixture(), experts))
    # peft takes routers and experts of Mixtral for linear layers, as they were in transformers 4.
    with pytest.raises(WrongServer, match=r"mlp\.experts\.down_proj, \S*gate_up_proj, \S*mlp\.gate\.weight\)"):
        prepare(vllm, tmp_path, add_lora(mixture(), LoraSettings(rank=2, alpha=4.0)))
    assert not vllm.loads and not [body for body in vllm.asked if body["max_tokens"] > 1]


def test_attention_of_a_mixture_is_handed_over(tmp_path: Path) -> None:
    with running_vllm(mixture()) as vllm:
        policy = add_lora(mixture(), LoraSettings(rank=2, alpha=4.0, targets=["q_proj", "v_proj"]))
        prepare(vllm, tmp_path, policy)
        assert len(vllm.loads) == 2
        vllm.left_out = "v_proj"
        with pytest.raises(WrongServer, match=r"without model\.layers\.\*\.self_attn\.v_proj by"):
            prepare(vllm, tmp_path, policy)
