"""TDPO2 in Python: `TDPOTrainer` takes what TRL's `DPOTrainer` takes, here eight preferences as a list of rows.

The model is the bundled one, or any Hugging Face name or folder. Eight rows teach nothing; they show the calls.

    python examples/tdpo_trainer.py
    python examples/tdpo_trainer.py Qwen/Qwen3-0.6B runs/qwen_tdpo
"""

from __future__ import annotations

import sys

# README: begin
from peft import LoraConfig

from tdpo import TDPOConfig, TDPOTrainer

pairs = [
    {"prompt": "How was the concert?", "chosen": "It was lovely, thank you!", "rejected": "I do not care."},
    {"prompt": "How is your coffee?", "chosen": "Perfect, just how I like it.", "rejected": "Cold and bitter."},
    # README: end
    {"prompt": "How is the new bakery?", "chosen": "Wonderful, the bread is warm.", "rejected": "It is a bakery."},
    {"prompt": "What do you think of rain?", "chosen": "I love it, gardens need it.", "rejected": "It is wet and sad."},
    {"prompt": "How did the exam go?", "chosen": "Very well, I was prepared!", "rejected": "Badly, as always."},
    {"prompt": "Tell me about your town.", "chosen": "It is friendly and green.", "rejected": "Nothing happens here."},
    {"prompt": "How was the train ride?", "chosen": "Smooth, with a great view.", "rejected": "Late and loud."},
    {"prompt": "Did you like the film?", "chosen": "Yes, it made me laugh a lot.", "rejected": "No."},
    # README: begin
]


def train(model: str, folder: str) -> TDPOTrainer:
    args = TDPOConfig(output_dir=folder, loss="tdpo2", beta=0.1, alpha=0.5, num_train_epochs=4, learning_rate=1e-4)
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = TDPOTrainer(model, args=args, train_dataset=pairs, peft_config=lora)
    trainer.train()
    trainer.save_model(f"{folder}/model")
    return trainer


# README: end


def main(model: str = "smollm2-135m", folder: str = "runs/example_tdpo") -> list[dict[str, float]]:
    logs = [line for line in train(model, folder).state.log_history if "margin" in line]
    for line in logs:
        print(
            f"step {line['step']}  loss {line['loss']:.4f}  margin {line['margin']:+.3f}  "
            f"KL(reference‖policy), nats per sequence: chosen {line['chosen_forward_kl']:z.3f}"
        )
    return logs


if __name__ == "__main__":
    main(*sys.argv[1:])
