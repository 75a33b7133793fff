"""`tdpo recipe --from-trl`: a YAML for `trl dpo` becomes a recipe that says where the two differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tdpo.config import Recipe, RecipeError, flatten, load_recipe, write_yaml
from tdpo.workflows.from_trl import recipe_from_trl
from tdpo.workflows.trainer_arguments import pair_arguments
from tdpo.workflows.trl_settings import BESIDES, DEFAULTS

Call = Callable[..., Result]
LEAST = "model_name_or_path: org/model\ndataset_name: org/rows\n"


def converted(tmp_path: Path, text: str) -> tuple[Recipe, str, list[str]]:
    """The recipe, its text and what was lost."""
    path, made = tmp_path / "dpo.yaml", tmp_path / "made.yaml"
    path.write_text(LEAST + text)
    result = recipe_from_trl(path)
    made.write_text(result.text)
    recipe = load_recipe(made)
    assert isinstance(recipe, Recipe)
    return recipe, result.text, [sentence.removeprefix(f"{path}:") for sentence in result.lost]


def test_what_a_file_leaves_out_has_trls_default(tmp_path: Path) -> None:
    recipe, text, lost = converted(tmp_path, "")
    args = pair_arguments(recipe)
    for name in DEFAULTS.keys() & set(vars(args)) - {"bf16", "loss_type", "max_steps", "save_total_limit", "report_to"}:
        assert getattr(args, name) == DEFAULTS[name], name
    assert (args.loss, recipe.model.lora, recipe.model.dtype) == ("dpo", None, "float32")
    assert recipe.data.train == "org/rows" and recipe.data.eval is None and lost == []
    assert "seed: 42  # TRL's default for seed" in text and "lora: null  # TRL trains all weights" in text


def test_settings_become_keys(tmp_path: Path) -> None:
    recipe, text, lost = converted(
        tmp_path,
        "use_peft: true\nlora_r: 32\nlora_alpha: 16\nlora_target_modules: [q_proj, v_proj]\nlora_dropout: 0.1\n"
        "learning_rate: 5e-7\nmax_steps: 100\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 8\n"
        "loss_type: [sigmoid]\nbeta: '0.05'\nmax_length: 512\nwarmup_ratio: 0.1\nlr_scheduler_type: cosine\n"
        "optim: adamw_torch\neval_strategy: steps\neval_steps: 25\nsave_strategy: 'no'\nreport_to: [wandb]\n"
        "precompute_ref_log_probs: true\ndtype: bfloat16\noutput_dir: runs/mine\nseed: 3\n"
        "remove_unused_columns: false\n"
        "attn_implementation: sdpa\ndataset_num_proc: 8\ntruncation_mode: keep_start\nhub_model_id: null\n",
    )
    assert lost == []
    values = flatten(recipe)
    expected = {
        "run_dir": "runs/mine", "seed": 3, "model.name": "org/model", "model.dtype": "bfloat16", "model.lora.rank": 32,
        "model.lora.alpha": 16, "model.lora.targets": ["q_proj", "v_proj"], "model.lora.dropout": 0.1,
        "data.eval": "org/rows", "data.eval_split": "test", "data.max_length": 512, "loss.name": "dpo",
        "loss.beta": 0.05, "training.learning_rate": 5e-7, "training.max_steps": 100, "training.batch_size": 16,
        "training.micro_batch_size": 2, "training.warmup_steps": 0.1, "training.scheduler": "cosine",
        "training.optimizer": "adamw_torch", "training.eval_steps": 25, "training.save_steps": None,
        "training.report_to": ["wandb"], "training.reference": "cache", "training.log_names": "both",
    }  # fmt: skip
    assert {key: values[key] for key in expected} == expected
    assert "batch_size: 16  # 2 × 8 of one process" in text


def test_what_no_key_takes_over_is_named_with_place_and_remedy(tmp_path: Path) -> None:
    recipe, text, lost = converted(
        tmp_path,
        "use_dora: true\nload_in_4bit: true\nuse_weighting: true\npush_to_hub: true\nuse_weigthing: false\n"
        "lr_scheduler_type: cosine_with_restarts\nlabel_smoothing: 0.1\nlora_r: 8\nneftune_noise_alpha: 5\n"
        "model_revision: v2\neval_strategy: epoch\nsave_strategy: epoch\nreport_to: all\npad_token: <pad>\n",
    )
    assert [sentence.split(": ")[0] for sentence in lost] == [
        str(n) for n in (3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16)
    ]
    for sentence, parts in zip(
        lost,
        (
            ("use_dora: true", "LoraConfig"), ("load_in_4bit: true", "needs use_peft"),
            ("use_weighting", "another loss"),
            ("push_to_hub", "`tdpo push RUN OWNER/NAME`"), ("did you mean use_weighting?",),
            ("cosine_with_restarts has no counterpart", "linear"), ("label_smoothing: 0.1 has no effect in TRL",),
            ("lora_r", "without use_peft: true"), ("would put noise",), ("model_revision", "name a folder"),
            ("save_strategy: epoch", "counts updates"), ("report_to: all", "tensorboard"), ("pad_token", "Python"),
        ),
        strict=True,
    ):  # fmt: skip
        assert all(part in sentence for part in parts), sentence
        assert f"# - {tmp_path / 'dpo.yaml'}:{sentence}\n" in text, "the recipe says it too"
    assert recipe.data.eval == "org/rows" and recipe.training.eval_steps is None


def another(option: Any) -> Any:
    """A value that is not the field's default, of its kind."""
    default = option.default_factory() if option.default is dataclasses.MISSING else option.default
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1
    return {**default, "a": 1} if isinstance(default, dict) else ["b"] if isinstance(default, list) else "c"


def test_every_setting_of_the_installed_trl_is_a_key_or_is_named(tmp_path: Path) -> None:
    """All that no key takes over, in one file: a sentence for each, but for those that change nothing."""
    from trl import DPOConfig, ModelConfig, ScriptArguments
    from trl.scripts.utils import DatasetMixtureConfig

    options = {o.name: o for kind in (DPOConfig, ModelConfig, ScriptArguments, DatasetMixtureConfig)
               for o in dataclasses.fields(kind) if o.init}  # fmt: skip
    taken = {*DEFAULTS, *BESIDES, "precompute_ref_log_probs", "remove_unused_columns", "dataset_num_proc"}
    taken.add("logging_nan_inf_filter")  # False, the value that is not TRL's default, is what happens here in any case
    settings = {name: another(option) for name, option in options.items() if name not in taken}
    assert len(settings) > 100
    _, _, lost = converted(tmp_path, write_yaml(settings))
    named = {sentence.split(": ")[1] for sentence in lost}
    assert set(settings) - named == set()


def test_a_token_is_repeated_nowhere(tmp_path: Path) -> None:
    _, text, lost = converted(tmp_path, "hub_token: hf_secret\nhub_model_id: me/mine\n")
    assert "hf_secret" not in text + "".join(lost) and "HF_TOKEN" in lost[0] and "tdpo push" in lost[1]


def test_what_would_be_another_run_is_said(tmp_path: Path) -> None:
    recipe, _, lost = converted(tmp_path, "max_length: null\ndtype: bfloat16\nfp16: true\nnum_processes: 4\n")
    assert recipe.data.max_length == 1024 and recipe.model.dtype == "bfloat16"
    assert ["max_length: null has no key" in lost[0], "loaded in bfloat16" in lost[1]] == [True, True]
    assert "accelerate launch --config_file" in lost[2] and len(lost) == 3


def test_kernels_and_compiling_are_keys(tmp_path: Path) -> None:
    recipe, text, lost = converted(tmp_path, "use_liger_kernel: true\ntorch_compile: true\n")
    assert (recipe.training.liger, recipe.training.compile, lost) == (True, True, [])
    recipe, text, lost = converted(tmp_path, "use_liger_kernel: false\ntorch_compile_mode: max-autotune\n")
    assert not recipe.training.liger and "compile: true  # torch_compile_mode switches it on" in text
    assert len(lost) == 1 and lost[0].startswith("4: torch_compile_mode: max-autotune has no key in a recipe")
    _, text, _ = converted(tmp_path, "")
    assert "liger" not in text and "compile" not in text, "TRL has both off, as a recipe does"


def test_sets_of_rows_and_loading(tmp_path: Path) -> None:
    (tmp_path / "dpo.yaml").write_text("model_name_or_path: m\ndatasets:\n- {path: rows, split: s, columns: [a]}\n")
    made = recipe_from_trl(tmp_path / "dpo.yaml")
    assert (made.values["data.train"], made.values["data.split"]) == ("rows", "s")
    assert "datasets: columns: [a] has no key" in made.lost[0]
    recipe, text, lost = converted(
        tmp_path, "model_init_kwargs: {torch_dtype: float16, trust_remote_code: true, revision: v2}\n"
    )
    assert recipe.model.dtype == "float16" and recipe.model.trust_remote_code
    assert len(lost) == 1 and lost[0].startswith("3: model_init_kwargs: revision='v2' cannot be passed on")
    recipe, text, _ = converted(tmp_path, "test_split_size: 0.1\n")
    assert recipe.data.eval_fraction == 0.1 and "here prompts are drawn" in text


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("beta: 0.1\n", ["model_name_or_path: is missing", "dataset_name: is missing"]),
        (LEAST + "loss_type: ipo\n", [":3: loss_type: 'ipo' divides each log-ratio", "write loss='ipo'"]),
        (LEAST + "datasets: [{path: a}, {path: b}]\n", [":3: datasets: mixes several sets: write their rows into one"]),
        (LEAST + "beta: -1\n", ["loss.beta: expected a number > 0"]),
        (LEAST + "beta: [\n", ["is not valid YAML"]),
        ("- 1\n", ["expected sections"]),
        ("run_dir: runs/x\ndata: {train: a}\n", ["run_dir: is a key of tdpo's: this is a recipe already"]),
    ],
)
def test_files_that_become_no_recipe(text: str, messages: list[str], tmp_path: Path) -> None:
    (tmp_path / "dpo.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        recipe_from_trl(tmp_path / "dpo.yaml")
    assert [message for message in messages if message.lower() not in str(error.value).lower()] == []


def test_the_command_prints_the_recipe_and_says_what_is_lost(call: Call, tmp_path: Path) -> None:
    (tmp_path / "dpo.yaml").write_text(LEAST + "use_dora: true\n")
    done = call("recipe", "--from-trl", "dpo.yaml")
    assert done.exit_code == 0
    assert done.stdout.startswith("# Made from dpo.yaml by `tdpo recipe --from-trl`")
    assert "1 setting is not taken over" in done.stderr and "dpo.yaml:3: use_dora: true" in done.stderr
    (tmp_path / "recipe.yaml").write_text(done.stdout)
    assert load_recipe("recipe.yaml").loss.name == "dpo"  # type: ignore[union-attr]
    missing = call("recipe", "--from-trl", "none.yaml")
    assert missing.exit_code == 2 and "none.yaml: does not exist" in missing.output
    both: Any = call("recipe", "loss", "--markdown")
    assert both.exit_code == 2 and "--markdown and a key exclude one another" in both.output


def test_four_and_eight_bits_are_taken_over(tmp_path: Path) -> None:
    recipe, text, lost = converted(tmp_path, "use_peft: true\nload_in_4bit: true\nbnb_4bit_quant_type: fp4\n")
    assert recipe.model.quantization is not None and not lost
    assert recipe.model.quantization.model_dump() == {"bits": 4, "type": "fp4", "nested": False}
    assert recipe.training.precision == "auto" and "dtype: float32  # products too" in text
    assert "nested: false  # TRL's default for use_bnb_nested_quant" in text
    recipe, text, lost = converted(tmp_path, "use_peft: true\nload_in_8bit: true\n")
    assert recipe.model.quantization is not None and recipe.model.quantization.bits == 8 and not lost
    assert "without the decomposition of outliers" in text
