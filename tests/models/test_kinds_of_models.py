"""Models as people have them: mixtures of experts, language models that also see, tied and untied heads, scaled RoPE.

The oracle is the model as transformers loads it, on one sequence at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel, get_peft_model
from torch import Tensor

from helpers.ppo_cases import PROMPTS, letters, logs, make_online, make_ppo
from helpers.training_cases import (
    METRICS,
    expected_logs,
    lora,
    make_trainer,
    pair_numbers,
    plain_rows,
    settings,
    train_logs,
)
from tdpo.models import LoraSettings, add_lora, find_head, load_causal_lm
from tdpo.models.miniature import check_architecture
from tdpo.sampling.sampler import SamplingSettings, sample
from tdpo.training.policy import prepare_policy
from tdpo.training.saving import save_merged

IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
TEXT: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, **IDS,
}  # fmt: skip
EYES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGE = {"image_size": 28, "patch_size": 14}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def qwen_vl() -> Any:
    eyes = {
        "depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    return hf.Qwen2_5_VLConfig(text_config={**TEXT, "rope_parameters": MROPE}, vision_config=eyes, **IDS)


def rope(**parameters: Any) -> Any:
    # Rows are longer than the 16 positions of before, so that the scaling shows.
    scaled = {"rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 16, **parameters}
    return hf.LlamaConfig(**TEXT, rope_parameters=scaled)


EXPERT_MODELS: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: hf.MixtralConfig(**TEXT, num_local_experts=4, tie_word_embeddings=False),
    "qwen2_moe, tied": lambda: hf.Qwen2MoeConfig(
        **TEXT, **EXPERTS, shared_expert_intermediate_size=16, tie_word_embeddings=True
    ),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**TEXT, **EXPERTS, head_dim=8, tie_word_embeddings=False),
}
SEEING: dict[str, Callable[[], Any]] = {
    "qwen2_5_vl": qwen_vl,
    "gemma3, tied": lambda: hf.Gemma3Config(
        text_config={**TEXT, "head_dim": 8, "final_logit_softcapping": 5.0}, vision_config={**EYES, **IMAGE},
        mm_tokens_per_image=4, **IDS,
    ),
    "llava": lambda: hf.LlavaConfig(
        text_config={**TEXT, "model_type": "llama"}, vision_config={**EYES, **IMAGE, "model_type": "clip_vision_model"},
        image_token_index=383, **IDS,
    ),
}  # fmt: skip
SCALED: dict[str, Callable[[], Any]] = {
    "yarn": lambda: rope(rope_type="yarn"),
    "linear": lambda: rope(rope_type="linear"),
    "llama3": lambda: rope(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0),
}
KINDS = {**EXPERT_MODELS, **SEEING, **SCALED}


def auto_of(name: str) -> Any:
    return hf.AutoModelForImageTextToText if name in SEEING else hf.AutoModelForCausalLM


@pytest.fixture
def folder(request: pytest.FixtureRequest, tokenizer: Any, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = auto_of(request.param).from_config(KINDS[request.param]())
    with torch.no_grad():  # default initialisation gives nearly uniform outputs
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
        model.get_output_embeddings().weight.mul_(5.0)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def plain(name: str, folder: Path) -> Any:
    return auto_of(name).from_pretrained(folder).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(input_ids=torch.arange(24)[None] * 31 % 383).logits
    return found


@pytest.mark.parametrize(("folder", "name"), [(name, name) for name in KINDS], indirect=["folder"])
def test_an_adapter_is_trained_saved_and_merged(name: str, folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    policy = add_lora(load_causal_lm(folder), LoraSettings(rank=4, alpha=16.0))
    trainer = make_trainer(
        policy, tmp_path / "t", tokenizer, plain_rows(4), loss="tdpo2", alpha=0.7, beta=0.3, save_strategy="steps",
        save_steps=1, learning_rate=0.02,
    )  # fmt: skip
    assert "pairs share their prompt" in trainer.describe() and trainer.statistics.path.head is not None
    trainer.train()
    first, second = train_logs(trainer)
    for key in ("chosen_forward_kl", "rejected_reverse_kl", "margin"):
        assert first[key] == pytest.approx(0.0, abs=1e-12), key
    trained = PeftModel.from_pretrained(plain(name, folder), tmp_path / "t/checkpoint-1").eval()
    numbers = pair_numbers(trained, plain(name, folder), trainer.train_dataset)
    expected = expected_logs(numbers, "tdpo2", beta=0.3, alpha=0.7)
    assert second["chosen_forward_kl"] > 1e-3
    for key in METRICS:
        assert second[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5), key

    saved, merged = tmp_path / "t/checkpoint-2", tmp_path / "merged"
    code = (saved / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    told: dict[str, Any] = {}
    exec(code.replace('"this folder"', repr(str(saved))), told)  # as the card says
    torch.testing.assert_close(logits(told["model"]), logits(trainer.model))
    tokenizer.save_pretrained(saved)
    save_merged(saved, merged)
    torch.testing.assert_close(logits(load_causal_lm(saved)), logits(trainer.model))
    torch.testing.assert_close(logits(plain(name, merged)), logits(trainer.model), rtol=1e-4, atol=1e-4)
    again = plain(name, merged)
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == ("tied" in name)


@pytest.mark.parametrize(("folder", "name"), [(name, name) for name in SEEING], indirect=["folder"])
def test_what_sees_is_left_alone(name: str, folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    check_architecture(folder, trained=True)  # as `tdpo doctor` asks
    model = load_causal_lm(folder)
    assert type(model) is type(plain(name, folder)) and find_head(model) is not None
    for targets in ("all-linear", ["q_proj", "fc1"] if "gemma3" in name else ["q_proj"]):
        adapted = add_lora(load_causal_lm(folder), LoraSettings(rank=2, targets=targets))
        trained = [key for key, p in adapted.named_parameters() if p.requires_grad]
        assert trained and all("language_model" in key for key in trained)
        assert any("q_proj" in key for key in trained) and not any("lm_head" in key for key in trained)

    # All weights: those of the text move, the others are saved as they were.
    trainer = make_trainer(model, tmp_path / "t", tokenizer, plain_rows(4), learning_rate=0.01, max_steps=1)
    trainer.train()
    trainer.save_model(tmp_path / "trained")
    before, after = plain(name, folder).state_dict(), plain(name, tmp_path / "trained").state_dict()
    moved = {key for key, value in before.items() if not after[key].equal(value)}
    assert moved and not any("vision" in key or "visual" in key or "projector" in key for key in moved)
    assert before.keys() == after.keys() and any("lm_head" in key or "embed_tokens" in key for key in moved)

    # By peft's own rules every layer of the vision tower would get an adapter that text never passes.
    narrowed = prepare_policy(load_causal_lm(folder), lora(), settings(tmp_path))
    assert all("language_model" in key for key, p in narrowed.named_parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="outside the text part"):
        prepare_policy(get_peft_model(load_causal_lm(folder), lora()), None, settings(tmp_path))


@pytest.mark.parametrize(
    ("folder", "name"), [(name, name) for name in (*SEEING, "mixtral", "yarn")], indirect=["folder"]
)
def test_greedy_responses_are_those_of_the_models_own_logits(name: str, folder: Path, tokenizer: Any) -> None:
    """Prompts of unlike lengths share a batch, and with YaRN they end beyond the original positions."""
    model, prompts = plain(name, folder), ["the cat sat on the mat and the dog ran away what a wonderful day", "what"]
    greedy = SamplingSettings(num_samples=1, max_new_tokens=5, temperature=0.0, top_p=1.0, seed=0, batch_size=4)
    for prompt, response in zip(prompts, sample(load_causal_lm(folder), tokenizer, prompts, greedy), strict=True):
        ids = tokenizer(prompt)["input_ids"]
        for token in response.token_ids:
            with torch.no_grad():
                assert int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids = [*ids, token]


@pytest.mark.parametrize(("folder", "name"), [(name, name) for name in ("mixtral", "qwen2_5_vl")], indirect=["folder"])
def test_own_responses_start_at_zero_and_are_learned_from(
    name: str, folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """With a critic, whose body is a copy of the policy's kind, and on pairs of own responses."""
    trainer = make_ppo(load_causal_lm(folder), tmp_path / "p", tokenizer, letters, PROMPTS, peft_config=lora())
    trainer.train()
    first, second = logs(trainer)
    assert first["reverse_kl"] == pytest.approx(0.0, abs=1e-9) and first["forward_kl"] == pytest.approx(0.0, abs=1e-9)
    assert second["reverse_kl"] > 1e-4 and first["value_loss"] > 0
    online = make_online(
        tmp_path / "o", model=load_causal_lm(folder), tokenizer=tokenizer, peft_config=lora(), iterations=1
    )
    online.train()
    [line] = [line for line in online.state.log_history if "pairs" in line]
    for key in ("chosen_forward_kl", "rejected_reverse_kl", "margin"):
        assert line[key] == pytest.approx(0.0, abs=1e-12), key
    assert line["pairs"] == 4 and line["grad_norm"] > 1e-3


def test_a_model_that_cannot_do_without_an_image_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    """BLIP has a class for images and text, and no text without an image."""
    text = {"vocab_size": 384, "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 48}
    small = {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.BlipConfig(text_config={**text, **small}, vision_config={**EYES, **IMAGE})
    hf.BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be run on text alone"):
        load_causal_lm(tmp_path)
