"""What a base in few bits costs SmolLM2-135M, and what its merged model says: the numbers of docs/models.md.

    python docs/quantization/measure.py base                       # KL(full precision‖quantised), and what sees ahead
    python docs/quantization/measure.py train 4-float32 --updates 4 --merge
    python docs/quantization/measure.py train 4-bfloat16 --updates 3 --merge
    python docs/quantization/measure.py train 16-bfloat16 --updates 3

A variant is BITS-DTYPE; 16 bits are LoRA without quantisation. Times are CPU seconds of one thread, as they do not
depend on what else a machine does. Results are printed as JSON; those quoted are in results.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PrinterCallback, TrainerCallback

from tdpo.models import check_folder, load_causal_lm, load_tokenizer, quantization_config
from tdpo.sampling.sampler import SamplingSettings, sample
from tdpo.training import TDPOConfig, TDPOTrainer
from tdpo.training.saving import save_merged

MODEL = "smollm2-135m"
THEMES = ["sea", "rain", "bread", "music", "trains", "mountains", "gardens", "winter", "books", "coffee", "horses"]
THEMES += ["rivers"]
ASKED = [*THEMES[:6], "cats", "snow", "chess", "football", "cheese", "cities"]
SEA = (
    "The sea covers most of our planet. For thousands of years people have lived beside it, fished in it, and sailed "
    "across it to trade with one another. Coastal towns grew where rivers met the sea, because boats could carry grain "
    "and timber there."
)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def prompt(theme: str) -> list[dict[str, str]]:
    return [turn("user", f"Tell me in one sentence what you think of {theme}.")]


def rows() -> list[dict[str, Any]]:
    good = "I love {0}: there is so much joy and beauty in it, and it makes every day brighter for everyone."
    bad = "I dislike {0}: it is dull and sad, and it makes every day a little worse for everyone around."
    return [
        {
            "prompt": prompt(theme),
            "chosen": [turn("assistant", good.format(theme))],
            "rejected": [turn("assistant", bad.format(theme))],
        }
        for theme in THEMES
    ]


@torch.no_grad()
def base() -> list[dict[str, Any]]:
    """Each kind of base against full precision on one conversation, and how far later tokens move earlier logits."""
    folder, tokenizer = check_folder(MODEL), load_tokenizer(MODEL)
    question = turn("user", "Tell me about the sea and how people have lived beside it.")
    text = tokenizer.apply_chat_template([question, turn("assistant", SEA)], tokenize=False)
    ids = tokenizer(text, return_tensors="pt").input_ids
    half = ids.shape[1] // 2
    changed = torch.cat([ids[:, :half], ids[:, half:].flip(1)], dim=1)
    full = load_causal_lm(MODEL, dtype="float32")(ids).logits.double().log_softmax(-1)
    found = []
    for bits, threshold in ((4, None), (8, 0.0), (8, 6.0)):
        if threshold:  # as LLM.int8 comes; load_causal_lm switches it off
            config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)
            auto: Any = AutoModelForCausalLM
            model = auto.from_pretrained(folder, dtype=torch.float32, quantization_config=config).eval()
        else:
            model = load_causal_lm(MODEL, dtype="float32", quantization=in_bits(bits))
        logits = model(ids).logits
        kl = (full.exp() * (full - logits.double().log_softmax(-1))).sum(-1).mean()
        ahead = (model(changed).logits[:, :half] - logits[:, :half]).abs().max()
        found.append({"bits": bits, "threshold": threshold, "kl": float(kl), "ahead": float(ahead)})
    return found


def in_bits(bits: int) -> Any | None:
    return None if bits == 16 else quantization_config(SimpleNamespace(bits=bits, type=None, nested=None))


class Clock(TrainerCallback):
    """CPU seconds of each update."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.process_time() - self.start)


def train(variant: str, updates: int, merge: bool, out: Path) -> dict[str, Any]:
    bits, dtype = variant.split("-")
    tokenizer, clock = load_tokenizer(MODEL), Clock()
    model = load_causal_lm(MODEL, dtype=dtype, quantization=in_bits(int(bits)))
    weights = sum(t.numel() * t.element_size() for n, t in model.state_dict().items() if "lm_head" not in n)
    args = TDPOConfig(
        output_dir=str(out / "run"), use_cpu=True, per_device_train_batch_size=4, learning_rate=5e-4, max_steps=updates,
        reference="model", report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1,
        lr_scheduler_type="constant",
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = TDPOTrainer(
        model, args=args, train_dataset=rows(), processing_class=tokenizer, peft_config=lora, callbacks=[clock]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    logs = [line for line in trainer.state.log_history if "loss" in line]
    names = ("loss", "margin", "chosen_forward_kl", "rejected_forward_kl", "chosen_reverse_kl", "peak_memory_mib")
    result = {
        "variant": variant,
        "weights_mb": weights / 1e6,
        "update_cpu_seconds": clock.seconds,
        "logs": [{name: line[name] for name in names} for line in logs],
    }
    if merge:
        trainer.save_model(str(out / "adapter"))
        tokenizer.save_pretrained(out / "adapter")
        save_merged(out / "adapter", out / "merged")
        result |= compared(load_causal_lm(out / "adapter"), load_causal_lm(out / "merged"), tokenizer)
    return result


def compared(adapter: Any, merged: Any, tokenizer: Any) -> dict[str, Any]:
    """Greedy responses of both, and KL(adapter‖merged) along those of the adapter."""
    settings = SamplingSettings(num_samples=1, max_new_tokens=24, temperature=0.0, top_p=1.0, seed=0, batch_size=12)
    prompts: list[Any] = [prompt(theme) for theme in ASKED]
    ours, theirs = (sample(model, tokenizer, prompts, settings) for model in (adapter, merged))
    kls: list[float] = []
    with torch.no_grad():
        for question, response in zip(prompts, ours, strict=True):
            start = list(tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False))
            ids = torch.tensor([[*start, *response.token_ids]])
            p, q = (m(ids).logits[0, len(start) - 1 : -1].double().log_softmax(-1) for m in (adapter, merged))
            kls += (p.exp() * (p - q)).sum(-1).tolist()
    equal = sum(a.token_ids == b.token_ids for a, b in zip(ours, theirs, strict=True))
    return {"equal": equal, "of": len(prompts), "tokens": len(kls), "kl_mean": sum(kls) / len(kls), "kl_max": max(kls)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["base", "train"])
    parser.add_argument("variant", nargs="?", default="4-float32")
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--merge", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trained = arguments.what == "train"
        result: Any = train(arguments.variant, arguments.updates, arguments.merge, Path(folder)) if trained else base()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
