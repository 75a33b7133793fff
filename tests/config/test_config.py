"""Recipes: what is read as what, what is refused and with which words, and that nothing is lost on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdpo.config import (
    PPORecipe,
    Recipe,
    RecipeError,
    Section,
    documented_keys,
    dump_recipe,
    flatten,
    load_recipe,
    load_study,
    recipe_markdown,
)
from tdpo.config._explain import ALIASES, SCHEMAS, fields, nearest_key
from tdpo.config._yaml import read_yaml, write_yaml
from tdpo.config.schema import Training

ROOT = Path(__file__).parents[2]
MINIMAL = {"run_dir": "runs/x", "data": {"train": "pairs.jsonl"}}


def recipe(*overrides: str) -> Recipe:
    loaded = load_recipe(MINIMAL, overrides)
    assert isinstance(loaded, Recipe)
    return loaded


def problems(*overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipe(*overrides)
    return [f"{problem.key}: {problem.reason}" for problem in caught.value.problems]


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# Defaults that depend on other keys


def test_defaults_are_resolved() -> None:
    resolved = recipe()
    assert (resolved.loss.name, resolved.loss.alpha, resolved.training.epochs) == ("tdpo2", 0.5, 1.0)
    assert (resolved.training.learning_rate, resolved.training.save_total_limit) == (1e-4, 2)
    assert resolved.data.split is None and resolved.data.eval_split is None


def test_full_fine_tuning_gets_the_papers_learning_rate() -> None:
    assert recipe("model.lora=null").training.learning_rate == 5e-6


@pytest.mark.parametrize("name", ["dpo", "tdpo1", "ipo"])
def test_alpha_is_none_where_the_loss_has_none(name: str) -> None:
    assert recipe(f"loss.name={name}").loss.alpha is None


def test_simpo_has_its_own_strengths() -> None:
    """β is of means over tokens, and γ follows it; of other losses γ is none."""
    resolved = [recipe(*values).loss for values in (
        ("loss.name=simpo",), ("loss.name=simpo", "loss.beta=10"), ("loss={name: simpo, gamma: 0}",), ()
    )]  # fmt: skip
    assert [(loss.beta, loss.gamma) for loss in resolved] == [(2.0, 1.0), (10.0, 5.0), (2.0, 0.0), (0.1, None)]


def test_max_steps_replaces_epochs() -> None:
    training = recipe("training.max_steps=7").training
    assert (training.max_steps, training.epochs) == (7, None)


def test_splits_are_named_where_a_source_has_several() -> None:
    data = recipe("data.train=owner/name", "data.eval=owner/name").data
    assert (data.split, data.eval_split) == ("train", "test")


# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4), ("1e-3", 1e-3), ("1E3", 1000.0), ("+.5", 0.5), ("1_000", 1000), ("010", 10), ("-3", -3),
        ("yes", "yes"), ("on", "on"), ("no", "no"), ("true", True), ("False", False), ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"), ("'5e-4'", "5e-4"), ("~", None), ("null", None), (".inf", math.inf),
        ("-.INF", -math.inf), ("0x10", "0x10"), ("1e", "1e"), (".", "."), ("e5", "e5"),
    ],
)  # fmt: skip
def test_scalars_mean_what_people_mean(text: str, value: Any) -> None:
    found = read_yaml(text)[0]
    assert found == value and type(found) is type(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="ascii")),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc.-e1", min_size=1), inner, max_size=3),
        max_leaves=8,
    )
)
def test_written_yaml_reads_back(value: Any) -> None:
    found = read_yaml(write_yaml({"key": value}))[0]["key"]
    assert found == value and repr(found) == repr(value)


@pytest.mark.parametrize("text", ["5e-4", "1e3", "yes", "null", "010", "1:30", "~", "", "a: b", "#x"])
def test_text_that_looks_like_something_else_survives(text: str) -> None:
    assert read_yaml(write_yaml([text]))[0] == [text]


def test_overrides_are_yaml_and_win(written: Callable[[str], Path]) -> None:
    path = written("run_dir: a\ndata: {train: p.jsonl}\ntraining: {learning_rate: 1e-5}\n")
    found = load_recipe(path, ["training.learning_rate=5e-4", "model.lora.targets=[q_proj, v_proj]", "run_dir=b"])
    assert found.training.learning_rate == 5e-4
    assert found.model.lora is not None and found.model.lora.targets == ["q_proj", "v_proj"]
    assert found.run_dir == "b"


def test_an_override_inside_a_null_section_opens_it(written: Callable[[str], Path]) -> None:
    path = written("run_dir: a\ndata: {train: p.jsonl}\nmodel: {lora: null}\n")
    lora = load_recipe(path, ["model.lora.rank=4"]).model.lora
    assert lora is not None and (lora.rank, lora.alpha) == (4, 32.0)


def test_loading_leaves_a_mapping_alone() -> None:
    given_mapping = {"run_dir": "x", "data": {"train": "p.jsonl"}}
    load_recipe(given_mapping, ["data.train=q.jsonl"])
    assert given_mapping == {"run_dir": "x", "data": {"train": "p.jsonl"}}


# Refusals

WRONG = [
    ("loss.beta=0", "loss.beta: expected a number > 0, or null, got 0"),
    ("loss.beta=true", "loss.beta: expected a number > 0, or null, got true"),
    ("loss.beta=.inf", "loss.beta: expected a number > 0, or null, got inf"),
    ("loss.beta=.nan", "loss.beta: expected a number > 0, or null, got nan"),
    ("loss.beta='0.1'", "loss.beta: expected a number > 0, or null, got the text '0.1'"),
    ("loss.alpha=-1", "loss.alpha: expected a number ≥ 0, or null, got -1"),
    ("loss={name: simpo, gamma: -1}", "loss.gamma: expected a number ≥ 0, or null, got -1"),
    ("loss.label_smoothing=0.5", "loss.label_smoothing: expected a number ≥ 0 and < 0.5, got 0.5"),
    ("loss.name=tpdo2", "loss.name: expected one of tdpo2, tdpo1, dpo, ipo, f_dpo_forward, f_dpo_js, simpo, sft, "
                        "kl, got the text 'tpdo2'; did you mean tdpo2?"),
    ("loss=tdpo1", "loss: expected a section with the keys name, beta, alpha, gamma, label_smoothing, "
                   "kl, got the text 'tdpo1'; did you mean loss.name: tdpo1?"),
    ("loss.kl=reverse", "loss.kl: expected a section with the keys direction, on, coefficient, weight, target, "
                        "target_direction, "
                        "or null, got the text 'reverse'; did you mean loss.kl.direction: reverse?"),
    ("loss.kl.direction=backward", "loss.kl.direction: expected one of forward, reverse, js, got the text "
                                   "'backward'"),
    ("loss.kl.weight=0.3", "loss.kl.weight: has no effect with direction forward; remove it (or null), or choose js"),
    ("loss.kl={direction: js, weight: 1.0}", "loss.kl.weight: expected a number > 0 and < 1, or null, got 1.0"),
    ("loss.name=kl", "model.reference: is null, but loss.name kl learns from a teacher"),
    ("loss.kl.on=loser", "loss.kl.on: expected one of chosen, rejected, both, got the text 'loser'"),
    ("loss.kl.coefficient=0", "loss.kl.coefficient: expected a number > 0, or null, got 0"),
    ("loss={name: kl, kl: {target: 3.0}}", "loss.kl.target: has no effect where the KL is the whole loss"),
    ("loss.kl.target=0", "loss.kl.target: expected a number > 0, or null, got 0"),
    ("loss.kl.coef=1", "loss.kl.coef: unknown key; did you mean loss.kl.coefficient?"),
    ("loss.kl_coefficient=1", "loss.kl_coefficient: unknown key; did you mean loss.kl.coefficient?"),
    ("kl.direction=reverse", "kl: belongs to a PPO recipe: add a section ppo (`ppo: {}` is enough), or see loss.kl"),
    ("seed=1.0", "seed: expected a whole number ≥ 0 and < 4294967296, got 1.0"),
    ("seed=-1", "seed: expected a whole number ≥ 0 and < 4294967296, got -1"),
    ("training.batch_size=0", "training.batch_size: expected a whole number ≥ 1, got 0"),
    ("training.batch_size=2.5", "training.batch_size: expected a whole number ≥ 1, got 2.5"),
    ("training.batch_size=true", "training.batch_size: expected a whole number ≥ 1, got true"),
    ("training.gradient_checkpointing=yes", "gradient_checkpointing: expected true or false, got the text 'yes'"),
    ("training.gradient_checkpointing=1", "training.gradient_checkpointing: expected true or false, got 1"),
    ("training.prefix_sharing=yes", "training.prefix_sharing: expected one of auto, on, off, got the text 'yes'"),
    ("training.max_tokens_per_row=1", "training.max_tokens_per_row: expected a whole number ≥ 2, or null, got 1"),
    ("training.max_tokens_per_row=64.0", "training.max_tokens_per_row: expected a whole number ≥ 2, or null, got 64.0"),
    ("training.group_by_length=1", "training.group_by_length: expected true or false, got 1"),
    ("model.dtype=bf16", "model.dtype: expected one of auto, float32, bfloat16, float16, got the text 'bf16'; "
                         "did you mean bfloat16?"),
    ("model.name=", "has no value"),
    ("model.lora.dropout=1", "model.lora.dropout: expected a number ≥ 0 and < 1, got 1"),
    ("model.lora.targets=[1]", "model.lora.targets: expected text, or a list [..] of text, got [1]"),
    ("training.report_to=[wandb, wand]", "got ['wandb', 'wand'] (entry 2: the text 'wand')"),
    ("model.lora=false", "model.lora: expected a section with the keys rank, alpha, dropout, targets, or null"),
    ("data.train=7", "data.train: expected text, got 7"),
    ("data.on_bad_rows=ignore", "data.on_bad_rows: expected one of error, skip, got the text 'ignore'"),
    ("training.report_to=wandb", "training.report_to: expected a list [..] of tensorboard, trackio, wandb, mlflow, "
                                 "comet_ml, clearml, swanlab, got the text 'wandb'; a list of one is written [wandb]"),
    ("evaluation.temperature=-0.1", "evaluation.temperature: expected a number ≥ 0, got -0.1"),
    ("sampling.top_p=0", "sampling.top_p: expected a number > 0 and ≤ 1, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), WRONG)
def test_wrong_types_and_ranges_say_what_came_and_what_was_expected(override: str, message: str) -> None:
    (found,) = problems(override)
    assert message in found


WITHOUT_EFFECT = [
    (("loss.name=dpo", "loss.alpha=0.5"), "loss.alpha: has no effect with loss.name dpo"),
    (("loss.name=sft", "loss.beta=0.1"), "loss.beta: has no effect with loss.name sft"),
    (("loss.name=sft", "loss.label_smoothing=0.1"), "loss.label_smoothing: has no effect with loss.name sft"),
    (("loss.name=ipo", "loss.label_smoothing=0.1"), "loss.label_smoothing: has no effect with loss.name ipo"),
    (("loss.name=simpo", "loss.label_smoothing=0.1"), "loss.label_smoothing: has no effect with loss.name simpo"),
    (("loss.name=simpo", "loss.alpha=0.5"), "loss.alpha: has no effect with loss.name simpo"),
    (("loss.name=simpo", "loss.simpo_gamma=0.5"), "loss.simpo_gamma: unknown key; did you mean loss.gamma?"),
    (("loss.name=dpo", "loss.gamma=0.5"),
     "loss.gamma: has no effect with loss.name dpo; remove it (or null), or choose simpo"),
    (("loss.name=ipo", "loss.alpha=0.5"), "loss.alpha: has no effect with loss.name ipo"),
    (("loss.beta_target=2",), "loss.beta_target: there is no such key: β cannot hold a KL (docs/the_two_kls.md)"),
    (("model.quantization.bits=8", "training.reference=cache"),
     "training.reference: eight-bit layers round activations, so what the reference says of a token changes with"),
    (("loss.name=ipo", "loss.tau=0.1"), "loss.tau: unknown key; did you mean loss.beta?"),
    (("loss.name=tdpo1", "loss.alpha=0.5"), "loss.alpha: has no effect with loss.name tdpo1"),
    (("training.micro_batch_size=6",), "6 does not divide training.batch_size 16; the nearest below is 4"),
    (("training.micro_batch_size=32",), "the nearest below is 16"),
    (("training.max_tokens_per_row=64", "training.prefix_sharing=off"),
     "training.max_tokens_per_row: has no effect with training.prefix_sharing off"),
    (("training.max_tokens_per_row=64", "training.batch_size=1"),
     "training.max_tokens_per_row: has no effect with training.batch_size 1"),
    (("training.max_tokens_per_row=64", "training.micro_batch_size=1"),
     "training.max_tokens_per_row: has no effect with training.micro_batch_size 1"),
    (("training.epochs=1", "training.max_steps=5"), "training.max_steps: is given together with training.epochs"),
    (("training.scheduler=constant", "training.warmup_steps=5"), "training.warmup_steps: has no effect"),
    (("training.warmup_steps=2.5",), "training.warmup_steps: is 2.5"),
    (("training.save_steps=null", "training.save_total_limit=3"), "training.save_total_limit: has no effect"),
    (("training.eval_steps=5",), "training.eval_steps: has no effect without held-out rows"),
    (("data.eval=e.jsonl", "data.eval_fraction=0.1"), "data.eval_fraction: has no effect beside data.eval"),
    (("data.eval_split=test",), "data.eval_split: has no effect without data.eval"),
    (("data.split=train",), "data.split: has no effect: data.train is a file"),
    (("data.eval=e.jsonl.gz", "data.eval_split=test"), "data.eval_split: has no effect: data.eval is a file"),
    (("sampling.pairs_per_prompt=3",), "sampling.pairs_per_prompt: 3 needs 6 samples a prompt"),
    (("evaluation.temperature=0",), "evaluation.temperature: 0 gives every sample of a prompt the same text"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), WITHOUT_EFFECT)
def test_options_without_effect_are_refused(overrides: tuple[str, ...], message: str) -> None:
    (found,) = problems(*overrides)
    assert message in found


UNKNOWN = [
    ("loss.bta=1", "loss.beta"),
    ("training.learing_rate=1", "training.learning_rate"),
    ("beta=1", "loss.beta"),
    ("training.beta=1", "loss.beta"),
    ("lr=1", "training.learning_rate"),
    ("training.num_train_epochs=1", "training.epochs"),
    ("model.lora.r=8", "model.lora.rank"),
    ("output_dir=x", "run_dir"),
    ("modle.name=x", "model"),
    ("loss.Beta=1", "loss.beta"),
    ("evaluation.batchsize=3", "evaluation.batch_size"),
]


@pytest.mark.parametrize(("override", "meant"), UNKNOWN)
def test_unknown_keys_name_the_nearest_right_one(override: str, meant: str) -> None:
    assert any(f"unknown key; did you mean {meant}?" in problem for problem in problems(override))


@pytest.mark.parametrize(
    ("overrides", "resolved"),
    [
        ([], None),
        (["loss.kl={}"], ("forward", "both", 0.1, None)),
        (["loss.kl.direction=js"], ("js", "both", 0.1, 0.5)),
        (["loss.name=kl", "loss.alpha=null", "model.reference=big"], ("forward", "both", 1.0, None)),
        (["loss.name=kl", "loss.alpha=null", "model.reference=big", "loss.kl={on: chosen, direction: reverse}"],
         ("reverse", "chosen", 1.0, None)),
    ],
)  # fmt: skip
def test_the_kl_beside_a_loss_is_resolved(overrides: list[str], resolved: Any) -> None:
    recipe = load_recipe(MINIMAL, overrides)
    kl = recipe.loss.kl  # type: ignore[union-attr]
    assert (None if kl is None else (kl.direction, kl.on, kl.coefficient, kl.weight)) == resolved
    assert load_recipe(read_yaml(dump_recipe(recipe))[0]) == recipe


def test_an_unknown_key_near_nothing_lists_what_is_known_there() -> None:
    known = "name, beta, alpha, gamma, label_smoothing, kl"
    assert problems("loss.zzz=1") == [f"loss.zzz: unknown key; known here: {known}"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.beta", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("loss.beta=", "has no value; write null"),
        ("loss.beta={", "not valid YAML"),
        ("seed.x=1", "seed is a value, not a section, so it has no key 'x'"),
    ],
)
def test_overrides_that_cannot_be_read(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe({**MINIMAL, "seed": 1}, [override])
    assert message in str(caught.value) and repr(override) in str(caught.value)


def test_one_key_overridden_twice_is_refused() -> None:
    assert "overridden twice" in problems("seed=1", "seed=2")[0]


def test_all_problems_come_together_with_file_and_line(written: Callable[[str], Path]) -> None:
    path = written(
        "run_dir: runs/x\ndata:\n  evel: x\nloss:\n  name: dpo\n  alpha: 0.5\n  beta: -1\ntraining:\n  bach_size: 3\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["seed=yes"])
    assert [(problem.key, problem.where) for problem in caught.value.problems] == [
        ("seed", "override 'seed=yes'"),
        ("data.train", f"{path}:2"),
        ("data.evel", f"{path}:3"),
        ("loss.alpha", f"{path}:6"),
        ("loss.beta", f"{path}:7"),
        ("training.bach_size", f"{path}:9"),
    ]
    lines = str(caught.value).splitlines()
    assert lines[0] == "the recipe has 6 problems:" and len(lines) == 7


def test_missing_keys_say_what_they_are() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe({})
    text = str(caught.value)
    assert "run_dir: is missing; expected text: Folder that the run is written to" in text
    assert "data: is missing; expected a section with the keys train, split" in text and "Preference rows" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run_dir: is missing"),
        ("- a\n", "expected sections such as `loss:` with keys, got ['a']"),
        ("just text", "expected sections"),
        ("run_dir: [", ":1: is not valid YAML"),
        ("run_dir: a\n\tdata: 3\n", ":2: is not valid YAML"),
        (
            "run_dir: a\nloss:\n  beta: 1\n  beta: 2\n",
            ":4: is not valid YAML: loss.beta is given twice, first in line 3",
        ),
        ("run_dir: !!python/object:os.system x\n", "is not valid YAML: could not determine a constructor"),
        ("loss: &a {name: *a}\n", "a value contains itself"),
        ("1: x\n", "1: unknown key"),
        ("a: 1\n---\nb: 2\n", "is not valid YAML"),
    ],
)
def test_broken_files_are_named(written: Callable[[str], Path], text: str, message: str) -> None:
    path = written(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_a_file_that_is_not_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"run_dir: \xff\xfe")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        load_recipe(tmp_path / "a.yaml")
    with pytest.raises(RecipeError, match="does not exist; YAML files in that folder: a"):
        load_recipe(tmp_path / "b.yaml")
    with pytest.raises(RecipeError, match="tdpo recipe --example"):
        load_recipe(tmp_path / "none" / "b.yaml")


# Round trip


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("loss.name=dpo", "model.lora=null", "training.max_steps=3"),
        ("model.lora.targets=[a, '5e-4']", "training.report_to=[wandb]", "training.save_steps=null"),
        ("data.train=owner/name", "data.eval=other", "data.eval_split=dev", "training.eval_steps=2", "run_dir='1e3'"),
        ("training.learning_rate=1e-9", "environment.name=sentiment", "evaluation.temperature=0.7"),
    ],
)
def test_the_resolved_recipe_loads_to_itself(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    resolved = recipe(*overrides)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(resolved), encoding="utf-8")
    assert load_recipe(tmp_path) == resolved


def test_flatten_names_every_value() -> None:
    flat = flatten(recipe("model.lora=null"))
    assert flat["loss.beta"] == 0.1 and flat["model.lora"] is None and "model.lora.rank" not in flat


# Recipes and reference that come with the package


SHIPPED = ROOT / "src/tdpo/cli/recipes"


def test_the_recipes_of_the_repository_are_those_of_the_package() -> None:
    """One file each: `recipes` is a link, because two copies would have to be kept equal."""
    assert (ROOT / "recipes").is_symlink() and (ROOT / "recipes").resolve() == SHIPPED
    assert {path.stem for path in SHIPPED.iterdir()} == {
        "sentiment_tdpo2", "sentiment_dpo", "preferences", "ppo_sentiment", "rloo_sentiment", "online_sentiment",
        "study_quick", "study", "study_two_cores", "study_gpu",
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path) -> None:
    (load_study if path.stem.startswith("study") else load_recipe)(path)


def test_the_two_sentiment_recipes_differ_in_the_loss_alone() -> None:
    one, other = (flatten(load_recipe(ROOT / f"recipes/sentiment_{n}.yaml")) for n in ("tdpo2", "dpo"))
    assert {key for key in one if one[key] != other[key]} == {"run_dir", "loss.name", "loss.alpha"}


def test_the_reference_is_up_to_date_and_complete() -> None:
    text = (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
    assert text == recipe_markdown(), "run: tdpo recipe --markdown > docs/recipe.md"
    for row in [*documented_keys(), *documented_keys(PPORecipe)]:
        assert row.meaning and row.expected, row.key
        assert (f"## {row.key}" if row.is_section else f"`{row.key}`") in text


@pytest.mark.parametrize("schema", SCHEMAS)
def test_aliases_lead_to_keys(schema: type[Section]) -> None:
    known, aliases = {key for key, _ in fields(schema)}, ALIASES[schema]
    assert set(aliases.values()) <= known
    assert not known & set(aliases), "a key of our own needs no alias"
    assert all(nearest_key(alias, schema) == key for alias, key in aliases.items())
    assert not {key.rpartition(".")[2] for key in known} & set(aliases), "nor does a key named the same elsewhere"


def test_transformers_knows_the_names_we_pass_on() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    def choices(field: str) -> set[str]:
        annotation = Training.model_fields[field].annotation
        inner = get_args(annotation)
        return set(get_args(inner[0]) or inner)

    assert choices("optimizer") <= {name.value for name in OptimizerNames}
    assert choices("scheduler") <= {name.value for name in SchedulerType}
    assert choices("report_to") <= set(INTEGRATION_TO_CALLBACK)


def test_defaults_agree_with_the_classes_that_take_them() -> None:
    from tdpo.models import LoraSettings

    lora = recipe().model.lora
    assert lora is not None and LoraSettings(**lora.model_dump()) == LoraSettings()


# The environment: a built-in one, or one of one's own

OWN = ("environment.prompts=p.jsonl", "environment.reward=mine.py:brevity", "environment.max_new_tokens=8")


def test_an_environment_of_ones_own() -> None:
    chosen = recipe(*OWN).environment
    assert chosen is not None and chosen.reward_name == "brevity" and chosen.label == "p" and not chosen.holds_out
    named = recipe(*OWN, "environment.held_out=h.jsonl", "environment.reward_name=short", "environment.threshold=-3")
    assert named.environment is not None and named.environment.holds_out
    assert (named.environment.reward_name, named.environment.threshold) == ("short", -3)
    assert load_recipe(read_yaml(dump_recipe(named))[0]) == named


def test_a_built_in_environment_resolves_to_its_name_alone() -> None:
    chosen = recipe("environment.name=sentiment").environment
    assert chosen is not None and chosen.label == "sentiment" and chosen.holds_out
    assert {key for key, value in chosen if value is not None} == {"name"}


def test_an_environment_may_be_cut_to_its_first_prompts() -> None:
    whole, cut = (
        recipe("environment.name=sentiment", *more).environment for more in ((), ("environment.max_prompts=5",))
    )
    assert whole is not None and cut is not None
    all_of_it, first = whole.load(), cut.load()
    assert (first.train, first.held_out) == (all_of_it.train[:5], all_of_it.held_out[:5])
    assert len(all_of_it.train) == 128 and first.reward is all_of_it.reward
    fewer = recipe("environment.name=sentiment", "environment.max_prompts=5", "environment.max_held_out=3").environment
    more = recipe("environment.name=sentiment", "environment.max_prompts=5", "environment.max_held_out=9").environment
    assert fewer is not None and more is not None
    assert (fewer.load().train, fewer.load().held_out) == (first.train, first.held_out[:3])
    assert more.load().held_out == first.held_out
    assert problems("environment.max_prompts=5") == ["environment: names none; set environment.name (sentiment, for "
                                                     "instance), or prompts, reward and max_new_tokens"]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("environment={}",), ["environment: names none; set environment.name (sentiment, for instance), or prompts"]),
        (("environment={name: null, threshold: null}",), ["environment: names none"]),
        (OWN[1:], ["environment.prompts: is missing: a reward judges responses to prompts; name their file"]),
        ((OWN[0], OWN[2]), ["environment.reward: is missing: prompts come without a reward; name a function"]),
        (OWN[:2], ["environment.max_new_tokens: is missing: prompts of your own name no length; set the longest"]),
        (("environment.threshold=1",), ["environment.prompts: is missing", "environment.reward: is missing",
                                        "environment.max_new_tokens: is missing"]),
        (("environment.name=sentiment", "environment.threshold=1"),
         ["environment.threshold: has no effect beside environment.name sentiment, which has its own; remove one"]),
        (("environment.name=sentiment", *OWN),
         ["environment.max_new_tokens: has no", "environment.prompts: has no", "environment.reward: has no effect"]),
        (("environment.name=sentiment", "environment.reward_name=x"), ["environment.reward_name: has no effect"]),
        ((*OWN, "environment.max_held_out=3"), ["environment.max_held_out: has no effect: environment.held_out names"]),
        ((*OWN, "environment.eval=h.jsonl"), ["environment.eval: unknown key; did you mean environment.held_out?"]),
        ((*OWN, "environment.train=h.jsonl"), ["environment.train: unknown key; did you mean environment.prompts?"]),
        ((*OWN[:2], "environment.max_new_tokens=0"), ["environment.max_new_tokens: expected a whole number ≥ 1"]),
    ],
)  # fmt: skip
def test_an_environment_is_named_in_exactly_one_way(overrides: tuple[str, ...], expected: list[str]) -> None:
    found = sorted(problems(*overrides))
    assert len(found) == len(expected), found
    for text, beginning in zip(found, sorted(expected), strict=True):
        assert text.startswith(beginning), text
