"""Merging an adapter for good: the folder that is written says what the adapter says, or nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import lora
from tdpo.models import load_causal_lm, merge_adapter, merging, select_logits
from tdpo.records import files, full_disk, locks
from tdpo.training import saving
from tdpo.training.saving import save_merged

IDS = torch.tensor([[5, 9, 31, 40, 77, 6, 101, 2]])
KINDS: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "both ends": {"target_modules": ["embed_tokens", "lm_head"]},
    "head saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "single tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 101]}},
    "dora on the head": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    "rank stabilised": {"target_modules": ["v_proj", "lm_head"], "use_rslora": True},
    "both, tied by peft": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens", "lm_head"],
        "ensure_weight_tying": True,
    },
    "neither end": {"target_modules": ["q_proj"]},
}
STAY_TIED = {"neither end", "single tokens", "both, tied by peft"}


def moved(model: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def adapter_folder(base: Any, folder: Path, **config: Any) -> Path:
    """An adapter with sizeable weights on `base`, both saved; the adapter's folder."""
    from peft import LoraConfig, get_peft_model

    base.save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    model = moved(get_peft_model(hf.AutoModelForCausalLM.from_pretrained(folder / "base"), LoraConfig(r=4, **config)))
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


def kl(model: Any, other: Any) -> float:
    """KL(model‖other) in nats a token."""
    with torch.no_grad():
        p, q = (m(IDS).logits[0].double().log_softmax(-1) for m in (model, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_folder_of_a_tied_model_says_what_the_adapter_says(kind: str, tmp_path: Path) -> None:
    folder = adapter_folder(build_model("qwen2"), tmp_path, task_type="CAUSAL_LM", **KINDS[kind])
    adapter = load_causal_lm(folder)
    base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert base.get_output_embeddings().weight is base.get_input_embeddings().weight
    assert kl(adapter, base) > 1e-4, "the adapter says something of its own"
    save_merged(folder, tmp_path / "out" / "merged")
    merged = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged").eval()
    assert abs(kl(adapter, merged)) < 1e-6
    assert merged.config.tie_word_embeddings is (kind in STAY_TIED)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["merged"], "nothing else is left"
    assert hf.AutoTokenizer.from_pretrained(tmp_path / "out" / "merged").eos_token_id == 1


@pytest.mark.parametrize("targets", [("wte",), ("lm_head", "c_attn")])
def test_tied_ends_under_other_names(targets: tuple[str, ...], tmp_path: Path) -> None:
    folder = adapter_folder(build_model("gpt2"), tmp_path, task_type="CAUSAL_LM", target_modules=list(targets))
    save_merged(folder, tmp_path / "merged")
    merged = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert abs(kl(load_causal_lm(folder), merged)) < 1e-5


def test_a_merged_model_that_says_something_else_is_refused_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter_folder(build_model("qwen2"), tmp_path, task_type="CAUSAL_LM", target_modules=["lm_head"])
    monkeypatch.setattr(merging, "_untie", lambda lm: False)
    with pytest.raises(ValueError, match=r"merging would write another model: its logits differ .* by .*\(relative"):
        save_merged(folder, tmp_path / "merged")
    monkeypatch.undo()
    base = load_causal_lm(tmp_path / "base")
    places = []

    def load(name: Any, device: str | None = None) -> Any:
        places.append(device)
        return load_causal_lm(name) if name == folder else base

    monkeypatch.setattr(saving, "load_causal_lm", load)
    with pytest.raises(ValueError, match=r"says something else once it is loaded again.*nothing was written"):
        save_merged(folder, tmp_path / "merged")
    assert places == [None, "cpu"], "compared where it was merged: a quantised base may be on a GPU"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_half_made_merge_is_repeated_and_a_full_disk_is_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter_folder(build_model("qwen2"), tmp_path, task_type="CAUSAL_LM", target_modules=["q_proj"])
    out, half = tmp_path / "out" / "merged", tmp_path / "out" / ".merged.being-merged"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"cut off by a kill")
    (half / "of-another-model.json").write_text("{}")
    (tmp_path / "out" / ".merged.lock").touch()
    with monkeypatch.context() as patch:
        patch.setattr(full_disk, "free_bytes", lambda _: 1000)
        patch.setattr(files, "free_bytes", lambda _: 1000)
        told = r"No space left on device \(at least [\d,]{7,} bytes to write, 1,000 bytes free\)"
        with pytest.raises(OSError, match=told) as caught:
            save_merged(folder, out)
        assert caught.value.filename == str(out) and not out.exists()
    with (
        locks.lock(tmp_path / "out" / ".merged.lock"),
        pytest.raises(FileExistsError, match=r"another .*\(process \d+"),
    ):
        save_merged(folder, out)
    save_merged(folder, out)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["merged"]
    assert load_causal_lm(out) is not None and not (out / "of-another-model.json").exists()


def test_what_cannot_be_merged_is_said(tiny_model: Callable[..., Any]) -> None:
    from peft import PromptTuningConfig, get_peft_model

    prompts = get_peft_model(tiny_model("llama"), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="this adapter cannot be merged into its base: "):
        merge_adapter(prompts)


def test_half_precision_may_round(tiny_model: Callable[..., Any]) -> None:
    from peft import get_peft_model

    model = moved(get_peft_model(tiny_model("llama", dtype=torch.bfloat16), lora("q_proj", "v_proj"))).eval()
    before = select_logits(model, {"input_ids": IDS}, torch.arange(8)).detach().float()
    after = select_logits(merge_adapter(model), {"input_ids": IDS}, torch.arange(8)).detach().float()
    assert (before - after).abs().max() < 0.1 * before.abs().max()
