"""PPO in Python: `PPOTrainer` takes prompts and a reward function as TRL's GRPO does, and a KL in either direction.

The model is the bundled one, or any Hugging Face name or folder. Two iterations teach little; they show the calls.

    python examples/ppo_trainer.py
    python examples/ppo_trainer.py Qwen/Qwen3-0.6B runs/qwen_ppo
"""

from __future__ import annotations

import sys

# README: begin
from peft import LoraConfig

from tdpo import PPOConfig, PPOTrainer

prompts = ["How was the concert?", "How is the new bakery?", "Tell me about your town.", "How is your coffee?"]


def brevity(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """One reward for each response: 1 for an empty one, less with every word."""
    return [1 / (1 + len(text.split())) for text in completions]


def train(model: str, folder: str) -> PPOTrainer:
    kl = {"direction": "forward", "form": "exact", "place": "loss", "controller": "fixed", "coefficient": 0.1}
    args = PPOConfig(output_dir=folder, kl=kl, iterations=2, max_new_tokens=16, learning_rate=1e-4)
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = PPOTrainer(model, brevity, args=args, train_dataset=prompts, peft_config=lora)
    trainer.train()
    trainer.save_model(f"{folder}/model")
    return trainer


# README: end


def main(model: str = "smollm2-135m", folder: str = "runs/example_ppo") -> list[dict[str, float]]:
    logs = [line for line in train(model, folder).state.log_history if "reward_mean" in line]
    for line in logs:
        print(
            f"iteration {line['iteration']:.0f}  mean reward {line['reward_mean']:.3f}  nats per sequence: "
            f"KL(reference‖policy) {line['forward_kl']:z.3f}, KL(policy‖reference) {line['reverse_kl']:z.3f}"
        )
    return logs


if __name__ == "__main__":
    main(*sys.argv[1:])
