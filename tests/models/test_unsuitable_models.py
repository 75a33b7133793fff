"""Models and folders that cannot be trained: doctor finds what loading refuses, in sentences that name the file."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from transformers.quantizers import quantizer_bnb_4bit

from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import make_trainer, plain_rows
from tdpo.cli._errors import is_ours
from tdpo.cli._recipe_checks import recipe_checks
from tdpo.models import (
    check_causal,
    check_whole_loss,
    load_causal_lm,
    load_tokenizer,
    model_facts,
    reference_for,
)
from tdpo.models.miniature import miniature
from tdpo.sampling.sampler import SamplingSettings, sample
from tdpo.training import PPOConfig, PPOTrainer
from tdpo.training.online.critic import Critic
from tdpo.training.saving import save_merged

Folder = Callable[[str], Path]
SMALL: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
PLACES = {"max_position_embeddings": 128}
LOOK_AHEAD: dict[str, Callable[[], Any]] = {
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**SMALL, **PLACES)),
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**SMALL, **PLACES)),
    "electra": lambda: hf.ElectraForMaskedLM(hf.ElectraConfig(**SMALL, **PLACES, embedding_size=32)),
    "xlnet": lambda: hf.XLNetLMHeadModel(hf.XLNetConfig(vocab_size=384, d_model=32, n_layer=2, n_head=4, d_inner=64)),
}


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def problems(
    folder: Path,
    *overrides: str,
    method: str = "training: {batch_size: 4, max_steps: 2}",
    rows: list[dict[str, Any]] | None = None,
) -> dict[str, str]:
    """What doctor calls a problem of a recipe that trains all weights of the model in `folder`: name to text."""
    work = folder.parent
    (work / "pairs.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows or plain_rows(8)), encoding="utf-8"
    )
    recipe = work / "recipe.yaml"
    recipe.write_text(
        f"run_dir: {work / 'run'}\nmodel: {{name: '{folder}', lora: null}}\ndata: {{train: '{work / 'pairs.jsonl'}'}}\n"
        f"{method}\n"
    )
    return {check.name: check.text for check in recipe_checks(recipe, list(overrides)) if check.state == "problem"}


def refusal(folder: Path) -> str:
    """What loading tokenizer, facts and model, as training does, ends with; it is for a person to read."""
    with pytest.raises((ValueError, OSError)) as refused:
        model_facts(folder, load_tokenizer(folder))
        load_causal_lm(folder)
    assert is_ours(refused.value), repr(refused.value)
    return str(refused.value)


# ---- models that look ahead ----


@pytest.mark.parametrize("kind", LOOK_AHEAD)
def test_a_model_that_looks_ahead_is_refused_by_all_loaders(kind: str, tmp_path: Path) -> None:
    folder = saved(LOOK_AHEAD[kind](), tmp_path / "model")
    assert "looks ahead: later tokens change the logits of earlier ones" in refusal(folder)
    assert "looks ahead" in problems(folder)["model"]


def test_a_loaded_model_that_looks_ahead_is_refused_wherever_it_goes(tmp_path: Path, tokenizer: Any) -> None:
    bert = hf.BertLMHeadModel(hf.BertConfig(**SMALL, **PLACES))
    sound = build_model("llama")
    places: list[Callable[[], Any]] = [
        lambda: make_trainer(bert, tmp_path, tokenizer),
        lambda: make_trainer(sound, tmp_path, tokenizer, ref_model=bert),
        lambda: ppo(bert, tmp_path, tokenizer),
        lambda: sample(bert, tokenizer, ["a"], SamplingSettings(max_new_tokens=1)),
        lambda: reference_for(sound, bert),
        lambda: Critic.of(sound, bert),
    ]
    for place in places:
        with pytest.raises(ValueError, match="looks ahead"):
            place()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bert decoder", "mamba"])
def test_causal_models_pass(family: str, dtype: torch.dtype) -> None:
    made = {
        "bert decoder": lambda: hf.BertLMHeadModel(hf.BertConfig(**SMALL, **PLACES, is_decoder=True)),
        "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(vocab_size=384, hidden_size=32, num_hidden_layers=2)),
    }
    model = made[family]().to(dtype) if family in made else build_model(family, dtype=dtype)
    check_causal(model.train())
    assert model.training, "left as it was"


def test_an_encoder_decoder_in_memory_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    t5 = hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )
    with pytest.raises(ValueError, match=r"is an encoder-decoder \(T5ForConditionalGeneration\)"):
        make_trainer(t5, tmp_path, tokenizer)


def test_a_miniature_answers_for_large_models_and_leaves_the_configuration_alone() -> None:
    config = hf.Qwen2Config(num_hidden_layers=24, hidden_size=128, intermediate_size=256, num_attention_heads=4)
    before = config.to_dict()
    small = miniature(config)
    assert small is not None and sum(p.numel() for p in small.parameters()) < 1_000_000
    assert len(small.model.layers) == 2 and config.to_dict() == before
    assert miniature(hf.LlamaConfig(hidden_size=16384, intermediate_size=53248, num_attention_heads=128)) is None


# ---- a router's loss ----

EXPERTS = {**SMALL, "num_key_value_heads": 2}
ROUTERS: dict[str, Callable[[bool], Any]] = {
    "mixtral": lambda on: hf.MixtralConfig(**EXPERTS, num_local_experts=4, output_router_logits=on),
    "qwen2_moe": lambda on: hf.Qwen2MoeConfig(
        **EXPERTS, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=16, output_router_logits=on
    ),
    "olmoe": lambda on: hf.OlmoeConfig(**EXPERTS, num_experts=4, num_experts_per_tok=2, output_router_logits=on),
    "gpt_oss": lambda on: hf.GptOssConfig(
        **EXPERTS, head_dim=8, num_local_experts=4, num_experts_per_tok=2, output_router_logits=on
    ),
}


@pytest.mark.parametrize("family", ROUTERS)
def test_a_routers_loss_that_is_asked_for_is_refused(family: str) -> None:
    check_whole_loss(hf.AutoModelForCausalLM.from_config(ROUTERS[family](False)))
    with pytest.raises(
        ValueError, match=r"router's auxiliary loss \(output_router_logits: true\).*micro-batches.*to fal"
    ):
        check_whole_loss(hf.AutoModelForCausalLM.from_config(ROUTERS[family](True)))


def test_both_trainers_and_doctor_refuse_a_routers_loss(tmp_path: Path, tokenizer: Any) -> None:
    model = hf.MixtralForCausalLM(hf.MixtralConfig(**EXPERTS, **PLACES, num_local_experts=4, output_router_logits=True))
    for place in (make_trainer, ppo):
        with pytest.raises(ValueError, match="output_router_logits to false"):
            place(model, tmp_path, tokenizer)
    assert "output_router_logits to false" in problems(saved(model, tmp_path / "model"))["model"]
    model.config.router_aux_loss_coef = model.router_aux_loss_coef = 0.0
    check_whole_loss(model)  # which adds nothing


# ---- the tokenizer ----


class Processor(hf.ProcessorMixin):
    attributes = ["tokenizer"]  # noqa: RUF012
    tokenizer_class = "AutoTokenizer"

    def __init__(self, tokenizer: Any = None, **more: Any) -> None:
        super().__init__(tokenizer, **more)


def reward(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def ppo(model: Any, folder: Path, tokenizer: Any) -> PPOTrainer:
    arguments = PPOConfig(
        output_dir=str(folder), use_cpu=True, report_to="none", iterations=1, completions=4, max_new_tokens=4,
        per_device_train_batch_size=4, disable_tqdm=True,
    )  # fmt: skip
    return PPOTrainer(model, reward, args=arguments, train_dataset=["one", "two"], processing_class=tokenizer)


@pytest.mark.parametrize("trainer", [make_trainer, ppo])
def test_a_processor_or_a_name_stands_for_its_tokenizer(trainer: Any, tmp_path: Path, tiny_folder: Folder) -> None:
    tokenizer = build_tokenizer()
    made = trainer(build_model("llama"), tmp_path, Processor(tokenizer))
    assert made.processing_class is tokenizer
    made = trainer(build_model("llama"), tmp_path, str(tiny_folder("llama")))
    assert made.processing_class.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(TypeError, match="processing_class is a object, which is no tokenizer and has none"):
        trainer(build_model("llama"), tmp_path, object())


# ---- folders ----


def edited(folder: Path, file: str = "config.json", **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def written(file: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / file).write_text(text)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "bitsandbytes": (
        lambda f: edited(f, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "weights quantised with bitsandbytes, which cannot be loaded here: .*bitsandbytes",
    ),
    "gptq": (lambda f: edited(f, quantization_config={"quant_method": "gptq", "bits": 4}), "quantised with gptq"),
    "unknown method": (lambda f: edited(f, quantization_config={"quant_method": "guess"}), "quantised with guess"),
    "huge vocabulary": (lambda f: edited(f, vocab_size=10**9), "says vocab_size 1000000000 and hidden_size 32"),
    "other vocabulary": (lambda f: edited(f, vocab_size=385), r"of other sizes.*\[384, 32\] instead of \[385, 32\]"),
    "negative vocabulary": (lambda f: edited(f, vocab_size=-3), "says vocab_size -3, expected a positive number"),
    "no layers": (lambda f: edited(f, num_hidden_layers=0), "says num_hidden_layers 0"),
    "many layers": (lambda f: edited(f, num_hidden_layers=10**6), "says 1000000 layers, and the weights are 21 tens"),
    "odd heads": (lambda f: edited(f, num_attention_heads=7), r"config.json: not a configuration.*heads \(7\)"),
    "vocabulary in words": (lambda f: edited(f, vocab_size="many"), "config.json: not a configuration.*expected int"),
    "another type": (lambda f: edited(f, model_type="blorb"), "config.json: not a configuration .*blorb"),
    "list": (written("config.json", "[]"), r"config.json: expected a JSON object \{…\}, got a list"),
    "cut": (written("config.json", '{"model_type": "lla'), "config.json is not JSON, or was cut short"),
    "empty": (written("config.json", ""), r"config.json is not JSON, or was cut short \(it is empty\)"),
    "generation list": (written("generation_config.json", "[1]"), "generation_config.json: expected a JSON object"),
    "generation cut": (written("generation_config.json", "{"), "generation_config.json is not JSON"),
    "generation in words": (
        lambda f: edited(f, "generation_config.json", eos_token_id="end"),
        "generation_config.json: eos_token_id must be a token's number",
    ),
    "tokenizer cut": (written("tokenizer.json", '{"version": "1.0", "tru'), "the tokenizer of .* cannot be read"),
    "tokenizer_config cut": (written("tokenizer_config.json", "{"), "tokenizer_config.json is not JSON"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_doctor_finds_in_a_folder_what_loading_refuses(
    kind: str, tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizer_bnb_4bit, "is_bitsandbytes_available", lambda: False)  # as where it is missing
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    change, expected = BROKEN[kind]
    change(folder)
    found = problems(folder)
    assert re.search(expected, refusal(folder))
    assert any(re.search(expected, text) for text in found.values()), found
    assert not any("(unexpected)" in text for text in found.values())


def test_kinds_of_models_without_a_causal_class(tmp_path: Path) -> None:
    t5 = hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )
    part = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    sees = hf.CLIPModel(hf.CLIPConfig(text_config={**part, "vocab_size": 384}, vision_config=part))
    for name, model, expected in (
        ("t5", t5, "is an encoder-decoder (t5)"),
        ("sees", sees, "is no causal language model (clip, CLIPModel)"),
    ):
        folder = saved(model, tmp_path / name)
        assert expected in refusal(folder) and expected in problems(folder)["model"]
        assert len(refusal(folder)) < 600, "and not the names of all classes there are"


def test_doctor_compares_weights_and_targets_without_loading(tiny_folder: Folder, tmp_path: Path) -> None:
    classifier = saved(hf.LlamaForSequenceClassification(build_model("llama").config), tmp_path / "classifier")
    assert "lacks 1 weights that LlamaForCausalLM needs, such as lm_head.weight" in problems(classifier)["model"]
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    assert problems(folder, "model.lora.targets=[q_proj]") == {}
    found = problems(folder, "model.lora.targets=[nothing]")["model"]
    assert "LlamaForCausalLM has no module named 'nothing'" in found and "down_proj, embed_tokens" in found
    other = saved(build_model("llama", vocab_size=400), tmp_path / "other")
    assert "384 vocabulary entries and the reference 400" in problems(folder, f"model.reference={other}")["model"]
    small = saved(build_model("llama", vocab_size=100), tmp_path / "small")
    assert "but the model knows 100 tokens" in problems(small)["data"]


def test_weights_without_a_place_are_said(
    tiny_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    edited(tmp_path / "model", num_hidden_layers=1)
    with caplog.at_level(logging.WARNING):
        load_causal_lm(tmp_path / "model")
    assert "holds 9 weights that LlamaForCausalLM has no place for, such as model.layers.1" in caplog.text


# ---- adapters ----


def adapter_of(base: Path, folder: Path, tokens: int = 0, **config: Any) -> Path:
    """An adapter on the model in `base`, trained as if `tokens` had been added."""
    model = hf.AutoModelForCausalLM.from_pretrained(base)
    if tokens:
        model.resize_token_embeddings(384 + tokens, mean_resizing=False)
    torch.manual_seed(3)
    model = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, **config))
    model.save_pretrained(folder, save_embedding_layers=False)
    build_tokenizer().save_pretrained(folder)
    return folder


def with_base(folder: Path, base: Any) -> None:
    edited(folder, "adapter_config.json", base_model_name_or_path=None if base is None else str(base))


BROKEN_ADAPTERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "itself": (lambda f: with_base(f, f), "adapter_config.json names the adapter itself as its base model"),
    "missing": (
        lambda f: with_base(f, f / "gone"),
        r"gone: the folder does not exist \(It is the base .*adapter_config",
    ),
    "unnamed": (lambda f: with_base(f, None), "adapter_config.json names no base model: set base_model_name_or_path"),
    "cycle": (lambda f: with_base(f, f.parent / "second"), "second as its base model, which is an adapter too"),
    "list": (written("adapter_config.json", "[]"), "adapter_config.json: expected a JSON object"),
    "method": (lambda f: edited(f, "adapter_config.json", peft_type="GUESS"), "does not fit its base .*GUESS"),
    "rank": (lambda f: edited(f, "adapter_config.json", r=3), "does not fit its base .*size mismatch"),
    "targets": (
        lambda f: edited(f, "adapter_config.json", target_modules=["q_proj", "k_proj"]),
        "lacks 4 weights that its adapter_config.json asks for, such as .*k_proj.lora_A",
    ),
    "weights": (written("adapter_model.safetensors", "{"), "weights of the adapter in .* are cut short or broken"),
}


@pytest.mark.parametrize("kind", BROKEN_ADAPTERS)
def test_doctor_finds_in_an_adapter_what_loading_refuses(kind: str, tiny_folder: Folder, tmp_path: Path) -> None:
    folder = adapter_of(tiny_folder("llama"), tmp_path / "model", target_modules=["q_proj"])
    shutil.copytree(folder, tmp_path / "second")
    with_base(tmp_path / "second", folder)
    change, expected = BROKEN_ADAPTERS[kind]
    change(folder)
    assert re.search(expected, refusal(folder))
    assert re.search(expected, problems(folder)["model"])


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_an_adapter_brings_the_tokens_that_it_adds(family: str, tiny_folder: Folder, tmp_path: Path) -> None:
    whole = ["embed_tokens", "lm_head"] if family == "llama" else ["embed_tokens"]
    folder = adapter_of(
        tiny_folder(family), tmp_path / "model", tokens=3, target_modules=["q_proj"], modules_to_save=whole
    )
    assert problems(folder) == {}
    resized = hf.AutoModelForCausalLM.from_pretrained(tiny_folder(family))
    resized.resize_token_embeddings(387, mean_resizing=False)
    from peft import PeftModel

    expected = PeftModel.from_pretrained(resized, folder).eval()
    ids = torch.tensor([[5, 9, 384, 385, 386, 7]])
    loaded = load_causal_lm(folder)
    base = loaded.get_base_model().get_input_embeddings()
    rows = getattr(base, "original_module", base).weight
    torch.testing.assert_close(rows[384:], rows[:384].mean(0).expand(3, -1))
    if family == "llama":  # whose rows are all in the adapter
        torch.testing.assert_close(loaded(ids).logits, expected(ids).logits)
    save_merged(folder, tmp_path / "merged")
    merged = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(ids).logits, loaded(ids).logits, rtol=1e-4, atol=1e-4)
    trainer = make_trainer(str(folder), tmp_path / "run", None)
    trainer.train()


def test_single_tokens_that_an_adapter_adds_and_trains(tiny_folder: Folder, tmp_path: Path) -> None:
    new = {"embed_tokens": [384, 385]}
    folder = adapter_of(
        tiny_folder("qwen2"), tmp_path / "model", tokens=2, target_modules=["q_proj"], trainable_token_indices=new
    )
    assert problems(folder) == {}
    assert load_causal_lm(folder)(torch.tensor([[5, 384, 385]])).logits.shape[-1] == 386
    folder = adapter_of(
        tiny_folder("llama"), tmp_path / "other", tokens=2, target_modules=["q_proj"], trainable_token_indices=new
    )
    assert "trained on a base with 386 vocabulary entries" in refusal(folder), "whose head has rows of its own"


def test_doctor_makes_the_critic_of_ppo(tiny_folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    other = saved(build_model("llama", vocab_size=400), tmp_path / "other")
    (tmp_path / "reward.py").write_text(
        "def reward(prompts, completions, **_):\n    return [0.0 for _ in completions]\n"
    )
    recipe = tmp_path / "ppo.yaml"
    recipe.write_text(
        f"run_dir: {tmp_path / 'run'}\nmodel: {{name: '{tmp_path / 'model'}', lora: null}}\n"
        f"prompts: {{train: '{tmp_path / 'prompts.jsonl'}'}}\nrollouts: {{max_new_tokens: 8}}\n"
        f"rewards: [{{function: '{tmp_path / 'reward.py'}:reward'}}]\n"
        f"ppo: {{value_model: '{other}'}}\n"
    )
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    found = {check.name: check.text for check in recipe_checks(recipe, []) if check.state == "problem"}
    assert "384 vocabulary entries and the critic 400" in found.get("model", ""), found


def test_an_adapter_without_the_rows_of_its_tokens_says_what_to_do(tiny_folder: Folder, tmp_path: Path) -> None:
    folder = adapter_of(tiny_folder("llama"), tmp_path / "model", tokens=3, target_modules=["q_proj", "lm_head"])
    expected = "trained on a base with 387 vocabulary entries, and its base has 384"
    assert expected in refusal(folder) and expected in problems(folder)["model"]


def test_sizes_that_do_not_fit_one_another_are_said(tiny_folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    edited(tmp_path / "model", num_key_value_heads=4, head_dim=4)
    assert "of other sizes than its config.json says" in refusal(tmp_path / "model")
    model = build_model("llama")
    model.model.rotary_emb.inv_freq = torch.ones(7)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM\) cannot be run on 8 tokens: .*Do the sizes"):
        check_causal(model)


def test_doctor_asks_what_training_asks_of_shared_prompts(tmp_path: Path) -> None:
    """A window of attention (here of 16 tokens) does not take their mask beyond its width."""
    rows = [{"prompt": f"q{i} the cat sat", "chosen": " yes" * 20, "rejected": " no" * 18} for i in range(8)]
    windowed = saved(build_model("gemma2"), tmp_path / "windowed")
    found = problems(windowed, "training.prefix_sharing=on", rows=rows)
    assert set(found) == {"data"} and "prefix_sharing='on', but hidden states differ" in found["data"]
    with pytest.raises(ValueError, match="prefix_sharing='on', but hidden states differ"):
        make_trainer(str(windowed), tmp_path / "out", build_tokenizer(), rows, prefix_sharing="on")
    assert problems(windowed, rows=rows) == {}
    whole = saved(build_model("llama"), tmp_path / "whole")
    assert problems(whole, "training.prefix_sharing=on", rows=rows) == {}
