"""Which curves the report draws, under which headings, of which metrics."""

from __future__ import annotations

from dataclasses import dataclass

from ..records.dotted import text_at
from .run import Run


@dataclass(frozen=True)
class Part:
    """One line of a figure for each run that logged `key` of metrics.jsonl; `side` says of what, where not of all."""

    key: str
    side: str = ""
    dash: str = "solid"


@dataclass(frozen=True)
class Curve:
    """One figure of curves: lines of the metric `key`, or of several `parts`. `pairs_only` leaves PPO out, whose metric
    of this name is another one; `direction` is the KL whose target, where PPO has one, is drawn as well;
    `note_on_dotted` is said where a line is dotted."""

    key: str
    title: str
    unit: str
    note: str = ""
    parts: tuple[Part, ...] = ()
    axis: str = ""
    pairs_only: bool = False
    direction: str = ""
    note_on_dotted: str = ""

    def parts_of(self, run: Run) -> tuple[Part, ...]:
        if self.pairs_only and run.is_ppo:
            return ()
        held = text_at(run.kl, "target_direction") or text_at(run.kl, "direction")
        target = self.direction and held == self.direction
        return (self.parts or (Part(self.key),)) + ((TARGET,) if target else ())


def _sides(key: str, *, own: bool = False) -> tuple[Part, ...]:
    """The chosen and the rejected response of pairs; with `own`, own responses beside them."""
    pair = Part(f"chosen_{key}", "chosen"), Part(f"rejected_{key}", "rejected", "dot")
    return (*pair, Part(key, "own responses")) if own else pair


TARGET = Part("kl_target", "target", "dash")
GROUPS: dict[str, tuple[Curve, ...]] = {
    "Learning the preference": (
        Curve(
            "loss", "Loss", "nats per pair",
            "At the start log 2 ≈ 0.69; SFT’s is 0, IPO’s is 1/(4β²) nats², SimPO’s depends on the pairs.",
            pairs_only=True,
        ),
        Curve("accuracy", "Accuracy", "share of pairs", "Margins above zero; a tie counts half.", axis="share"),
        Curve(
            "margin", "Margin", "chosen − rejected reward",
            "Inside the loss’s sigmoid; IPO has none and aims at ½; SimPO’s is per token, and less γ there.",
        ),
    ),
    "Reward while training": (
        Curve(
            "reward_mean", "Mean reward", "of an iteration’s responses",
            "Sampled before the iteration’s updates, drawn after them. Dotted: less penalties, the KL’s included.",
            (Part("reward_mean"), Part("penalized_reward_mean", "less penalties", "dot")),
        ),
        Curve("reward_std", "Spread of the rewards", "standard deviation", axis="from zero"),
        Curve(
            "pairs", "Pairs of an iteration", "made of own responses",
            "Dotted: prompts that gave none, as their responses were equally good.",
            (Part("pairs", "pairs"), Part("prompts_without_pair", "prompts without", "dot")), axis="from zero",
        ),
        Curve("length_mean", "Mean length", "tokens", axis="from zero"),
        Curve("finished_share", "Ended on its own", "share of responses", axis="share"),
    ),
    "Learning from the responses": (
        Curve("policy_loss", "Policy loss", "per token", "Around zero by construction: no measure of progress."),
        Curve("value_loss", "Value loss", "half a squared error per token", axis="from zero"),
        Curve("explained_variance", "Explained variance", "of the returns", "1: the critic foresaw them; 0: not."),
        Curve(
            "clip_fraction", "Clip fraction", "share of tokens", "Without a gradient.",
            (Part("clip_fraction", "policy"), Part("value_clip_fraction", "values", "dot")), axis="share",
            note_on_dotted="Dotted: those of the critic.",
        ),
        Curve("approx_kl", "Moved in an iteration", "nats per token", "Away from the policy that sampled."),
        Curve("ratio_mean", "Probability ratio", "new / sampling policy, mean", "Near 1 while updates are small."),
    ),
    "What happens to the likelihoods": (
        Curve(
            "reward", "Implicit reward", "β × (log-ratio + KL term)",
            "Chosen minus rejected is the margin. SimPO’s is β × the mean log-probability of a token.",
            _sides("reward"),
        ),
        Curve(
            "logp", "Log-probability", "nats per response", "", _sides("logp")
        ),
        Curve(
            "policy_entropy", "Policy entropy", "nats per token",
            "Along pairs, or own responses. Falls when the policy commits to fewer words.",
        ),
    ),
    "Distance from the reference": (
        Curve(
            "forward_kl", "Forward KL", "nats per response", "KL(reference‖policy) along each response.",
            _sides("forward_kl", own=True), direction="forward",
        ),
        Curve(
            "reverse_kl", "Reverse KL", "nats per response", "KL(policy‖reference) along each response.",
            _sides("reverse_kl", own=True), direction="reverse",
        ),
        Curve(
            "kl_term", "KL beside the loss", "nats per response",
            "Before its coefficient, along the responses of loss.kl.on. The loss contains it.",
            (Part("kl_term"), Part("held_kl", "held at the target", "dot"), TARGET), pairs_only=True,
            note_on_dotted="Dotted: the KL that is held at the target, over the last updates.",
        ),
        Curve(
            "kl_estimates", "Sampled estimates of the KL", "nats per response", "Solid k1, dotted k2, dashed k3.",
            (Part("kl_k1", "k1"), Part("kl_k2", "k2", "dot"), Part("kl_k3", "k3", "dash")),
        ),
        Curve(
            "kl_coefficient", "KL coefficient", "per nat",
            "Of PPO, or of the KL beside a loss. With a target it rises while the KL is above it.",
        ),
    ),
    "The machine at work": (
        Curve("tokens_per_second", "Throughput", "tokens per second", axis="from zero"),
        Curve(
            "ppo_tokens_per_second", "Throughput with own responses", "tokens per second",
            "Solid: learning. Dotted: sampling.",
            (Part("learning_tokens_per_second", "learning"), Part("generation_tokens_per_second", "sampling", "dot")),
            axis="from zero",
        ),
        Curve("peak_memory_mib", "Peak memory", "MiB", axis="from zero"),
        Curve("learning_rate", "Learning rate", "", axis="from zero"),
        Curve("grad_norm", "Gradient norm", "before clipping", axis="from zero"),
    ),
}  # fmt: skip
