"""What `step.py` compares: tdpo's trainer, TRL's DPO trainer and a plain loop with naive code, in several settings."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BETA, ALPHA, SEED, CLIP = 0.1, 0.5, 42, 1.0
LEARNING_RATE = {"LoRA": 1e-3, "full": 1e-5}
# What both trainers are told where neither has its defaults: weights as they are, nothing computed twice.
PLAIN = {"bf16": False, "gradient_checkpointing": False, "optim": "adamw_torch"}
AUTOCAST = {**PLAIN, "bf16": True}
DEFAULTS: dict[str, Any] = {}

Pair = tuple[list[int], list[int], list[int]]


@dataclass(frozen=True)
class Task:
    """The input of a contestant. It trains one step for the first `pairs_per_step` pairs and each further batch."""

    model: Any
    tokenizer: Any
    pairs: list[Pair]
    pairs_per_step: int
    tuning: str
    folder: str
    clock: Any  # step.Clock
    device: str = "cpu"

    @property
    def steps(self) -> int:
        return len(self.pairs) // self.pairs_per_step

    def lora(self) -> Any:
        from peft import LoraConfig

        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        return config if self.tuning == "LoRA" else None

    def training_arguments(self) -> dict[str, Any]:
        """Return the arguments of both trainers. The learning rate is constant, so that a plain loop can equal it."""
        return {
            "output_dir": self.folder, "use_cpu": self.device == "cpu", "max_steps": self.steps, "seed": SEED,
            "per_device_train_batch_size": self.pairs_per_step, "train_sampling_strategy": "sequential",
            "learning_rate": LEARNING_RATE[self.tuning], "lr_scheduler_type": "constant", "weight_decay": 0.0,
            "max_grad_norm": CLIP, "beta": BETA, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
            "disable_tqdm": True, "dataloader_pin_memory": self.device != "cpu",
        }  # fmt: skip

    def train(self, trainer: Any) -> list[float]:
        """Time the steps of a transformers.Trainer, and return their losses."""
        from transformers import PrinterCallback, TrainerCallback

        clock = self.clock

        class Ticks(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                clock.begin()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.end()

        trainer.add_callback(Ticks())
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@dataclass(frozen=True)
class Outcome:
    """The losses of all steps, response tokens and positions through the body in one step, and notes on the set-up."""

    losses: list[float]
    response_tokens: int
    body_tokens: int
    notes: str = ""


def dtypes(model: Any) -> str:
    """What the model's weights are held in: those that are trained, and the others."""
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for parameter in model.parameters():
        found[parameter.requires_grad].add(str(parameter.dtype).removeprefix("torch."))
    trained, frozen = (" and ".join(sorted(found[kind])) or "none" for kind in (True, False))
    return f"Trained weights: {trained}; frozen ones: {frozen}"


def train_tdpo(
    task: Task, loss: str, kl: str | None = None, *, adapters_as_base: bool = False, **changes: Any
) -> Outcome:
    """`kl` is the direction of an exact KL beside the loss; None for none. `changes` are other arguments.

    With `adapters_as_base` adapters have the dtype of the weights beside them, where PEFT makes float32 of 16 bits.
    """
    from peft import get_peft_model
    from transformers import set_seed

    from tdpo.batches import ResponseBatch, TokenizedPair
    from tdpo.training import TDPOConfig, TDPOTrainer

    given: dict[str, Any] = {**task.training_arguments(), "loss": loss}
    if loss == "tdpo2":
        given["alpha"] = ALPHA
    if kl is not None:
        given["kl"] = {"direction": kl}
    # A folder of this run's own, so that making the cache counts as preparation.
    given |= {"reference": "cache", "reference_cache_dir": f"{given['output_dir']}/reference", **changes}
    model, adapter = task.model, task.lora()
    if adapters_as_base:
        set_seed(SEED)
        model, adapter = get_peft_model(model, adapter, autocast_adapter_dtype=False), None
    trainer = TDPOTrainer(
        model,
        args=TDPOConfig(**given),
        train_dataset=[TokenizedPair.of(*pair, row=i) for i, pair in enumerate(task.pairs)],
        processing_class=task.tokenizer,
        peft_config=adapter,
    )
    batch = ResponseBatch.from_inputs(
        {k: v for k, v in next(iter(trainer.get_train_dataloader())).items() if k in ResponseBatch.__dataclass_fields__}
    )
    notes = f"{trainer.describe()} {dtypes(trainer.model)}."
    return Outcome(task.train(trainer), len(batch.target_ids), batch.num_tokens, notes)


def train_trl(
    task: Task, precompute: bool, *, adapters_as_base: bool = False, in_float32: bool = False, **changes: Any
) -> Outcome:
    """`adapters_as_base` as in `train_tdpo`; `in_float32` holds the weights as TRL loads them, `changes` are other
    arguments."""
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class TokenIdsDPOTrainer(DPOTrainer):
        """Takes token ids unchanged, where TRL would tokenise text and add tokens of its own."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    columns = zip(("prompt_ids", "chosen_ids", "rejected_ids"), zip(*task.pairs, strict=True), strict=True)
    keeps_reference = not precompute and task.tuning == "full"
    loaded = next(task.model.parameters()).dtype
    if in_float32:
        task.model.to(torch.float32)
    trainer = TokenIdsDPOTrainer(
        task.model,
        ref_model=copy.deepcopy(task.model).requires_grad_(False) if keeps_reference else None,
        args=DPOConfig(**{"precompute_ref_log_probs": precompute, **task.training_arguments(), **changes}),
        train_dataset=Dataset.from_dict({name: list(values) for name, values in columns}),
        processing_class=task.tokenizer,
        peft_config=task.lora(),
    )
    for parameter in trainer.model.parameters() if adapters_as_base else ():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(loaded)
    batch = next(iter(trainer.get_train_dataloader()))
    tokens = int(batch["completion_mask"].sum()), int(batch["attention_mask"].sum())
    reference = "precomputed" if precompute else "a model" if keeps_reference else "the policy with its adapter off"
    held = dtypes(trainer.model)
    losses = task.train(trainer)
    return Outcome(
        losses,
        *tokens,
        f"DPOConfig(precompute_ref_log_probs={precompute}, {changes or 'its defaults'}); {held}; "
        f"reference: {reference}.",
    )


def train_naive(task: Task) -> Outcome:
    """Padded rows through both models, full logits of every position, the published formula, plain PyTorch."""
    import torch
    from peft import get_peft_model
    from transformers import set_seed

    from _published import published_statistics, upcast
    from tdpo import TokenStats, score_pairs, tdpo2_loss
    from tdpo.batches import ResponseBatch, TokenizedPair, padded_batch

    reference = None if task.tuning == "LoRA" else copy.deepcopy(task.model).requires_grad_(False)
    set_seed(SEED)
    model = task.model if reference is not None else get_peft_model(task.model, task.lora())
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE[task.tuning], weight_decay=0.0)

    def reference_logits(inputs: dict[str, Any]) -> Any:
        with torch.no_grad():
            if reference is not None:
                return upcast(reference(**inputs, use_cache=False).logits)
            with model.disable_adapter():
                return upcast(model(**inputs, use_cache=False).logits)

    def loss_of(batch: Any) -> Any:
        inputs = batch.model_inputs()
        next_ids = batch.input_ids.roll(-1, dims=1)  # what comes round in the last column is not counted
        policy_logits = upcast(model(**inputs, use_cache=False).logits)
        everywhere = published_statistics(policy_logits, reference_logits(inputs), next_ids)
        counted = [value.flatten()[batch.response_index] for value in vars(everywhere).values() if value is not None]
        scores = score_pairs(TokenStats(*counted), batch.sequence_index, batch.num_prompts)
        return tdpo2_loss(scores, beta=BETA, alpha=ALPHA).per_pair.mean()

    tokenized = [TokenizedPair.of(*pair) for pair in task.pairs]
    batches = [
        padded_batch(tokenized[i : i + task.pairs_per_step], task.tokenizer.pad_token_id)
        for i in range(0, len(tokenized), task.pairs_per_step)
    ]
    losses = []
    for batch in batches:
        task.clock.begin()
        batch = ResponseBatch.from_inputs(batch.as_inputs(), task.device)
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        task.clock.end()
    return Outcome(losses, len(batches[0].target_ids), batches[0].num_tokens, "Full logits at every position.")


@dataclass(frozen=True)
class Contestant:
    train: Callable[[Task], Outcome]
    tuning: str
    tdpo2: bool = True
    on_card: bool = False  # takes part on a GPU alone, unless it is named


def ours(tuning: str = "LoRA", **changes: Any) -> Contestant:
    return Contestant(lambda task: train_tdpo(task, "tdpo2", **changes), tuning, on_card=True)


def trl(tuning: str = "LoRA", *, precompute: bool = True, **changes: Any) -> Contestant:
    return Contestant(lambda task: train_trl(task, precompute=precompute, **changes), tuning, tdpo2=False, on_card=True)


CONTESTANTS: dict[str, Contestant] = {
    "tdpo TDPO2, LoRA": Contestant(lambda task: train_tdpo(task, "tdpo2", **PLAIN), "LoRA"),
    "tdpo TDPO2 + forward KL, LoRA": Contestant(
        lambda task: train_tdpo(task, "tdpo2", "forward", **PLAIN), "LoRA", tdpo2=False
    ),
    "tdpo TDPO2 + reverse KL, LoRA": Contestant(
        lambda task: train_tdpo(task, "tdpo2", "reverse", **PLAIN), "LoRA", tdpo2=False
    ),
    "tdpo DPO, LoRA": Contestant(lambda task: train_tdpo(task, "dpo", **PLAIN), "LoRA", tdpo2=False),
    "TRL DPO, LoRA": Contestant(lambda task: train_trl(task, precompute=True, **PLAIN), "LoRA", tdpo2=False),
    "naive TDPO2, LoRA": Contestant(train_naive, "LoRA"),
    "tdpo TDPO2, full": Contestant(lambda task: train_tdpo(task, "tdpo2", **PLAIN), "full"),
    "tdpo TDPO2 + reverse KL, full": Contestant(
        lambda task: train_tdpo(task, "tdpo2", "reverse", **PLAIN), "full", tdpo2=False
    ),
    "TRL DPO, full": Contestant(lambda task: train_trl(task, precompute=True, **PLAIN), "full", tdpo2=False),
    "TRL DPO, full, reference model": Contestant(
        lambda task: train_trl(task, precompute=False, **PLAIN), "full", tdpo2=False
    ),
    "naive TDPO2, full": Contestant(train_naive, "full"),
    # On a GPU. First each at its own defaults: TRL's are autocast, checkpointing, and a reference that runs in every
    # step; then both alike.
    "tdpo TDPO2, LoRA, defaults": ours(**DEFAULTS),
    "TRL DPO, LoRA, defaults": trl(precompute=False, **DEFAULTS),
    "TRL DPO, LoRA, defaults, precomputed": trl(**DEFAULTS),
    "tdpo TDPO2, LoRA, bf16": ours(**AUTOCAST),
    "TRL DPO, LoRA, bf16": trl(**AUTOCAST),
    "tdpo TDPO2, LoRA, bf16, prompts shared": ours(**AUTOCAST, prefix_sharing="on"),
    "tdpo TDPO2, LoRA, bf16, rows padded": ours(**AUTOCAST, prefix_sharing="off"),
    "tdpo TDPO2, LoRA, bf16, checkpointing": ours(bf16=True, gradient_checkpointing=True),
    "tdpo TDPO2, LoRA, Liger": ours(**AUTOCAST, use_liger_kernel=True),
    "TRL DPO, LoRA, Liger": trl(**AUTOCAST, use_liger_kernel=True),
    "tdpo TDPO2, LoRA, adapters as base, Liger": ours(**AUTOCAST, use_liger_kernel=True, adapters_as_base=True),
    "TRL DPO, LoRA, adapters as base, Liger": trl(**AUTOCAST, use_liger_kernel=True, adapters_as_base=True),
    "tdpo TDPO2, LoRA, compiled": ours(**AUTOCAST, torch_compile=True),
    "tdpo TDPO2, LoRA, adapters as base, compiled": ours(**PLAIN, torch_compile=True, adapters_as_base=True),
    # TRL loads a model that is given by name in float32; tdpo raises weights that are trained to float32 by itself.
    "tdpo TDPO2, full, defaults": ours("full", **DEFAULTS),
    "TRL DPO, full, reference model, defaults": trl("full", precompute=False, **DEFAULTS, in_float32=True),
    "tdpo TDPO2, full, bf16": ours("full", **AUTOCAST),
    "TRL DPO, full, reference model, bf16": trl("full", precompute=False, **AUTOCAST, in_float32=True),
}
ON_CPU = [name for name, contestant in CONTESTANTS.items() if not contestant.on_card]
# The first of these that was run is what "/ TRL" divides by.
BASELINES = {
    "LoRA": ("TRL DPO, LoRA", "TRL DPO, LoRA, bf16", "TRL DPO, LoRA, Liger"),
    "full": ("TRL DPO, full", "TRL DPO, full, reference model, bf16"),
}
PEER = {"LoRA": "naive TDPO2, LoRA", "full": "naive TDPO2, full"}
