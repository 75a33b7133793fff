"""TDPO2 in TRL: its DPOTrainer with another loss, made of three functions of tdpo on TRL's own batches.

TRL documents how to override `compute_loss`. Its batches hold `input_ids`, `attention_mask` and `completion_mask`, with
the chosen rows first and then the rejected rows. The model is tiny and random, so nothing is downloaded.

    pip install . trl   # in a clone of tdpo
    python examples/trl_trainer.py
"""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer

from tdpo import Head, linear_token_stats, score_pairs, tdpo2_loss

ALPHA = 0.5


class TDPO2Trainer(DPOTrainer):
    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # The hidden state before a token predicts it; prompt and padding never reach the head.
        row, column = inputs["completion_mask"].nonzero(as_tuple=True)
        before = row, column - 1
        policy, reference = self.accelerator.unwrap_model(model), self.ref_model
        with torch.no_grad():
            reference_hidden = self.hidden_states(reference, inputs)[before]
        stats = linear_token_stats(
            self.hidden_states(policy, inputs)[before],
            Head(policy.lm_head.weight),
            reference_hidden,
            Head(reference.lm_head.weight),
            inputs["input_ids"][row, column],
        )
        pairs = len(inputs["input_ids"]) // 2
        scores = score_pairs(stats, sequence_index=row, num_pairs=pairs)  # row p is chosen, row P + p rejected
        loss = tdpo2_loss(scores, beta=self.beta, alpha=ALPHA)
        mode = "train" if model.training else "eval"
        for name, value in (
            ("margin", loss.margin),
            ("accuracy", (loss.margin > 0).float()),
            ("chosen_forward_kl", scores.chosen_sequence_kl),
            ("rejected_forward_kl", scores.rejected_sequence_kl),
        ):
            self._metrics[mode][name].append(value.mean().item())
        mean = loss.per_pair.mean()
        return (mean, {"margin": loss.margin}) if return_outputs else mean

    @staticmethod
    def hidden_states(model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return the hidden states `[2P, T, D]` of the body, without the head."""
        body = model.base_model
        return body(inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).last_hidden_state


def tiny_model_and_tokenizer() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    words = ["<pad>", "<eos>", "how", "was", "it", "?", "good", "great", "lovely", "bad", "awful", "dull", "very"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


def make_trainer(folder: str) -> TDPO2Trainer:
    torch.manual_seed(0)
    model, tokenizer = tiny_model_and_tokenizer()
    good, bad = ("good", "great", "lovely"), ("bad", "awful", "dull")
    pairs = [{"prompt": "how was it ?", "chosen": f" very {a}", "rejected": f" {b}"} for a in good for b in bad]
    return TDPO2Trainer(
        model,
        ref_model=copy.deepcopy(model),  # a model without a path needs an explicit reference
        args=DPOConfig(
            folder, beta=0.1, max_steps=12, learning_rate=2e-3, per_device_train_batch_size=9, logging_steps=1,
            save_strategy="no", report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )  # fmt: skip


def main() -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    logs = [line for line in trainer.state.log_history if "margin" in line]
    for step, line in enumerate(logs, start=1):
        print(
            f"step {step}  loss {line['loss']:.4f}  accuracy {line['accuracy']:.2f}  margin {line['margin']:+.3f}  "
            f"KL(reference‖policy), nats per sequence: chosen {line['chosen_forward_kl']:z.3f}, "
            f"rejected {line['rejected_forward_kl']:z.3f}"
        )
    return logs


if __name__ == "__main__":
    main()
