"""Hidden states and heads of any architecture, references that stay what they are, and loading that says no."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from helpers.tiny_models import FAMILIES, build_model
from helpers.training_cases import lora
from tdpo import Head
from tdpo.models import (
    LoraSettings,
    add_lora,
    causal_lm_of,
    find_head,
    has_adapter,
    kept_reference,
    load_causal_lm,
    load_tokenizer,
    merge_adapter,
    merged_adapter,
    model_facts,
    move_reference,
    reference_at_start,
    reference_for,
    response_hidden,
    select_logits,
    weights_that_follow,
)

Models = Callable[..., Any]
INPUTS = {
    "input_ids": torch.tensor([[5, 9, 31, 40, 77, 6, 0, 0], [8, 50, 60, 70, 80, 90, 12, 33]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0], [1] * 8]),
}
INDEX = torch.tensor([2, 3, 4, 8, 11, 14])


def error_of_head(model: Any, head: Callable[[], Head]) -> float:
    """Distance between the head on hidden states and the model's own logits."""
    with torch.no_grad():
        ours = head().logits(response_hidden(model, INPUTS, INDEX))
        return float((ours - select_logits(model, INPUTS, INDEX).float()).abs().max())


def spread(model: Any, size: float = 1.0) -> Any:
    """Move every weight, adapters' too, away from where it started."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * 0.1 * torch.randn_like(parameter)
    return model


# ---- the head ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_of_each_family_gives_the_models_own_logits(family: str, dtype: torch.dtype) -> None:
    model = build_model(family, dtype=dtype)
    head = find_head(model)
    assert head is not None
    assert head().softcap == (5.0 if family == "gemma2" else None)
    assert head().scale == 1.0
    size = float(select_logits(model, INPUTS, INDEX).detach().abs().max())
    assert error_of_head(model, head) <= (1e-5 if dtype == torch.float32 else 1e-2) * size


SMALL: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DENSE = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
GPT = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
OTHERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "cohere": (hf.CohereConfig, {**DENSE, "logit_scale": 0.25}),
    "granite": (hf.GraniteConfig, {**DENSE, "logits_scaling": 4.0}),
    "gemma3": (hf.Gemma3TextConfig, {**DENSE, "head_dim": 8, "final_logit_softcapping": 3.0}),
    "mistral": (hf.MistralConfig, DENSE),
    "qwen3": (hf.Qwen3Config, {**DENSE, "head_dim": 8}),
    "olmo2": (hf.Olmo2Config, DENSE),
    "phi": (hf.PhiConfig, {**SMALL, "intermediate_size": 48}),
    "gptj": (hf.GPTJConfig, {**GPT, "rotary_dim": 4, "n_positions": 64}),
    "bloom": (hf.BloomConfig, {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": (hf.FalconConfig, SMALL),
    "opt": (
        hf.OPTConfig,
        {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 16, "max_position_embeddings": 64},
    ),
    "mixtral": (hf.MixtralConfig, {**DENSE, "num_local_experts": 2, "router_jitter_noise": 0.3}),
}


def other_model(name: str, **changes: Any) -> Any:
    make, arguments = OTHERS[name]
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(make(**{**arguments, **changes}))
    return spread(model, size=2.0).eval()


@pytest.mark.parametrize("name", OTHERS)
def test_architectures_outside_the_list_are_understood_too(name: str) -> None:
    model = other_model(name)
    head = find_head(model)
    assert head is not None
    assert error_of_head(model, head) <= 1e-5 * float(select_logits(model, INPUTS, INDEX).detach().abs().max())
    assert head().scale == pytest.approx(0.25 if name in ("cohere", "granite") else 1.0, rel=1e-5)
    assert head().softcap == (3.0 if name == "gemma3" else None)
    assert (head().bias is not None) == (name in ("phi", "gptj"))


def test_every_other_architecture_is_taken_as_it_is_or_left_to_full_logits() -> None:
    """A head with a layer of its own (BERT) cannot be one matrix."""
    config = hf.BertConfig(**SMALL, intermediate_size=48, is_decoder=True, max_position_embeddings=64)
    assert find_head(hf.AutoModelForCausalLM.from_config(config).eval()) is None


class Odd(hf.LlamaForCausalLM):
    """Logits that no scale, bias or soft cap explains."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + 0.1 * output.logits.square()
        return output


def test_a_head_that_is_not_understood_is_said_to_be_so(tiny_model: Models) -> None:
    model = tiny_model("llama")
    model.__class__ = Odd
    assert find_head(model) is None


def test_a_masked_vocabulary_is_understood() -> None:
    """Logits of -inf, by a bias that forbids tokens, are neither a reason to fall back nor to fail."""
    model = other_model("phi")
    with torch.no_grad():
        model.lm_head.bias[90:] = -torch.inf
    head = find_head(model)
    assert head is not None
    logits = head().logits(response_hidden(model, INPUTS, INDEX))
    assert torch.equal(logits.isinf(), select_logits(model, INPUTS, INDEX).isinf())
    assert logits.isinf().sum() == 7 * len(INDEX)


def test_the_head_is_live(tiny_model: Models) -> None:
    """It follows the weights as training changes them; what it holds is not a copy."""
    model = tiny_model("llama")
    head = find_head(model)
    assert head is not None
    spread(model)
    assert error_of_head(model, head) < 1e-5
    assert head().weight.data_ptr() == model.lm_head.weight.data_ptr()


HEAD_ADAPTERS = {
    "untied": ("llama", lora("q_proj", "lm_head")),
    "rank-stabilised": ("llama", lora("q_proj", "lm_head", use_rslora=True)),
    "tied": ("gpt2", lora("c_attn", "lm_head")),
    "with a bias below": ("gpt_neox", lora("query_key_value", "lm_head")),
    "saved whole": ("llama", lora("q_proj", modules_to_save=["lm_head"])),
    "saved whole, tied": ("qwen2", lora("q_proj", modules_to_save=["lm_head"], ensure_weight_tying=True)),
}


@pytest.mark.parametrize("case", HEAD_ADAPTERS)
def test_adapters_on_the_head_act_on_the_policy_and_not_on_the_reference(case: str) -> None:
    from peft import get_peft_model

    family, config = HEAD_ADAPTERS[case]
    base = build_model(family)
    before = select_logits(base, INPUTS, INDEX).detach()
    model = get_peft_model(base, config).eval()
    head = find_head(model)
    assert head is not None
    spread(model)
    assert error_of_head(model, head) < 1e-4
    assert float((select_logits(model, INPUTS, INDEX) - before).detach().abs().max()) > 0.1
    reference = reference_for(model)
    assert reference.kind == "adapter-off"
    hidden, reference_head = reference.hidden_and_head(model, INPUTS, INDEX)
    torch.testing.assert_close(reference_head.logits(hidden), before, rtol=1e-5, atol=1e-5)
    assert not reference_head.weight.requires_grad
    assert head().weight.requires_grad, "gradients reach the adapter through the head"


@pytest.mark.parametrize("case", ["dora", "bias", "dropout", "ia3", "tokens"])
def test_adapters_on_the_head_that_are_no_plain_weight_go_through_full_logits(case: str) -> None:
    """Fresh, they change nothing and would pass the probe; trained, the head would ignore them."""
    import peft

    configs = {
        "dora": ("llama", lora("lm_head", use_dora=True)),
        "bias": ("phi", lora("lm_head", lora_bias=True)),
        "dropout": ("llama", lora("lm_head", lora_dropout=0.5)),
        "ia3": ("llama", peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[], task_type="CAUSAL_LM")),
        "tokens": ("llama", lora("q_proj", trainable_token_indices={"lm_head": [5, 6]})),
    }
    family, config = configs[case]
    base = other_model(family) if family in OTHERS else build_model(family)
    model = peft.get_peft_model(base, config).eval()
    fresh = select_logits(model, INPUTS, INDEX).detach()
    assert find_head(model) is None
    spread(model)
    assert not torch.equal(fresh, select_logits(model, INPUTS, INDEX))


def test_hidden_states_leave_the_model_as_it_was(tiny_model: Models) -> None:
    model = tiny_model("llama")
    response_hidden(model, INPUTS, INDEX)
    assert "forward" not in model.__dict__
    with pytest.raises(RuntimeError):
        response_hidden(model, {"input_ids": torch.ones(1, 2)}, INDEX)  # no integers: the body refuses
    assert "forward" not in model.__dict__
    own = model.forward

    def patched(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    model.forward = patched  # as accelerate does for mixed precision
    response_hidden(model, INPUTS, INDEX)
    assert model.forward is patched


def test_gradients_reach_every_trained_weight(tiny_model: Models) -> None:
    model = tiny_model("llama")
    head = find_head(model)
    assert head is not None
    head().logits(response_hidden(model, INPUTS, INDEX)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_causal_lm_of_sees_through_wrappers(tiny_model: Models) -> None:
    model = tiny_model("llama")
    assert causal_lm_of(model) is model
    assert causal_lm_of(torch.compile(model, backend="eager")) is model
    assert causal_lm_of(add_lora(model, LoraSettings(rank=2))) is model


# ---- the reference ----


def test_the_reference_of_a_full_model_is_a_frozen_copy(tiny_model: Models) -> None:
    model = tiny_model("llama")
    reference = kept_reference(model, reference_at_start(model))
    assert reference.kind == "copy"
    before = select_logits(model, INPUTS, INDEX).detach()
    spread(model)
    torch.testing.assert_close(reference.logits(model, INPUTS, INDEX), before, rtol=0, atol=0)
    assert not any(p.requires_grad for p in reference.model.parameters())
    assert not reference.model.training


def test_the_copy_shares_what_is_not_trained(tiny_model: Models) -> None:
    model = tiny_model("llama")
    model.get_input_embeddings().weight.requires_grad_(False)
    reference = kept_reference(model, reference_at_start(model))
    mine, theirs = dict(model.named_parameters()), dict(reference.model.named_parameters())
    shared = {name for name in mine if mine[name] is theirs[name]}
    assert shared == {"model.embed_tokens.weight"}
    assert all(mine[name].requires_grad for name in mine if name not in shared)


def test_a_fresh_adapter_is_switched_off_for_the_reference(tiny_model: Models) -> None:
    model = add_lora(tiny_model("llama"), LoraSettings(rank=2, dropout=0.5))
    reference = kept_reference(model, reference_at_start(model))
    assert (reference.kind, reference.model) == ("adapter-off", None)
    off = reference.logits(model, INPUTS, INDEX)
    spread(model)
    torch.testing.assert_close(reference.logits(model, INPUTS, INDEX), off, rtol=0, atol=0)
    assert all(layer.active_adapters for layer in model.modules() if hasattr(layer, "lora_A")), "on again afterwards"


def test_a_trained_adapters_start_is_copied_and_its_base_shared(tiny_model: Models) -> None:
    """Switched off, it would be the base: another model than the policy's start, with a KL above 0 at step 0."""
    model = spread(add_lora(tiny_model("llama"), LoraSettings(rank=2)).eval())
    before = select_logits(model, INPUTS, INDEX).detach()
    reference = kept_reference(model, reference_at_start(model))
    assert reference.kind == "copy"
    mine, theirs = dict(model.named_parameters()), dict(reference.model.named_parameters())
    assert {name for name in mine if mine[name] is not theirs[name]} == {n for n in mine if "lora_" in n}
    spread(model)
    torch.testing.assert_close(reference.logits(model, INPUTS, INDEX), before, rtol=0, atol=0)
    assert reference_for(model).kind == "adapter-off", "judged, the trained adapter is compared with its base"


def test_an_adapter_that_trains_the_bases_biases_gets_a_copy(tiny_model: Models) -> None:
    from peft import get_peft_model

    model = get_peft_model(tiny_model("gpt2"), lora("c_attn", bias="all"))
    before = select_logits(model.eval(), INPUTS, INDEX).detach()
    reference = kept_reference(model, reference_at_start(model))
    assert reference.kind == "copy"
    spread(model)
    torch.testing.assert_close(reference.logits(model, INPUTS, INDEX), before, rtol=0, atol=0)


def test_a_copy_follows_a_policy_whose_layers_were_wrapped_after_it_was_made(tiny_model: Models) -> None:
    """As accelerate does when it shards a model: it compiles layers by region, and recomputes them."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = tiny_model("llama")
    reference = kept_reference(model, reference_at_start(model))
    layers = model.model.layers
    layers[0] = torch.compile(layers[0], backend="eager")
    layers[1] = checkpoint_wrapper(layers[1])
    spread(model)
    move_reference(model, reference, 1.0)
    assert all(torch.equal(own, mine) for own, mine in weights_that_follow(model, reference).values())
    theirs = [own for own, _ in weights_that_follow(model, reference).values()]
    assert len(theirs) == len(list(reference.model.parameters()))


def test_a_given_model_is_frozen_and_used(tiny_model: Models) -> None:
    policy, given = tiny_model("llama"), tiny_model("qwen2").train()
    reference = reference_for(policy, given)
    assert (reference.kind, reference.model) == ("second model", given)
    assert not given.training
    assert not any(p.requires_grad for p in given.parameters())
    torch.testing.assert_close(
        reference.logits(policy, INPUTS, INDEX), select_logits(given, INPUTS, INDEX), rtol=0, atol=0
    )


def test_a_reference_that_would_be_trained_along_is_refused(tiny_model: Models) -> None:
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=r"holds the very weights that are trained.*Leave ref_model out"):
        reference_for(model, model)
    adapted = add_lora(tiny_model("llama"), LoraSettings(rank=2))
    with pytest.raises(ValueError, match="the very weights that are trained"):
        reference_for(adapted, adapted.get_base_model())


def test_another_vocabulary_is_refused(tiny_model: Models) -> None:
    with pytest.raises(ValueError, match=r"384 vocabulary entries and the reference 400.*one tokenizer"):
        reference_for(tiny_model("llama"), tiny_model("llama", vocab_size=400))


def test_another_dtype_is_pointed_out(tiny_model: Models, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        reference_for(tiny_model("llama"), tiny_model("llama", dtype=torch.bfloat16))
    assert "reference is in torch.bfloat16 and the policy in torch.float32: their KL is not 0" in caplog.text


# ---- adapters ----


def test_merging_gives_the_same_model_without_peft(tiny_model: Models) -> None:
    model = spread(add_lora(tiny_model("llama"), LoraSettings(rank=2, alpha=3.0)).eval())
    logits = select_logits(model, INPUTS, INDEX).detach()
    merged = merge_adapter(model)
    assert not has_adapter(merged)
    torch.testing.assert_close(select_logits(merged, INPUTS, INDEX), logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="no adapter to merge"):
        merge_adapter(merged)


def test_an_adapter_on_an_adapter_is_refused(tiny_model: Models) -> None:
    with pytest.raises(ValueError, match=r"has an adapter already.*tdpo merge"):
        add_lora(add_lora(tiny_model("llama"), LoraSettings(rank=2)), LoraSettings(rank=2))


def adapted(model: Any, *targets: str, **more: Any) -> Any:
    """`model` with a LoRA of sizeable random weights."""
    from peft import get_peft_model

    return spread(get_peft_model(model, lora(*targets, init_lora_weights=False, **more)).eval())


def state(model: Any) -> dict[str, tuple[int, bool, torch.Tensor]]:
    """Which object every parameter is, whether it is trained, and a copy of its value."""
    return {n: (id(p), p.requires_grad, p.detach().clone()) for n, p in model.named_parameters(remove_duplicate=False)}


def assert_untouched(model: Any, before: dict[str, tuple[int, bool, torch.Tensor]]) -> None:
    after = state(model)
    assert list(after) == list(before)
    for name, (identity, trained, value) in before.items():
        assert after[name][:2] == (identity, trained), name
        assert torch.equal(after[name][2], value), name
    assert not any(getattr(layer, "merged_adapters", []) for layer in model.modules())


@pytest.mark.parametrize("family, dtype", [*((f, torch.float32) for f in FAMILIES), ("llama", torch.bfloat16)])
@torch.no_grad()
def test_while_merged_the_model_is_the_merged_one_and_afterwards_itself(
    family: str, dtype: torch.dtype, tiny_model: Models
) -> None:
    model = adapted(tiny_model(family, dtype=dtype))
    before, unmerged = state(model), select_logits(model, INPUTS, INDEX)
    with merged_adapter(model) as merged:
        assert merged
        inside = select_logits(model, INPUTS, INDEX)
        weights = {n.replace("base_layer.", ""): p.detach() for n, p in model.get_base_model().named_parameters()}
    assert_untouched(model, before)
    assert torch.equal(select_logits(model, INPUTS, INDEX), unmerged)
    off = select_logits(tiny_model(family, dtype=dtype), INPUTS, INDEX)
    assert (inside - off).abs().max() > 10 * (inside - unmerged).abs().max()
    if dtype == torch.float32:
        torch.testing.assert_close(inside, unmerged, rtol=1e-3, atol=1e-3)
    plain = merge_adapter(model)  # by peft, in place
    for name, theirs in plain.named_parameters():
        # 2**-7: one step between neighbours of bfloat16.
        torch.testing.assert_close(weights[name], theirs, rtol=1e-6 if dtype == torch.float32 else 2**-7, atol=1e-6)
    size = float(inside.abs().max())
    assert (select_logits(plain, INPUTS, INDEX) - inside).abs().max() <= (
        1e-5 if dtype == torch.float32 else 0.1
    ) * size


def test_the_sum_is_rounded_once(tiny_model: Models) -> None:
    model = adapted(tiny_model("llama", dtype=torch.bfloat16), "q_proj")
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    a, b = (side["default"].weight.double() for side in (layer.lora_A, layer.lora_B))
    exact = layer.base_layer.weight.double() + b @ a * layer.scaling["default"]
    with merged_adapter(model):
        off = (layer.base_layer.weight.double() - exact).abs()
    assert (off <= exact.abs() * 2**-8 * 1.001).all(), "half a unit in the last of bfloat16's places"


def test_gradients_and_optimizers_survive_merging(tiny_model: Models) -> None:
    model = adapted(tiny_model("llama"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    select_logits(model, INPUTS, INDEX).sum().backward()
    gradients = [p.grad.clone() for p in trained]
    with merged_adapter(model):
        select_logits(model, INPUTS, INDEX)
    assert all(torch.equal(p.grad, g) for p, g in zip(trained, gradients, strict=True))
    optimizer.step()
    optimizer.zero_grad()
    select_logits(model, INPUTS, INDEX).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in trained)


@pytest.mark.parametrize("where", ["inside", "half merged"])
def test_weights_come_back_after_an_exception(where: str, tiny_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    from tdpo.models import adapters

    model = adapted(tiny_model("llama", dtype=torch.bfloat16))
    before = state(model)
    if where == "half merged":
        sums, merge_one = iter(range(5)), adapters._merged_weight
        monkeypatch.setattr(adapters, "_merged_weight", lambda layer: (next(sums), merge_one(layer))[1])
        with pytest.raises((StopIteration, RuntimeError)), merged_adapter(model):
            pytest.fail("the sixth layer cannot be merged")
    else:
        with pytest.raises(KeyboardInterrupt), merged_adapter(model):
            raise KeyboardInterrupt
    assert_untouched(model, before)


def test_a_model_without_an_active_adapter_passes_through(tiny_model: Models) -> None:
    model = tiny_model("llama")
    before = state(model)
    with merged_adapter(model) as merged:
        assert merged
        assert_untouched(model, before)
    model = adapted(model)
    with model.disable_adapter(), merged_adapter(model) as merged:
        assert merged
        off = select_logits(model, INPUTS, INDEX)
    torch.testing.assert_close(off, select_logits(tiny_model("llama"), INPUTS, INDEX), rtol=0, atol=0)


def test_nested_merging_adds_once(tiny_model: Models) -> None:
    model = adapted(tiny_model("llama"))
    before = state(model)
    with merged_adapter(model):
        once = select_logits(model, INPUTS, INDEX)
        with merged_adapter(model) as merged:
            assert merged
            assert torch.equal(select_logits(model, INPUTS, INDEX), once)
        assert torch.equal(select_logits(model, INPUTS, INDEX), once)
    assert_untouched(model, before)


@pytest.mark.parametrize("targets", [("embed_tokens", "q_proj"), ("lm_head",), ("embed_tokens", "lm_head")])
@torch.no_grad()
def test_an_adapter_on_one_end_of_tied_weights_stays_there(targets: tuple[str, ...], tiny_model: Models) -> None:
    model = adapted(tiny_model("qwen2"), *targets)  # whose head is its embedding
    unmerged, before = select_logits(model, INPUTS, INDEX), state(model)
    with merged_adapter(model) as merged:
        assert merged
        torch.testing.assert_close(select_logits(model, INPUTS, INDEX), unmerged, rtol=1e-4, atol=1e-4)
    assert_untouched(model, before)


@torch.no_grad()
def test_several_active_adapters_are_all_added(tiny_model: Models) -> None:
    model = adapted(tiny_model("llama"))
    model.add_adapter("second", lora("q_proj", "v_proj", init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])
    unmerged, before = select_logits(model, INPUTS, INDEX), state(model)
    with merged_adapter(model):
        torch.testing.assert_close(select_logits(model, INPUTS, INDEX), unmerged, rtol=1e-4, atol=1e-4)
    assert_untouched(model, before)
    model.base_model.set_adapter("second")
    assert not torch.allclose(select_logits(model, INPUTS, INDEX), unmerged, atol=0.1)


@pytest.mark.parametrize("kind", ["dora", "bias", "modules_to_save", "other method", "parameters", "scaled embedding"])
@torch.no_grad()
def test_what_cannot_be_merged_is_left_as_it_is(kind: str, tiny_model: Models) -> None:
    from peft import IA3Config, get_peft_model

    base = tiny_model("gpt2" if kind == "bias" else "llama")  # peft wants a bias that LoRA's can go to
    if kind == "other method":
        model = get_peft_model(base, IA3Config(task_type="CAUSAL_LM")).eval()
    elif kind == "scaled embedding":
        inner = base.get_input_embeddings()
        scaled = type(
            "Scaled", (torch.nn.Embedding,), {"forward": lambda self, ids: 3 * super(type(self), self).forward(ids)}
        )
        base.set_input_embeddings(scaled(*inner.weight.shape))
        model = adapted(base, "embed_tokens", "q_proj")
    else:
        options: dict[str, dict[str, Any]] = {
            "dora": {"use_dora": True},
            "bias": {"lora_bias": True},
            "modules_to_save": {"modules_to_save": ["lm_head"]},
            "parameters": {"target_parameters": ["q_proj.weight"]},
        }
        model = adapted(base, *(["c_attn"] if kind == "bias" else ["v_proj"]), **options[kind])
    before, unmerged = state(model), select_logits(model, INPUTS, INDEX)
    with merged_adapter(model) as merged:
        assert not merged
        assert_untouched(model, before)
        assert torch.equal(select_logits(model, INPUTS, INDEX), unmerged)


def test_an_adapter_folder_loads_with_its_base(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    base = load_causal_lm(tiny_folder("llama"))
    adapted = spread(add_lora(base, LoraSettings(rank=2)).eval())
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_causal_lm(tmp_path / "adapter")
    torch.testing.assert_close(
        select_logits(loaded, INPUTS, INDEX), select_logits(adapted, INPUTS, INDEX), rtol=0, atol=0
    )
    assert not any(p.requires_grad for p in loaded.parameters())
    trainable = load_causal_lm(tmp_path / "adapter", trainable=True)
    assert {n for n, p in trainable.named_parameters() if p.requires_grad} == {
        n for n, _ in trainable.named_parameters() if "lora_" in n
    }
    assert load_tokenizer(tmp_path / "adapter").eos_token_id == 1, "the base's tokenizer, where there is no other"


# ---- loading ----


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads_as_it_was(family: str, tiny_folder: Callable[[str], Path]) -> None:
    model = load_causal_lm(tiny_folder(family))
    assert not model.training
    torch.testing.assert_close(
        select_logits(model, INPUTS, INDEX), select_logits(build_model(family), INPUTS, INDEX), rtol=0, atol=0
    )
    tokenizer = load_tokenizer(str(tiny_folder(family)))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    facts = model_facts(tiny_folder(family), tokenizer)
    assert (facts.end_token_ids, facts.positions) == ({1}, 256)
    assert [facts.max_length(asked) for asked in (None, 64, 1024)] == [256, 64, 256]


@pytest.mark.parametrize("asked, expected", [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_dtype(asked: str, expected: torch.dtype, tiny_folder: Callable[[str], Path]) -> None:
    assert load_causal_lm(tiny_folder("llama"), dtype=asked).dtype == expected
    with pytest.raises(ValueError, match="dtype must be one of auto, float32, bfloat16, float16, got 'int8'"):
        load_causal_lm(tiny_folder("llama"), dtype="int8")


def broken_folder(kind: str, source: Path, folder: Path) -> Path:
    """A copy of a sound model folder with one thing wrong."""
    shutil.copytree(source, folder)
    weights = folder / "model.safetensors"
    if kind == "no model":
        (folder / "config.json").unlink()
    elif kind == "no weights":
        weights.unlink()
    elif kind == "pickled":
        torch.save(build_model("llama").state_dict(), folder / "pytorch_model.bin")
        weights.unlink()
    elif kind == "cut short":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif kind == "a layer missing":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        del tensors["lm_head.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif kind == "no tokenizer":
        for file in folder.glob("*token*"):
            file.unlink()
    return folder


@pytest.mark.parametrize(
    "kind, message",
    [
        ("no model", r"holds no model: expected config.json or adapter_config.json, found .*model.safetensors"),
        ("no weights", r"cannot load .*no file named model.safetensors.*save_pretrained"),
        ("pickled", r"pickled weights \(.bin\) and no safetensors.*convert them once: python -c .*save_pretrained"),
        ("cut short", r"weights of .* are cut short or broken .*save them again"),
        ("a layer missing", r"lacks 1 weights that LlamaForCausalLM needs, such as lm_head.weight.*at random"),
        ("no tokenizer", r"holds a model but no tokenizer; save .* or pass a tokenizer"),
    ],
)
def test_a_folder_that_cannot_be_used_says_what_to_do(
    kind: str, message: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = broken_folder(kind, tiny_folder("llama"), tmp_path / "model")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        (load_tokenizer if kind == "no tokenizer" else load_causal_lm)(folder)


def test_pickled_weights_convert_as_the_message_says(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = broken_folder("pickled", tiny_folder("llama"), tmp_path / "model")
    with pytest.raises(FileNotFoundError) as refused:
        load_causal_lm(folder)
    code = str(refused.value).split('python -c "')[1].rstrip('"')
    exec(compile(code, "message", "exec"), {})
    assert load_causal_lm(folder).config.model_type == "llama"


def test_a_pickled_adapter_is_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    adapted = add_lora(load_causal_lm(tiny_folder("llama")), LoraSettings(rank=2))
    adapted.save_pretrained(tmp_path, safe_serialization=True)
    weights = tmp_path / "adapter_model.safetensors"
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no adapter_model.safetensors, and pickled weights .* are not read"):
        load_causal_lm(tmp_path)


@pytest.mark.parametrize(
    "name, message",
    [
        ("smolm2-135m", "no model named 'smolm2-135m'; did you mean 'smollm2-135m'?"),
        ("SmolLM-135M", "did you mean 'smollm2-135m'"),
        ("./nowhere", "no model at ./nowhere: the folder does not exist"),
        ("runs/mine/model", "no model at runs/mine/model: the folder does not exist"),
        ("nobody/nothing", "cannot load 'nobody/nothing'.*a hub name that this machine can reach, or 'smollm2-135m'"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    for load in (load_causal_lm, load_tokenizer):
        with pytest.raises(FileNotFoundError, match=message):
            load(name)


REMOTE_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path(r"{mark}").write_text("this code ran")
class TheirConfig(LlamaConfig):
    model_type = "theirs"
class TheirModel(LlamaForCausalLM):
    config_class = TheirConfig
"""


def test_code_that_ships_with_a_model_runs_only_when_asked_for(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, mark = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(tiny_folder("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "theirs"
    config["auto_map"] = {"AutoConfig": "theirs.TheirConfig", "AutoModelForCausalLM": "theirs.TheirModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text(REMOTE_CODE.format(mark=mark))
    with pytest.raises(ValueError, match=r"brings Python code of its own.*trust_remote_code"):
        load_causal_lm(folder)
    with pytest.raises(ValueError, match="trust_remote_code"):
        model_facts(folder, load_tokenizer(tiny_folder("llama")))
    assert not mark.exists()
    assert type(load_causal_lm(folder, trust_remote_code=True)).__name__ == "TheirModel"
    assert mark.read_text() == "this code ran"
