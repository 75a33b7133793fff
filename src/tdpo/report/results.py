"""Base against trained: which columns there are, which numbers they hold, and what that says in plain words."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from ..records.dotted import at, dict_at, text_at
from .numbers import excludes_zero, join_words, number, show, show_interval, show_share, show_signed
from .pair_words import pairs_sentence
from .run import Run

BASE_COLOR = -1


@dataclass(frozen=True)
class Metric:
    """One row of the results: a key of evaluation.json's generations (or pairs) and how to name it."""

    key: str
    title: str
    unit: str = ""
    share: bool = False
    signed: bool = False

    def show(self, value: Any) -> str:
        return show_share(value) if self.share else show_signed(value) if self.signed else show(value)

    def show_interval(self, limits: Any) -> str:
        return show_interval(limits, self.show)


GENERATION_METRICS = (
    Metric("reward_mean", "Mean reward"),
    Metric("reward_std", "Spread of the rewards", "standard deviation"),
    Metric("reward_variance", "Variance of the rewards", "the spread squared"),
    Metric("reverse_kl", "Reverse KL, own samples", "nats per response"),
    Metric("forward_kl", "Forward KL, base samples", "nats per response"),
    Metric("policy_entropy", "Entropy, own samples", "nats per token"),
    Metric("distinct_1", "Distinct words", "of all words"),
    Metric("distinct_2", "Distinct word pairs", "of all word pairs"),
    Metric("length_mean", "Mean length", "tokens"),
    Metric("finished_share", "Ended on its own", "within the length limit", share=True),
    Metric("count", "Responses"),
    Metric("answer_mass", "Probability of the known answers", "computed, not sampled", share=True),
    Metric("exact_effective_modes", "Effective number of modes", "computed from the known answers"),
    Metric("exact_mode_coverage", "Modes that are kept", "with a quarter of the uniform share", share=True),
    Metric("expected_grade", "Expected grade of a known answer"),
)
PAIR_METRICS = (
    Metric("accuracy", "Accuracy", "pairs with a margin above zero; a tie counts half", share=True),
    Metric("margin", "Margin", "of rewards; SimPO’s are per token"),
    Metric("chosen_reward", "Chosen implicit reward"),
    Metric("rejected_reward", "Rejected implicit reward"),
    Metric("chosen_reference_logp", "Chosen log-probability, base", "nats per response"),
    Metric("chosen_logp", "Chosen log-probability, trained", "nats per response"),
    Metric("chosen_log_ratio", "Its change from the base", "nats per response", signed=True),
    Metric("rejected_reference_logp", "Rejected log-probability, base", "nats per response"),
    Metric("rejected_logp", "Rejected log-probability, trained", "nats per response"),
    Metric("rejected_log_ratio", "Its change from the base", "nats per response", signed=True),
    Metric("chosen_forward_kl", "Chosen forward KL", "nats per response"),
    Metric("rejected_forward_kl", "Rejected forward KL", "nats per response"),
    Metric("chosen_reverse_kl", "Chosen reverse KL", "nats per response"),
    Metric("rejected_reverse_kl", "Rejected reverse KL", "nats per response"),
    Metric("count", "Pairs"),
    Metric("prompts", "Prompts of these pairs"),
)


@dataclass(frozen=True)
class Column:
    """One model that was evaluated: a base model (`color` is BASE_COLOR) or what a run trained."""

    label: str
    color: int
    run: Run
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def is_base(self) -> bool:
        return self.color == BASE_COLOR


def evaluated_columns(runs: list[Run]) -> list[Column]:
    """Base and trained columns of every run with generations; runs judged against the same base share its column.

    The same base means the same model, the same evaluation settings and the same numbers: then one base column
    stands before all its runs. A run whose responses nothing judged joins those whose base differs by its reward only.
    Otherwise each base is shown and named after the run that it belongs to.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    evaluated = [run for run in runs if isinstance(run.evaluation.get("generations"), dict)]
    rewards = {_base_identity(run): _base_reward(run) for run in reversed(evaluated) if _base_reward(run)}
    for run in evaluated:
        base = _base_identity(run)
        groups.setdefault((base, _base_reward(run) or rewards.get(base, "")), []).append(run)
    columns = []
    for members in groups.values():
        label = "Base" if len(groups) == 1 else f"Base of {join_words([run.label for run in members])}"
        first = next((run for run in members if _base_reward(run)), members[0])
        base = at(first.evaluation, "generations", "base")
        if isinstance(base, dict):
            columns.append(Column(label, BASE_COLOR, first, base))
        for run in members:
            trained = at(run.evaluation, "generations", "trained")
            if isinstance(trained, dict):
                columns.append(Column(run.label, run.index, run, trained))
    return columns


def _base_identity(run: Run) -> str:
    """What the base's responses depend on."""
    settings = {
        key: value for key, value in dict_at(run.evaluation, "settings").items() if key not in ("reward", "judge")
    }
    length = number(at(run.evaluation, "generations", "base", "length_mean"))
    return json.dumps([run.model, settings, None if length is None else round(length, 6)], sort_keys=True, default=str)


def _base_reward(run: Run) -> str:
    """Who judged the base's responses, and with which result; "" where nothing did."""
    value = number(at(run.evaluation, "generations", "base", "reward_mean"))
    judge = [at(run.evaluation, "settings", key) for key in ("reward", "judge")]
    return "" if value is None else json.dumps([judge, round(value, 6)], default=str)


def metric_rows(metrics: tuple[Metric, ...], numbers: list[dict[str, Any]]) -> list[Metric]:
    """The known metrics that at least one of `numbers` holds, then every other number that an evaluation added."""
    present = {key for entry in numbers for key, value in entry.items() if isinstance(value, int | float)}
    rows = [metric for metric in metrics if metric.key in present]
    extra = sorted(present - {metric.key for metric in metrics})
    return rows + [Metric(key, key.replace("_", " ").capitalize()) for key in extra]


def generation_interval(numbers: dict[str, Any], key: str) -> Any:
    return numbers.get(f"{key}_interval")


def pair_interval(numbers: dict[str, Any], key: str) -> Any:
    return at(numbers, "intervals", key)


def reward_name(runs: list[Run]) -> str:
    """What the reward is called, if the evaluations agree on it; else "reward"."""
    names = {text_at(run.evaluation, "settings", "reward") for run in runs} - {""}
    return names.pop() if len(names) == 1 else "reward"


def confidence(run: Run) -> str:
    """ "95 % interval": the confidence of the paired difference, 95 % where the file does not say."""
    level = number(at(run.evaluation, "difference", "reward_mean", "confidence"))
    return f"{show_share(0.95 if level is None else level)} interval"


def summary_sentences(runs: list[Run]) -> list[str]:
    """What is known of each run in a few words: its held-out reward and its KL, else its pairs, else its training."""
    return [_reward_sentence(run) or pairs_sentence(run) or _without_evaluation(run) for run in runs]


def _reward_sentence(run: Run) -> str:
    base, trained = (at(run.evaluation, "generations", who, "reward_mean") for who in ("base", "trained"))
    if number(base) is None or number(trained) is None:
        return ""
    reward = reward_name([run])
    what = "reward" if reward == "reward" else f"{reward} reward"
    spread = at(run.evaluation, "difference", "reward_mean", "interval")
    sure = excludes_zero(spread)
    change = number(at(run.evaluation, "difference", "reward_mean", "estimate"))
    change = float(trained) - float(base) if change is None else change
    numbers = f"from {show(base)} to {show(trained)}"
    kl = number(at(run.evaluation, "generations", "trained", "reverse_kl"))
    cost = "" if kl is None else f", at {show(kl)} nats of reverse KL per response"
    if change == 0:
        return f"{run.label} left the held-out {what} at {show(trained)}{cost}."
    verb = "raised" if change > 0 else "lowered"
    if sure is None:
        return f"{run.label} {verb} the held-out {what} {numbers}{cost}; no interval says how sure that is."
    limits = f"{confidence(run)} of the change {show_interval(spread)}"
    if sure:
        return f"{run.label} {verb} the held-out {what} {numbers} ({limits}){cost}."
    return (
        f"{run.label} moved the held-out {what} {numbers}{cost}, but the {limits} includes zero: "
        "this evaluation cannot tell it from no change."
    )


def _without_evaluation(run: Run) -> str:
    # On own responses the loss is no measure of progress: each iteration has others.
    on_rewards = run.on_own_responses and run.has_reward
    key, what = ("reward_mean", "mean training reward") if on_rewards else ("loss", "training loss")
    unknown = "responses to other prompts" if run.on_own_responses else "responses"
    values = [value for _, value in run.series("train", key) if value is not None]
    if not values:
        return f"{run.label} has logged nothing to judge it by yet."
    if len(values) == 1:
        return f"{run.label} has logged one {what}, {show(values[0])}, and has not been evaluated."
    answered = run.evaluation.get("generations")
    gap = ", and nothing judged its responses" if answered else " and has not been evaluated"
    return (
        f"{run.label} took its {what} from {show(values[0])} to {show(values[-1])}"
        f"{gap}: whether its {unknown} got better is not known."
    )
