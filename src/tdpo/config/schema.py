"""The recipe: everything one run depends on, as typed sections.

The text under each field is its documentation; `docs/recipe.md`, `tdpo recipe` and the error messages are made
from it. A field whose default depends on another one is null in the file and holds the value in the resolved
recipe, so a run directory always shows what was really used.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from ..kl_choices import KLTerm, PairSide, TermDirection, target_obstacle, weight_obstacle
from ..methods import METHODS
from ._sections import NonNegativeFloat, PositiveFloat, PositiveInt, Section, Seed, Text, key_problems, why_no_divisor
from .environment_schema import EnvironmentChoice
from .optimization import Optimizing, Recording

LossName = Literal["tdpo2", "tdpo1", "dpo", "ipo", "f_dpo_forward", "f_dpo_js", "sft", "kl"]
BadRows = Literal["error", "skip"]
RepeatedRows = Literal["refuse", "keep"]
TurnsToCount = Literal["assistant", "all"]
ReferenceSource = Literal["auto", "cache", "model"]
PrefixSharing = Literal["auto", "on", "off"]
LogNames = Literal["tdpo", "both"]

# Readers that are files hold one split; only saved dataset folders and hub names can have several.
FILE_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".gz", ".ndjson")


class Lora(Section):
    """Low-rank adapters: a few trainable matrices beside frozen weights."""

    rank: PositiveInt = 16
    """Rank of each adapter; its parameters grow in proportion."""
    alpha: PositiveFloat = 32.0
    """Adapters are scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapters' inputs dropped in training."""
    targets: Text | Annotated[list[Text], Field(min_length=1)] = "all-linear"
    """Modules that get an adapter: `all-linear` (every linear layer but the head) or a list of module names."""


class Model(Section):
    """The policy, and the reference that it is held against."""

    name: Text = "smollm2-135m"
    """`smollm2-135m` (bundled, no download), a Hugging Face name, or a local folder."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; auto takes what the model was saved in."""
    trust_remote_code: bool = False
    """Allow the models that the recipe names, a reward model and a critic included, to run Python code of their own."""
    reference: Text | None = None
    """Name or folder of another reference model; null is the policy as it was before training."""
    lora: Lora | None = Lora()
    """Null trains all weights instead."""


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


class LossKL(Section):
    """An exact KL beside the loss, with its gradient and outside the sigmoid: loss + coefficient · Σ_t KL_t."""

    direction: TermDirection = KLTerm.direction
    """`forward` is KL(reference‖policy), which punishes forgetting; `reverse` is KL(policy‖reference), which punishes
    inventing; `js` is the Jensen–Shannon divergence between them, w·KL(reference‖m) + (1 − w)·KL(policy‖m) with
    m = w·reference + (1 − w)·policy."""
    on: PairSide = KLTerm.on
    """Along which responses it is summed, in nats per sequence; `both` is the mean of the two."""
    coefficient: PositiveFloat | None = None
    """Weight of the KL, per nat; null is 0.1, and 1 where the KL is the whole loss (`loss.name` kl)."""
    weight: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The reference's share w of the mixture in `js` (null is 0.5); the other directions have none."""
    target: PositiveFloat | None = None
    """Nats per sequence at which the KL is held: the coefficient, which then is only where it begins, moves after every
    update. Null leaves it as it is."""

    @field_validator("weight")
    @classmethod
    def _belongs_to_js(cls, weight: float | None, info: ValidationInfo) -> float | None:
        direction = info.data.get("direction")
        if direction is None:  # it is wrong itself, which is said elsewhere
            return weight
        obstacle = weight_obstacle(weight, direction)
        if obstacle is not None:
            raise ValueError(obstacle)
        return KLTerm.DEFAULT_WEIGHT if direction == "js" and weight is None else weight

    @property
    def term(self) -> KLTerm:
        """What the loss is given."""
        return KLTerm(**self.model_dump())


class Loss(Section):
    """The objective. With h = chosen − rejected log-ratio and D = Σ_t KL(reference‖policy) of a response:
    dpo −log σ(β h); tdpo1 −log σ(β (h − (D_l − D_w))); tdpo2 −log σ(β (h − α (D_l − sg(D_w)))); ipo (h − 1/(2β))²;
    f_dpo −log σ(β (f′(u_w) − f′(u_l))) with u = π/π_ref of a whole response and f′ = −1/u (f_dpo_forward) or
    log(2u/(1 + u)) (f_dpo_js), which is no KL of tokens; sft −log π(chosen); kl nothing but the KL of `loss.kl` to
    another model, `model.reference`, as a teacher."""

    DEFAULT_BETA: ClassVar[float] = 0.1
    DEFAULT_ALPHA: ClassVar[float] = 0.5  # of tdpo2

    name: LossName = "tdpo2"
    """Which of these losses; sft learns the chosen responses, without preference and without a tie to the reference. kl
    distils: it learns what `model.reference`, a model with the same vocabulary, says along the responses."""
    beta: PositiveFloat | None = None
    """Strength β of the tie to the reference (null is 0.1): larger stays closer. In ipo it is the paper's τ, with
    log-ratios summed over a response, not averaged over its tokens. sft and kl have none."""
    alpha: NonNegativeFloat | None = None
    """Weight α of the sequence KLs in tdpo2 (null is 0.5; 0 is DPO exactly); the other losses have none."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of pairs whose two responses are swapped. Only dpo, tdpo1 and tdpo2 have it."""
    kl: LossKL | None = None
    """Null is none: `kl: {}` adds one to any of these losses."""

    @field_validator("kl")
    @classmethod
    def _resolve_kl(cls, kl: LossKL | None, info: ValidationInfo) -> LossKL | None:
        is_all = info.data.get("name") == "kl"
        if kl is None:
            return LossKL(coefficient=1.0) if is_all else None
        if obstacle := target_obstacle(kl.target, info.data.get("name", "")):
            raise key_problems(("loss.kl.target", obstacle))
        default = 1.0 if is_all else KLTerm.DEFAULT_COEFFICIENT
        return kl if kl.coefficient is not None else kl.model_copy(update={"coefficient": default})

    @field_validator("beta")
    @classmethod
    def _some_losses_have_no_beta(cls, beta: float | None, info: ValidationInfo) -> float | None:
        name = info.data.get("name")
        if name is None or METHODS[name].has_beta:
            return cls.DEFAULT_BETA if beta is None else beta
        if beta is not None:
            raise ValueError(f"has no effect with loss.name {name}; remove it (or null), or choose dpo or tdpo2")
        return None

    @field_validator("label_smoothing")
    @classmethod
    def _some_losses_have_no_smoothing(cls, smoothing: float, info: ValidationInfo) -> float:
        name = info.data.get("name")
        if smoothing and name is not None and not METHODS[name].has_label_smoothing:
            raise ValueError(f"has no effect with loss.name {name}; remove it, or choose dpo or tdpo2")
        return smoothing

    @field_validator("alpha")
    @classmethod
    def _alpha_belongs_to_tdpo2(cls, alpha: float | None, info: ValidationInfo) -> float | None:
        name = info.data.get("name")
        if name == "tdpo2":
            return cls.DEFAULT_ALPHA if alpha is None else alpha
        if name is not None and alpha is not None:
            raise ValueError(f"has no effect with loss.name {name}; remove it (or null), or choose tdpo2")
        return alpha


class _Batches(Section):
    """What one update learns from, and how it is computed."""

    epochs: PositiveFloat | None = None
    """Passes over the training rows; null is 1. Not together with `training.max_steps`."""
    max_steps: PositiveInt | None = None
    """Number of updates, instead of epochs."""
    batch_size: PositiveInt = 16
    """Pairs per update, over all processes."""
    micro_batch_size: PositiveInt | None = None
    """Pairs per forward, a divisor of `training.batch_size`; smaller needs less memory and gives the same update.
    Null is the whole batch at once."""
    reference: ReferenceSource = "auto"
    """Where the reference's part of a step comes from. `cache`: it runs once over the data, and what it said is kept on
    disk for every run with this model and these rows; `model`: it runs in every step; `auto`: the cheaper one."""
    reference_cache_dir: Text | None = None
    """Folder of these caches, on a disk that all nodes share; null is the user's cache folder."""
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


class Sampling(Section):
    """How `tdpo pairs` draws and pairs responses; training does not read it."""

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
    """Sequences generated at once; changes speed and memory only."""

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


class Evaluation(Section):
    """How `tdpo evaluate` compares the trained model with the base model; training does not read it."""

    samples_per_prompt: PositiveInt = 4
    """Responses drawn from each model for each held-out prompt."""
    kl_samples_per_prompt: PositiveInt | None = None
    """Of these, the first so many have their KLs and entropy measured, which takes most of the time; null is all."""
    max_prompts: PositiveInt | None = None
    """Held-out prompts that are answered: the first so many. Null is all of an environment's, and none without an
    environment; a number has the prompts of held-out pairs answered too, without a reward."""
    max_new_tokens: PositiveInt | None = None
    """Longest response, in tokens; null is the environment's own, and 64 without one."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature; 1 draws from the models themselves, 0 takes the likeliest token."""
    batch_size: PositiveInt = 64
    """Sequences generated at once; changes speed and memory only."""
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

    @field_validator("loss")
    @classmethod
    def _has_its_teacher(cls, loss: Loss, info: ValidationInfo) -> Loss:
        model = info.data.get("model")
        if loss.name == "kl" and model is not None and model.reference is None:
            reason = (
                "is null, but loss.name kl learns from a teacher: the policy's own start has nothing to teach it; name "
                "another model with the same vocabulary"
            )
            raise key_problems(("model.reference", reason))
        return loss

    @field_validator("training")
    @classmethod
    def _fits_model_and_data(cls, training: Training, info: ValidationInfo) -> Training:
        data, model = info.data.get("data"), info.data.get("model")
        if training.eval_steps and data is not None and data.eval is None and data.eval_fraction is None:
            reason = "has no effect without held-out rows; set data.eval or data.eval_fraction"
            raise key_problems(("training.eval_steps", reason))
        update: dict[str, Any] = {}
        if training.learning_rate is None and model is not None:
            update["learning_rate"] = 5e-6 if model.lora is None else 1e-4
        if training.epochs is None and training.max_steps is None:
            update["epochs"] = 1.0
        return training.model_copy(update=update)
