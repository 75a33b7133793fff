"""The settings of `trl dpo` beside a recipe's keys: TRL's defaults, what is taken as it stands, what has no key."""

from __future__ import annotations

from typing import Any

# Defaults of `trl dpo` that a recipe does not have or that are another in it. What a file leaves out is one of these.
DEFAULTS: dict[str, Any] = {
    "output_dir": "trainer_output",
    "seed": 42,
    "dtype": "float32",
    "trust_remote_code": False,
    "use_peft": False,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "lora_target_modules": None,
    "load_in_4bit": False,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "use_bnb_nested_quant": False,
    "dataset_train_split": "train",
    "dataset_test_split": "test",
    "max_length": 1024,
    "loss_type": "sigmoid",
    "beta": 0.1,
    "label_smoothing": 0.0,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "optim": "adamw_torch_fused",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "gradient_checkpointing": True,
    "use_liger_kernel": False,
    "torch_compile": False,
    "bf16": None,
    "fp16": False,
    "logging_steps": 10,
    "eval_strategy": "no",
    "eval_steps": None,
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": None,
    "report_to": "none",
}
# Settings whose value is a key's value as it stands.
SAME = {
    "output_dir": "run_dir",
    "seed": "seed",
    "trust_remote_code": "model.trust_remote_code",
    "max_length": "data.max_length",
    "beta": "loss.beta",
    "learning_rate": "training.learning_rate",
    "weight_decay": "training.weight_decay",
    "max_grad_norm": "training.max_grad_norm",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "use_liger_kernel": "training.liger",
    "torch_compile": "training.compile",
    "logging_steps": "training.logging_steps",
}
# Settings of `trl dpo` beside those of DPOConfig: the values that mean what a recipe does in any case, and what to do
# where another one is asked for.
_PUSH = "afterwards `tdpo push RUN OWNER/NAME`"
_TOKEN = "belongs into no file: `hf auth login`, or HF_TOKEN in the shell, when `tdpo push` uploads"
_LAUNCHING = "belongs to the launch: accelerate launch --config_file FILE -m tdpo train recipe.yaml"
_LORA_ONLY = "is not here: adapters are plain LoRA; train with peft_config=LoraConfig(…) in Python"
OTHERS: dict[str, tuple[tuple[Any, ...], str]] = {
    "model_revision": (("main", None), "has no key: name a folder that holds this revision as model.name"),
    "attn_implementation": (("sdpa", None), "has no key: load the model yourself and train it with TDPOTrainer"),
    "lora_target_parameters": ((None,), _LORA_ONLY),
    "lora_modules_to_save": ((None,), _LORA_ONLY),
    "lora_task_type": (("CAUSAL_LM",), "is not here: models are causal ones"),
    "use_rslora": ((False,), f"{_LORA_ONLY}, or set model.lora.alpha to lora_alpha × √lora_r"),
    "use_dora": ((False,), _LORA_ONLY),
    "bnb_4bit_quant_storage": ((None, "uint8"), "has no key: weights are stored as bytes"),
    "dataset_config": ((None,), "has no key: save that configuration with save_to_disk and name the folder"),
    "dataset_streaming": ((False,), "is not here: rows are read once and checked before training"),
    "streaming": ((False,), "is not here: rows are read once and checked before training"),
    "ignore_bias_buffers": ((False,), "is not needed: leave it out"),
    "push_to_hub": ((False,), f"is no part of training: {_PUSH}"),
    "push_to_hub_model_id": ((), f"is no part of training: {_PUSH}"),
    "hub_model_id": ((), f"is no part of training: {_PUSH}"),
    "hub_private_repo": ((True,), f"is no part of training: {_PUSH}; a new repository is private without --public"),
    "hub_revision": ((), f"is no part of training: {_PUSH} --revision BRANCH"),
    "hub_token": ((), _TOKEN),
    "push_to_hub_token": ((), _TOKEN),
    "hub_strategy": (("end",), f"is no part of training: {_PUSH}, which sends what is there"),
    "hub_always_push": ((False,), f"is no part of training: {_PUSH}"),
    "accelerate_config": ((), _LAUNCHING),
    "num_processes": ((1,), _LAUNCHING),
    "num_machines": ((1,), _LAUNCHING),
    "main_process_port": ((), _LAUNCHING),
    "gpu_ids": ((), _LAUNCHING),
    "env": ((None, {}), "belongs to the shell: set these variables there"),
}
# Settings that the conversion reads besides, and that have no default worth a name.
BESIDES = (
    "model_name_or_path",
    "dataset_name",
    "datasets",
    "test_split_size",
    "warmup_ratio",
    "torch_dtype",
    "model_init_kwargs",
)
# Settings whose values are repeated nowhere: the recipe that is made may be shared.
SECRET = ("hub_token", "push_to_hub_token")
