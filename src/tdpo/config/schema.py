"""The recipe: everything one run depends on, as typed sections.

The text under each field is its documentation; `docs/recipe.md`, `tdpo recipe` and the error messages are made
from it. A field whose default depends on another one is null in the file and holds the value in the resolved
recipe, so a run directory always shows what was really used.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from ._sections import NonNegativeFloat, PositiveFloat, PositiveInt, Section, Seed, Text, key_problems, why_no_divisor
from .environment_schema import EnvironmentChoice
from .loss_schema import Loss
from .model_schema import EIGHT_BITS_IN_NO_CACHE, Model
from .optimization import Optimizing, Recording, why_no_precision
from .sampling_engine import SamplingEngine, why_not_handed_over
from .training_defaults import EPOCHS, PAIRS, PAIRS_PER_UPDATE, learning_rate, trains_adapter

BadRows = Literal["error", "skip"]
RepeatedRows = Literal["refuse", "keep"]
TurnsToCount = Literal["assistant", "all"]
ReferenceSource = Literal["auto", "cache", "model"]
PrefixSharing = Literal["auto", "on", "off"]
LogNames = Literal["tdpo", "both"]

# Readers that are files hold one split; only saved dataset folders and hub names can have several.
FILE_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".gz", ".ndjson")


class Data(Section):
    """Preference rows: a prompt, a chosen and a rejected response."""

    train: Text
    """File (JSONL, JSON, Parquet, CSV), saved dataset folder, or hub name with the rows to train on."""
    split: Text | None = None
    """Split to read where `data.train` has several (a dataset folder or a hub name); null is train."""
    eval: Text | None = None
    """Where the held-out rows are, in the same formats; null holds none."""
    eval_split: Text | None = None
    """Split to read where `data.eval` has several; null is test."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the training prompts held out, with all their rows, instead of `data.eval`; drawn with `seed`."""
    max_length: Annotated[int, Field(ge=2)] = 1024
    """Longest prompt plus response, in tokens; longer rows are cut, counted and reported."""
    on_bad_rows: BadRows = "error"
    """What a row that fails validation, or that the chat template refuses, does: stop before any work, or be left out
    and counted."""
    repeated_rows: RepeatedRows = "refuse"
    """What a row that repeats an earlier one is: broken (refuse), or one more pair to learn from (keep), as for
    oversampling. Held-out prompts are drawn with all their rows, so no row is on both sides."""
    counted_turns: TurnsToCount = "assistant"
    """Of a response of several turns: count what the assistant says, or also what users and tools say."""

    @field_validator("split")
    @classmethod
    def _resolve_split(cls, split: str | None, info: ValidationInfo) -> str | None:
        return _split_of(split, info.data.get("train"), "data.train", default="train")

    @field_validator("eval_split")
    @classmethod
    def _resolve_eval_split(cls, split: str | None, info: ValidationInfo) -> str | None:
        if split is not None and "eval" in info.data and info.data["eval"] is None:
            raise ValueError("has no effect without data.eval; set data.eval or remove it")
        return _split_of(split, info.data.get("eval"), "data.eval", default="test")

    @field_validator("eval_fraction")
    @classmethod
    def _one_kind_of_held_out_rows(cls, fraction: float | None, info: ValidationInfo) -> float | None:
        if fraction is not None and info.data.get("eval") is not None:
            raise ValueError("has no effect beside data.eval, which already holds rows out; remove one of the two")
        return fraction


def _split_of(split: str | None, source: str | None, key: str, *, default: str) -> str | None:
    if source is None:
        return split
    is_file = source.lower().endswith(FILE_SUFFIXES)
    if is_file and split is not None:
        raise ValueError(f"has no effect: {key} is a file, which holds one split; remove it")
    return split if is_file or split is not None else default


class _Batches(Section):
    """What one update learns from, and how it is computed."""

    epochs: PositiveFloat | None = None
    """Passes over the training rows; null is 1. Not together with `training.max_steps`."""
    max_steps: PositiveInt | None = None
    """Number of updates, instead of epochs."""
    batch_size: PositiveInt = PAIRS_PER_UPDATE
    """Pairs per update, over all processes."""
    micro_batch_size: PositiveInt | None = None
    """Pairs per forward, a divisor of `training.batch_size`; smaller needs less memory and gives the same update.
    Null is the whole batch at once."""
    reference: ReferenceSource = "auto"
    """Where the reference's part of a step comes from. `cache`: it runs once over the data, and what it said is kept on
    disk for every run with this model and these rows; `model`: it runs in every step; `auto`: the cheaper one."""
    reference_cache_dir: Text | None = None
    """Folder of these caches, on a disk that all nodes share; null is the user's cache folder, which `tdpo cache` lists
    and clears, and where they take at most TDPO_CACHE_LIMIT (an environment variable; 100 GB)."""
    prefix_sharing: PrefixSharing = "auto"
    """Compute a pair's prompt once for both responses: auto (where the model's results stay the same), on (or stop),
    off."""
    max_tokens_per_row: Annotated[int, Field(ge=2)] | None = None
    """Pack pairs that share their prompt into rows of up to so many tokens, which saves padding; a longer pair gets a
    row of its own. Changes speed and memory only; null is a row for each pair."""
    group_by_length: bool = False
    """Make batches of pairs of similar lengths, which saves padding; the order is then less random."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate; null is 1e-4 with adapters and 5e-6 (the paper's) when all weights are trained."""

    @field_validator("max_steps")
    @classmethod
    def _one_length(cls, max_steps: int | None, info: ValidationInfo) -> int | None:
        if max_steps is not None and info.data.get("epochs") is not None:
            raise ValueError("is given together with training.epochs; a run has one length: remove one of the two")
        return max_steps

    @field_validator("micro_batch_size")
    @classmethod
    def _divides_the_batch(cls, micro: int | None, info: ValidationInfo) -> int | None:
        reason = why_no_divisor(micro, "training.batch_size", info.data.get("batch_size"))
        if reason is not None:
            raise ValueError(reason)
        return micro

    @field_validator("reference_cache_dir")
    @classmethod
    def _folder_needs_a_cache(cls, folder: str | None, info: ValidationInfo) -> str | None:
        if folder is not None and info.data.get("reference") == "model":
            raise ValueError("has no effect with training.reference model; remove it (or null), or choose auto")
        return folder

    @field_validator("max_tokens_per_row")
    @classmethod
    def _only_shared_prompts_are_packed(cls, tokens: int | None, info: ValidationInfo) -> int | None:
        if tokens is not None and info.data.get("prefix_sharing") == "off":
            raise ValueError("has no effect with training.prefix_sharing off; remove it (or null), or choose auto")
        for key in ("batch_size", "micro_batch_size"):
            if tokens is not None and info.data.get(key) == 1:
                raise ValueError(f"has no effect with training.{key} 1: pairs of one forward share rows; remove it")
        return tokens


class _Intervals(Section):
    """How often something is written, in updates."""

    logging_steps: PositiveInt = 1
    """Updates between two lines of metrics."""
    eval_steps: PositiveInt | None = None
    """Updates between two evaluations on the held-out rows; null evaluates once, at the end."""
    save_steps: PositiveInt | None = 50
    """Updates between two checkpoints; null writes none, and an interrupted run then starts over."""


# Inherited keys come in the order of the classes from right to left: that of the file, in which checks look back.
class Training(Recording, _Intervals, Optimizing, _Batches):
    """The optimisation. One update uses `batch_size` pairs however they are split over forwards and processes."""

    SAVES_AFTER = "training.save_steps"

    log_names: LogNames = "tdpo"
    """Names in metrics.jsonl and trackers: tdpo's own, or both these and those of TRL's DPOTrainer, such as
    rewards/margins and logps/chosen, with the same values."""


class _Pairing(Section):
    """How responses are drawn and made into pairs."""

    samples_per_prompt: Annotated[int, Field(ge=2)] = 4
    """Responses drawn for each prompt."""
    pairs_per_prompt: PositiveInt = 2
    """Pairs made from them: best with worst, second best with second worst, and so on."""
    max_new_tokens: PositiveInt | None = None
    """Longest response, in tokens; null is the environment's own."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; 1 draws from the model itself."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the smallest set of tokens with this probability; 1 keeps all."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw from the k likeliest tokens; 0 keeps all."""
    batch_size: PositiveInt = 64
    """Sequences generated at once, with `sampling.engine` vllm requests under way; changes speed and memory only."""

    @field_validator("pairs_per_prompt")
    @classmethod
    def _enough_samples(cls, pairs: int, info: ValidationInfo) -> int:
        samples = info.data.get("samples_per_prompt")
        if samples is not None and 2 * pairs > samples:
            raise ValueError(
                f"{pairs} needs {2 * pairs} samples a prompt, sampling.samples_per_prompt is {samples}; "
                f"set it to at most {samples // 2} or draw more samples"
            )
        return pairs


# Inherited keys come in the order of the classes from right to left.
class Sampling(SamplingEngine, _Pairing):
    """How `tdpo pairs` draws and pairs responses; training does not read it. What says which engine draws holds for
    `tdpo evaluate` as well."""


class Evaluation(Section):
    """How `tdpo evaluate` compares the trained model with the base model; training does not read it."""

    samples_per_prompt: PositiveInt = 4
    """Responses drawn from each model for each held-out prompt."""
    kl_samples_per_prompt: PositiveInt | None = None
    """Of these, the first so many have their KLs and entropy measured, which takes most of the time; null is all."""
    max_prompts: PositiveInt | None = None
    """Held-out prompts that are answered: the first so many. Null is all of an environment's, and none without an
    environment; a number has the prompts of held-out pairs answered too, without a reward. A judge that `tdpo evaluate`
    is given judges these responses, and then null is all."""
    max_new_tokens: PositiveInt | None = None
    """Longest response, in tokens; null is the environment's own, and 64 without one."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature; 1 draws from the models themselves, 0 takes the likeliest token."""
    batch_size: PositiveInt = 64
    """Sequences generated at once, with `sampling.engine` vllm requests under way; changes speed and memory only."""
    seed: Seed = 1234
    """Seed of the generations, the same for both models."""

    @field_validator("kl_samples_per_prompt")
    @classmethod
    def _not_more_than_there_are(cls, measured: int | None, info: ValidationInfo) -> int | None:
        samples = info.data.get("samples_per_prompt")
        if measured is not None and samples is not None and measured > samples:
            raise ValueError(f"{measured} is more than evaluation.samples_per_prompt, {samples}; null measures all")
        return measured

    @field_validator("temperature")
    @classmethod
    def _greedy_has_one_sample(cls, temperature: float, info: ValidationInfo) -> float:
        if temperature == 0 and info.data.get("samples_per_prompt", 1) > 1:
            raise ValueError("0 gives every sample of a prompt the same text; set evaluation.samples_per_prompt to 1")
        return temperature


def why_no_teacher(loss: Loss, model: Model | None) -> str | None:
    """Why `model.reference` must be named beside this loss; None where it need not, or `model` is wrong itself."""
    if loss.name != "kl" or model is None or model.reference is not None:
        return None
    return (
        "is null, but loss.name kl learns from a teacher: the policy's own start has nothing to teach it; name another "
        "model with the same vocabulary"
    )


class Recipe(Section):
    """One run on preferences. Paths are relative to the folder the command is started in."""

    run_dir: Text
    """Folder that the run is written to: recipe, metrics, checkpoints, model, evaluation."""
    seed: Seed = 0
    """Seed of the order of rows, adapter initialisation, dropout and `tdpo pairs`."""
    model: Model = Model()
    data: Data
    environment: EnvironmentChoice | None = None
    """Null where there is no reward to evaluate with: held-out pairs only."""
    loss: Loss = Loss()
    training: Training = Training()
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()

    OPTIMIZATION: ClassVar[str] = "training"

    @property
    def optimization(self) -> Training:
        """The section `OPTIMIZATION`."""
        return self.training

    @field_validator("sampling")
    @classmethod
    def _has_the_base(cls, sampling: Sampling, info: ValidationInfo) -> Sampling:
        model = info.data.get("model")
        is_quantized = model is not None and model.quantization is not None
        # The base alone makes pairs, whatever is trained.
        reason = why_not_handed_over(sampling.engine, has_adapter=True, is_quantized=is_quantized)
        if reason is not None:
            raise key_problems(("sampling.engine", reason))
        return sampling

    @field_validator("loss")
    @classmethod
    def _has_its_teacher(cls, loss: Loss, info: ValidationInfo) -> Loss:
        reason = why_no_teacher(loss, info.data.get("model"))
        if reason is not None:
            raise key_problems(("model.reference", reason))
        return loss

    @field_validator("training")
    @classmethod
    def _fits_model_and_data(cls, training: Training, info: ValidationInfo) -> Training:
        data, model = info.data.get("data"), info.data.get("model")
        if training.eval_steps and data is not None and data.eval is None and data.eval_fraction is None:
            reason = "has no effect without held-out rows; set data.eval or data.eval_fraction"
            raise key_problems(("training.eval_steps", reason))
        contradiction = model and why_no_precision(training.precision, model.dtype, model.quantization is not None)
        if contradiction:
            raise key_problems(("training.precision", contradiction))
        if model is not None and training.reference == "cache" and model.reference_rounds_activations:
            raise key_problems(("training.reference", EIGHT_BITS_IN_NO_CACHE))
        update: dict[str, Any] = {}
        if training.learning_rate is None and model is not None:
            adapter = trains_adapter(model.name, model.lora is not None)
            update["learning_rate"] = learning_rate(PAIRS, adapter=adapter)
        if training.epochs is None and training.max_steps is None:
            update["epochs"] = EPOCHS
        return training.model_copy(update=update)
