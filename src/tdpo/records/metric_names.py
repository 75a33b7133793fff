"""The names of a study's metrics, and numbers in words: for axes, table heads and sentences."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Metric:
    """One metric of results.csv. `lower` says that less of it is more diverse."""

    key: str
    title: str
    unit: str = ""
    lower: bool = False

    @property
    def axis(self) -> str:
        note = "lower is more diverse" if self.lower else self.unit
        return f"{self.title} ({note})" if note else self.title


KL = (
    Metric("reverse_kl", "Reverse KL", "nats per response"),
    Metric("forward_kl", "Forward KL", "nats per response"),
    Metric("reverse_kl_per_token", "Reverse KL per token", "nats per token"),
    Metric("forward_kl_per_token", "Forward KL per token", "nats per token"),
)
DIVERSITY = (
    Metric("embedding_diversity", "Embedding diversity", "1 − mean cosine"),
    Metric("ead", "EAD", "expectation-adjusted distinct n-grams"),
    Metric("distinct_1", "Distinct words", "share of all words"),
    Metric("distinct_2", "Distinct word pairs", "share of all pairs"),
    Metric("self_bleu", "Self-BLEU", "", lower=True),
    Metric("vendi", "Vendi score", "effective number of responses"),
)
# How a diversity is taken: the prefix of its metric, and the words for it.
KINDS = {
    "": "among the responses to one prompt",
    "gated_": "among the good responses to one prompt",
    "across_": "across prompts",
}
MODES = (
    Metric("mode_coverage", "Mode coverage", "share of the known modes found per prompt"),
    Metric("mode_entropy", "Effective number of modes", "exp of the entropy, per prompt"),
    Metric("exact_mode_coverage", "Exact mode coverage", "share of modes with a quarter of the uniform share"),
    Metric("exact_effective_modes", "Exact effective number of modes", "exp of the entropy, from probabilities"),
)
OTHER = (
    Metric("reward_mean", "Mean reward"),
    Metric("reward_variance", "Variance of the rewards"),
    Metric("accuracy", "Accuracy on held-out pairs", "share of pairs"),
    Metric("policy_entropy", "Policy entropy", "nats per token"),
    Metric("response_tokens", "Response length", "tokens"),
    Metric("finished", "Ended by themselves", "share of responses"),
    Metric("gated_share", "Good responses", "share at or above the threshold"),
    Metric("valid_share", "Responses in a mode", "share of responses"),
    Metric("answer_mass", "Probability of the known answers", "sum over modes"),
    Metric("expected_grade", "Expected grade of a known answer", "computed from probabilities"),
    Metric("adapter_factor", "Factor on the adapter", "at which the KL meets its target"),
)
COSTS = (
    Metric("scored_completions", "Scored completions"),
    Metric("updates", "Updates"),
    Metric("train_seconds", "Training time"),
    Metric("cache_seconds", "Time to make reference caches"),
    Metric("sampling_seconds", "Time to make the pairs"),
    Metric("judging_seconds", "Time to judge"),
    Metric("trained_tokens", "Trained tokens"),
    Metric("generated_tokens", "Generated tokens"),
)


def _with_kind(metric: Metric, prefix: str) -> Metric:
    words = {"": "", "gated_": ", good ones only", "across_": " across prompts"}[prefix]
    return Metric(prefix + metric.key, metric.title + words, metric.unit, metric.lower)


ALL_DIVERSITY = tuple(_with_kind(metric, prefix) for prefix, metric in product(KINDS, DIVERSITY))
# What claims are judged by: these have a value for each prompt, or follow from such values, and so have intervals.
PER_PROMPT = (
    *("reward_mean", "reward_variance", "policy_entropy", "response_tokens"),
    *(metric.key for metric in KL),
    *(prefix + metric.key for prefix in ("", "gated_") for metric in DIVERSITY),
    *(metric.key for metric in MODES),
    *("gated_share", "valid_share", "answer_mass", "expected_grade"),
)
# Of these, what a task without rewards, or a study without sentence embeddings, does not measure.
OF_REWARDS = frozenset(key for key in PER_PROMPT if key.startswith(("reward_", "gated_", "expected_")))
OF_EMBEDDINGS = frozenset(key for key in PER_PROMPT if key.endswith(("embedding_diversity", "vendi")))
BY_KEY = {metric.key: metric for metric in (*KL, *ALL_DIVERSITY, *MODES, *OTHER, *COSTS)}


def named(key: str) -> Metric:
    """The metric of that name; one that is not known is called by its key."""
    return BY_KEY.get(key) or Metric(key, key.replace("_", " "))


def nats(value: float) -> str:
    """A KL in nats with two decimals; one above 0 that would round to 0 is "<0.01"."""
    return "<0.01" if 0 < value < 0.005 else f"{value:z.2f}"


def counted(count: float, one: str, many: str = "") -> str:
    """A number with its noun: 1 update, 2 passes, 1.5 epochs."""
    number = f"{count:g}" if isinstance(count, float) else str(count)
    return f"{number} {one if count == 1 else many or f'{one}s'}"
