"""How near small random models end to the targets at which their KL is held: the counts of the pages on KL targets.

python docs/kl_runs/small_models.py pairs    # docs/the_two_kls.md: 54 runs, two minutes on a core
python docs/kl_runs/small_models.py ppo      # docs/ppo.md: the controllers of PPO, two minutes
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import make_trainer, plain_rows, train_logs
from tdpo.training import PPOConfig, PPOTrainer

SCHEDULES = (("constant", 60), ("linear", 60), ("linear", 120))  # with the updates of a run
LOSSES = ("dpo", "sft", "tdpo2")


def held_out(target: float, direction: str, loss: str, schedule: str, updates: int, folder: Path) -> float:
    """The KL of 48 held-out rows in the last third of a run, in nats a sequence: the mean of three evaluations."""
    torch.manual_seed(0)
    trainer = make_trainer(
        build_model("llama"), folder, build_tokenizer(), plain_rows(4 * updates, seed=1),
        eval_rows=plain_rows(48, seed=99), loss=loss, kl={"target": target, "direction": direction},
        learning_rate=3e-4, lr_scheduler_type=schedule, max_steps=updates, eval_strategy="steps",
        eval_steps=updates // 9, logging_steps=updates,
    )  # fmt: skip
    trainer.train()
    return sum([line["eval_kl_term"] for line in trainer.state.log_history if "eval_loss" in line][-3:]) / 3


def pairs() -> None:
    met: Counter[str] = Counter()
    for (schedule, updates), target, direction, loss in product(
        SCHEDULES, (0.5, 3.0, 8.0), ("reverse", "forward"), LOSSES
    ):
        with tempfile.TemporaryDirectory() as folder:
            off = held_out(target, direction, loss, schedule, updates, Path(folder)) / target - 1
        case = f"{schedule} over {updates} updates"
        met[case] += abs(off) <= 0.15
        print(f"{case}, {loss}, {direction} KL held at {target:g}: {off:+.1%}", flush=True)
    runs = len(LOSSES) * 6
    print(*(f"{case}: {count} of {runs} within 15 %" for case, count in met.items()), sep="\n")


def vowels(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) / 10 for text in completions]


def ppo_kls(kl: dict[str, Any], iterations: int, completions: int, folder: str) -> list[float]:
    """The held KL of every iteration, in nats a sequence: responses of 8 tokens, Adam at 1e-3."""
    torch.manual_seed(0)
    args = PPOConfig(
        output_dir=folder, iterations=iterations, completions=completions, samples_per_prompt=8, ppo_epochs=2,
        per_device_train_batch_size=16, max_new_tokens=8, kl={**kl, "coefficient": 0.1}, learning_rate=1e-3,
        lr_scheduler_type="constant", report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    prompts = [{"prompt": f"say {number} things"} for number in range(8)]
    trainer = PPOTrainer(build_model("llama"), vowels, args, prompts, processing_class=build_tokenizer())
    trainer.train()
    return [line[f"{kl['direction']}_kl"] for line in train_logs(trainer)]


def ppo() -> None:
    in_loss = {"form": "exact", "place": "loss", "target": 1.0}
    k1 = {"direction": "reverse", "form": "sampled", "place": "reward", "target": 2.0}
    cases = [({**in_loss, "direction": "forward"}, 16, 64), ({**in_loss, "direction": "reverse"}, 16, 64), (k1, 32, 32)]
    for kl, iterations, completions in cases:
        shortest = -(-2 * completions // 5)
        for controller in ({"controller": "adaptive", "horizon": shortest}, {"controller": "dual"}):
            with tempfile.TemporaryDirectory() as folder:
                kls = ppo_kls({**kl, **controller}, iterations, completions, folder)
            last = kls[len(kls) // 2 :]
            what = f"{kl['direction']} KL in the {kl['place']} at {kl['target']:g}, {controller['controller']}"
            print(f"{what}: {min(last):.2f} to {max(last):.2f} in the last half, {max(kls):.2f} at most", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    {"pairs": pairs, "ppo": ppo}[sys.argv[1]]()
