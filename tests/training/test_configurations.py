"""`TDPOConfig` and `PPOConfig` beside the recipe: one name, one default, one range, one help text for one thing."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from peft import get_peft_model

from helpers.ppo_cases import PROMPTS, letters, make_ppo, ppo_settings
from helpers.tiny_models import build_model
from helpers.training_cases import lora, make_trainer
from tdpo.comparison.cells import StudyFiles, cells_of, training_recipe
from tdpo.config import PPORecipe, Recipe, RecipeFields, load_recipe, load_study
from tdpo.training import OnlineTDPOConfig, PPOConfig, TDPOConfig
from tdpo.training.arguments import other_values, refuses_old_names
from tdpo.training.offline import config as offline
from tdpo.training.offline.trl_arguments import TRLArguments
from tdpo.training.online import config as online
from tdpo.training.online import pairs_config as online_pairs
from tdpo.workflows.trainer_arguments import PAIR_KEYS, PPO_KEYS, pair_arguments, ppo_arguments

ALL = [(TDPOConfig, offline.FIELDS), (PPOConfig, online.FIELDS), (OnlineTDPOConfig, online_pairs.FIELDS)]


def own_fields(config: Any) -> dict[str, Any]:
    """The fields that neither transformers nor TRL nor all trainers have."""
    of_all = {f.name for f in dataclasses.fields(TRLArguments)}
    return {f.name: f for f in dataclasses.fields(config) if f.name not in of_all}


@pytest.mark.parametrize(("config", "fields"), ALL)
def test_fields_are_keys_by_their_own_names(config: Any, fields: RecipeFields) -> None:
    renamed = {name: key for name, key in fields.keys.items() if key.rpartition(".")[2] != name}
    of_server = {f"sampling_{name}": f"sampling.{name}" for name in ("engine", "url", "timeout")}
    of_rollouts = {"rollout_batch_size": "rollouts.batch_size", **of_server}
    assert renamed in (
        {"loss": "loss.name"}, {"ppo_epochs": "ppo.epochs", **of_rollouts}, {"loss": "loss.name", **of_rollouts},
    )  # fmt: skip
    assert own_fields(config).keys() - fields.keys.keys() <= {
        "head_impl", "kl", "reference_update", "reward_weights", "per_device_train_batch_size",
    }  # fmt: skip


@pytest.mark.parametrize(("config", "fields"), ALL)
def test_help_texts_are_those_of_the_keys_in_words_of_python(config: Any, fields: RecipeFields) -> None:
    for name, field in own_fields(config).items():
        help_text = field.metadata["help"]
        assert len(help_text) > 10 and "null" not in help_text.lower(), name
        assert not any(f"`{key}`" in help_text for key in fields.keys.values()), name
    assert "divisor of `completions`" in own_fields(PPOConfig)["samples_per_prompt"].metadata["help"]


def test_a_recipe_of_defaults_gives_a_configuration_of_defaults(tmp_path: Path) -> None:
    recipe = load_recipe({"run_dir": str(tmp_path), "data": {"train": "pairs.jsonl"}})
    ppo = load_recipe({"run_dir": str(tmp_path), "ppo": {}, "environment": {"name": "sentiment"}})
    assert isinstance(recipe, Recipe) and isinstance(ppo, PPORecipe)
    for made, default in (
        (pair_arguments(recipe), TDPOConfig(str(tmp_path))),
        (ppo_arguments(ppo), PPOConfig(str(tmp_path))),
    ):
        for name in ("num_train_epochs", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm",
                     "logging_steps", "gradient_checkpointing", "per_device_train_batch_size"):  # fmt: skip
            assert getattr(made, name) == getattr(default, name), name
        # Those that follow from other keys of a recipe: its environment, and whether there is a value model.
        follows = {"max_new_tokens", "value_learning_rate"}
        for name in own_fields(type(default)).keys() - follows:
            assert getattr(made, name) == getattr(default, name), name


def test_every_way_in_has_the_same_learning_rates_epochs_and_batches(
    tokenizer: Any, tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    """Recipe, Python and study, for an adapter and for all weights; also for an adapter that is trained on."""
    folder = str(tiny_folder("llama"))
    saved = get_peft_model(build_model("llama"), lora())
    saved.save_pretrained(tmp_path / "adapter")

    def of_recipe(method: str, model: str, new_adapter: bool) -> float:
        keys = {"training": {}, "data": {"train": "p.jsonl"}} if method == "pairs" else {"ppo": {}}
        environment = {"name": "sentiment"}
        chosen = {"name": model, **({} if new_adapter else {"lora": None})}
        recipe = load_recipe({"run_dir": "r", "model": chosen, "environment": environment, **keys})
        rate = recipe.training.learning_rate if isinstance(recipe, Recipe) else recipe.ppo.learning_rate
        assert rate is not None
        return rate

    def of_python(method: str, model: Any, new_adapter: bool) -> float:
        how: dict[str, Any] = {"learning_rate": None, "peft_config": lora() if new_adapter else None}
        if method == "pairs":
            return float(make_trainer(model, tmp_path, tokenizer, **how).args.learning_rate)
        return float(make_ppo(model, tmp_path, tokenizer, letters, PROMPTS, **how).args.learning_rate)

    def loaded(model: str) -> Any:  # the adapter's own base is a model that was never saved
        return build_model("llama") if model == folder else get_peft_model(build_model("llama"), lora())

    for method, full in (("pairs", 5e-6), ("ppo", 1e-6)):
        cases = {(folder, False): full, (folder, True): 1e-4, (str(tmp_path / "adapter"), False): 1e-4}
        for (model, new_adapter), rate in cases.items():
            assert of_recipe(method, model, new_adapter) == of_python(method, loaded(model), new_adapter) == rate
    kept = make_trainer(build_model("llama"), tmp_path, tokenizer, learning_rate=5e-5)
    assert kept.args.learning_rate == 5e-5, "what a user wrote is kept, transformers' default too"

    arms = [{"name": "dpo", "strengths": [0.1]}, {"name": "ppo_reverse", "strengths": [0.1]}]
    study = load_study({"study_dir": "s", "seeds": [0], "budget": 64, "arms": arms,
                        "model": {"lora": None}, "tasks": [{"environment": {"name": "sentiment"}}]})  # fmt: skip
    cells = [cell for cell in cells_of(study) if cell.arm != "reference"]
    recipes = [training_recipe(study, StudyFiles(tmp_path / "study"), cell) for cell in cells]
    rates = [r.training.learning_rate if isinstance(r, Recipe) else r.ppo.learning_rate for r in recipes]
    assert rates == [5e-6, 1e-6]


def test_every_value_of_a_recipe_reaches_its_field(tmp_path: Path) -> None:
    own = {"rollouts.completions": 24, "rollouts.samples_per_prompt": 3, "rollouts.max_new_tokens": 7,
           "rollouts.batch_size": 5, "ppo.precision": "bfloat16-mixed",
           "rollouts.merge_adapter": True, "rollouts.missing_end_penalty": 0.5,
           "rollouts.show_every": None, "ppo.iterations": 3, "ppo.epochs": 2, "ppo.gamma": 0.9, "ppo.gae_lambda": 0.8,
           "ppo.clip_range": 0.3, "ppo.value_clip_range": None, "ppo.value_coefficient": 0.7,
           "ppo.value_learning_rate": 2e-3, "ppo.entropy_coefficient": 0.01, "ppo.whiten_advantages": False,
           "ppo.normalize_rewards": True, "ppo.reward_clip": 4.0, "ppo.target_kl": 0.2,
           "ppo.advantage": "gae", "ppo.scale_by_group_std": None, "ppo.importance_weight_cap": 3.0,
           "sampling.engine": "vllm", "sampling.url": "http://127.0.0.1:1", "sampling.timeout": 7.0,
           "sampling.adapter_dir": "shared"}  # fmt: skip
    assert own.keys() == set(online.FIELDS.keys.values()), "a new field gets a value here"
    overrides = [f"{key}={'null' if value is None else value}" for key, value in own.items()]
    given = {"run_dir": str(tmp_path), "ppo": {}, "environment": {"name": "sentiment"}}
    recipe = load_recipe(given, [*overrides, "ppo.minibatch_size=12", "kl.controller=fixed", "kl.coefficient=0.3"])
    assert isinstance(recipe, PPORecipe)
    made = ppo_arguments(recipe)
    assert {key: getattr(made, name) for name, key in online.FIELDS.keys.items()} == own
    assert made.constraint == recipe.kl.constraint and made.constraint.coefficient == 0.3
    assert made.update_size == 12
    assert not ppo_arguments(load_recipe(given, ["rollouts.merge_adapter=false"])).merge_adapter  # type: ignore[arg-type]
    critic_free = load_recipe(given, ["ppo.advantage=group", "ppo.scale_by_group_std=false"])
    assert isinstance(critic_free, PPORecipe)
    made = ppo_arguments(critic_free)
    assert (made.advantage, made.scale_by_group_std, made.value_learning_rate) == ("group", False, None)


def test_keys_of_transformers_fields_are_those_that_set_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables that documents are made of against what a recipe does, in values that are no defaults."""
    monkeypatch.setattr("tdpo.training.arguments.why_no_liger", lambda *_: None)  # it is not installed everywhere
    other = {
        "run_dir": "elsewhere", "seed": 9, "model.trust_remote_code": True, "learning_rate": 3e-3,
        "scheduler": "cosine",
        "warmup_steps": 5.0, "optimizer": "sgd", "weight_decay": 0.3, "max_grad_norm": 0.7, "logging_steps": 3,
        "gradient_checkpointing": True, "save_total_limit": 7, "report_to": ["tensorboard"], "epochs": 2.0,
        "max_steps": 6, "micro_batch_size": 2, "batch_size": 12, "minibatch_size": 8, "group_by_length": True,
        "eval_steps": 4, "save_steps": 5, "eval_every": 2, "save_every": 3, "model.device": "cpu", "liger": True,
        "compile": True,
    }  # fmt: skip
    # What an argument is where the key means a product: 12 pairs in forwards of 2; units of 4 epochs of 8 updates.
    products = {"model.device": True, "training.batch_size": 6,
                "training.group_by_length": "group_by_length", "ppo.minibatch_size": 4,
                "ppo.eval_every": 64, "ppo.save_every": 96}  # fmt: skip
    pair = {"run_dir": str(tmp_path), "data": {"train": "pairs.jsonl", "eval_fraction": 0.1}}
    ppo = {"run_dir": str(tmp_path), "ppo": {}, "environment": {"name": "sentiment"}}
    for given, keys, arguments in ((pair, PAIR_KEYS, pair_arguments), (ppo, PPO_KEYS, ppo_arguments)):
        for name, key in keys.items():
            value = other.get(key, other.get(key.rpartition(".")[2]))
            overrides = [f"{key}={value}"] if value != ["tensorboard"] else [f"{key}=[tensorboard]"]
            if key.endswith(("minibatch_size", ".batch_size")):
                overrides.append(f"{key.partition('.')[0]}.micro_batch_size=2")
            if key in ("ppo.eval_every", "ppo.save_every"):
                overrides.append("ppo.minibatch_size=8")
            made = arguments(load_recipe(given, overrides))  # type: ignore[operator]
            assert getattr(made, name) == products.get(key, value), (name, key)


def test_a_field_by_its_old_name_is_refused_with_the_new_one(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="PPOConfig: rollout_size is now called completions; write completions=8"):
        ppo_settings(tmp_path, rollout_size=8)
    assert "completions" in inspect.signature(PPOConfig).parameters

    @refuses_old_names(old="new")
    @dataclasses.dataclass
    class Settings:
        new: int = 1

    assert Settings(new=3).new == 3
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        Settings(other=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("field", ["show_every", "samples_per_prompt", "rollout_batch_size"])
def test_zero_is_refused_where_a_recipe_refuses_it(field: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be a whole number ≥ 1.*, got 0"):
        ppo_settings(tmp_path, **{field: 0})


def test_a_configuration_parses_from_a_command_line(tmp_path: Path) -> None:
    """Also its help: argparse formats it."""
    parser = hf.HfArgumentParser(TDPOConfig)
    assert "--max_tokens_per_row" in parser.format_help()


def test_arguments_have_other_values_for_a_while_and_only_then(tmp_path: Path) -> None:
    args = ppo_settings(tmp_path, save_total_limit=3)
    with pytest.raises(RuntimeError), other_values(args, save_total_limit=None):
        assert args.save_total_limit is None
        raise RuntimeError
    assert args.save_total_limit == 3
