"""From loaded runs to the HTML page."""

from __future__ import annotations

from typing import Any

from .. import __version__
from ..records.dotted import at, dict_at, text_at
from ..records.names import LOCK_FILE
from ..records.run_states import KILLED, state_in_words
from .curves import curve_groups
from .drawing import Figure, color, symbol
from .embedding import checked_script, embed_json, security_policy
from .figures import distribution_figure, frontier_figures, pair_figures, result_figures
from .numbers import join_words, number, show, show_duration
from .pair_words import gaps, moved_sentences, unjudged
from .results import BASE_COLOR, confidence, evaluated_columns, reward_name, summary_sentences
from .run import Run
from .run_facts import (
    SPLITS,
    completions_scored,
    data_facts,
    provenance_table,
    recipe_differences,
    wall_seconds,
)
from .samples import Samples, collect_samples
from .tables import difference_method, pairs_table, plain, results_table
from .templating import joined_scripts, template_environment, template_text
from .training_responses import training_responses

RECIPE_CHARACTERS = 20_000
ENDED = ("interrupted", KILLED)  # before the end, and nothing has to be repaired before the run goes on
_END = (("training", "Training"), ("provenance", "How it was run"), ("glossary", "Glossary"))
_RESPONSES = (("results", "Base against trained"), ("samples", "Side by side"))
# Ids of the sections and what the links at the top call them. Without a reward the pairs say most, so they come first.
JUDGED_SECTIONS = (("results", "Results"), ("samples", "Responses"), ("pairs", "Held-out pairs"), *_END)
PREFERENCE_SECTIONS = (("pairs", "Held-out pairs"), *_RESPONSES, *_END)
SETTINGS = {
    "environment": "Prompts from {}",
    "reward": "reward {}",
    "prompts": "{} held-out prompt{s}",
    "samples_per_prompt": "{} response{s} to each",
    "max_new_tokens": "at most {} token{s} long",
    "judge": "judged by {}",
}
LOST_ROWS = ("skip", "trunc", "drop", "too long")


def render(runs: list[Run], remark: str = "") -> str:
    """The whole report as one HTML document; `remark` is a sentence on all runs that it begins with."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = template_environment()
    scripts = {
        "plotly": checked_script("plotly.js", get_plotlyjs()),
        "report": checked_script("report.js", joined_scripts("report.js")),
    }
    content = page_content(runs, remark)
    return environment.get_template("report.html.jinja").render(
        **content,
        policy=security_policy(list(scripts.values())),
        css=Markup(template_text("report.css")),
        scripts={name: Markup(script) for name, script in scripts.items()},
        figure_data=Markup(embed_json([figure.spec for figure in content["figures"]])),
        sample_data=Markup(embed_json(content["samples"].payload)) if content["samples"] else None,
        color=color,
        marker=symbol,
    )


def page_content(runs: list[Run], remark: str = "") -> dict[str, Any]:
    """Everything that the template shows, as plain data."""
    columns = evaluated_columns(runs)
    samples = collect_samples(runs)
    judged = any(run.has_reward for run in runs)
    results, frontier = result_figures(columns, runs), frontier_figures(columns, runs)
    pairs, groups = pair_figures(runs), curve_groups(runs)
    distribution = distribution_figure(samples.rewards, reward_name(runs)) if samples else None
    # What is looked at first stands beside the table: rewards, or without any the distance from the base.
    first = 1 if judged else 3
    candidates = [*results, distribution, *frontier, *pairs, *(f for group in groups for f in group.figures)]
    figures: list[Figure] = [figure for figure in candidates if figure]
    return {
        "title": _title(runs),
        "judged": judged,
        "sections": _sections(judged, samples),
        "environment_names": sorted({text_at(run.evaluation, "settings", "environment") for run in runs} - {""}),
        "summary": summary_sentences(runs),
        "at_a_glance": _at_a_glance(runs),
        "notices": _notices(runs, samples, len({c.label for c in columns if c.color == BASE_COLOR}), remark),
        "runs": runs,
        "columns": columns,
        "results": results_table(columns, runs) if columns else None,
        "hero_figures": [f for f in (*results[:first], distribution) if f],
        "result_figures": results[first:],
        "frontier": frontier,
        "method": difference_method(runs),
        "pairs": pairs_table(runs),
        "pair_sources": _shared_words({run.label: text_at(run.evaluation, "pairs", "source") for run in runs}),
        "pairs_held_out": all(
            at(run.evaluation, "pairs", "held_out") is True for run in runs if run.evaluation.get("pairs")
        ),
        "pair_figures": pairs,
        "moved": moved_sentences(runs),
        "without_pairs": gaps(runs, "pairs"),
        "without_responses": gaps(runs, "generations") + (unjudged(runs) if judged else []),
        "ppo_labels": join_words([run.label for run in runs if run.is_ppo]),
        "own_pairs_labels": join_words([run.label for run in runs if run.on_own_pairs]),
        "any_pairs": not all(run.is_ppo for run in runs),
        "curve_groups": groups,
        "training_responses": [table for run in runs if (table := training_responses(run))],
        "samples": samples,
        "provenance": provenance_table(runs),
        "differences": recipe_differences(runs),
        "recipes": [(run, _cut(run.recipe_text)) for run in runs if run.recipe_text],
        "commands": [(run, text_at(run.machine, "command")) for run in runs if text_at(run.machine, "command")],
        "evaluation_settings": _evaluation_settings(runs),
        "reward": reward_name(runs),
        "confidence": confidence(runs[0]),
        "figures": figures,
        "writer": __version__,
    }


def _sections(judged: bool, samples: Samples | None) -> tuple[tuple[str, str], ...]:
    """Without a reward there need not be responses: what would add them is said beside the results."""
    if judged:
        return JUDGED_SECTIONS
    return tuple(section for section in PREFERENCE_SECTIONS if section[0] != "samples" or samples)


def _title(runs: list[Run]) -> str:
    models = {_model_name(run.model) for run in runs} - {""}
    return join_words([run.label for run in runs]) + (f" on {models.pop()}" if len(models) == 1 else "")


def _model_name(model: str) -> str:
    """A hub name as it is, a path without its folders."""
    return model.rstrip("/").rpartition("/")[2] if model.startswith(("/", ".", "~")) else model


def _at_a_glance(runs: list[Run]) -> list[tuple[str, str]]:
    """A few facts for the top of the page, each as (name, value); values of several runs joined where they differ."""
    facts: dict[str, list[str]] = {
        "Training pairs": [],
        "Responses scored by PPO": [],
        "Own responses scored": [],
        "Updates": [],
        "Training time": [],
        "Held-out pairs": [],
        "Held-out prompts": [],
    }
    for run in runs:
        trained, steps, seconds = at(run.data, "train", "pairs"), at(run.status, "step"), wall_seconds(run)
        rows = at(run.data, "train", "rows") if trained is None else trained  # of which broken and too long are none
        pairs, prompts = at(run.evaluation, "pairs", "count"), at(run.evaluation, "settings", "prompts")
        scored = completions_scored(run)
        facts["Training pairs"].append(show(rows) if number(rows) is not None and not run.on_own_responses else "")
        by, other = ("Responses scored by PPO", "Own responses scored")[:: 1 if run.is_ppo else -1]
        facts[by].append(show(int(scored)) if scored is not None else "")
        facts[other].append("")
        facts["Updates"].append(show(steps) if number(steps) is not None else "")
        facts["Training time"].append(show_duration(seconds) if seconds is not None else "")
        facts["Held-out pairs"].append(show(pairs) if number(pairs) is not None else "")
        facts["Held-out prompts"].append(show(prompts) if number(prompts) is not None else "")
    unique = {name: list(dict.fromkeys(value for value in values if value)) for name, values in facts.items()}
    return [(name, " / ".join(values)) for name, values in unique.items() if values]


def _notices(runs: list[Run], samples: Samples | None, bases: int, remark: str) -> list[tuple[str, list[str]]]:
    """What a reader should know before trusting the numbers, by run."""
    notices = [("All runs", [remark])] if remark else []
    if bases > 1:
        notices.append(
            (
                "All runs",
                ["The runs were not judged against the same base numbers, so there are several base columns."],
            )
        )
    if samples and samples.shown < samples.total:
        text = f"The sample browser holds the first {samples.shown} of {samples.total} prompts; samples.jsonl has all."
        notices.append(("Samples", [text]))
    of_runs: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        sentences = (*_state_notices(run), *_row_notices(run), *run.notes)
        of_runs.setdefault(sentences, []).append(run.label)
    return notices + [(join_words(labels), list(said)) for said, labels in of_runs.items() if said]


def _state_notices(run: Run) -> list[str]:
    state = text_at(run.status, "state")
    step, planned = show(at(run.status, "step")), show(at(run.status, "max_steps"))
    error = at(run.status, "error")
    if state in ("", "finished"):
        return [f"The status file reports an error: {error}"] if error else []
    without_error = {key: value for key, value in run.status.items() if key != "error"}
    words = state_in_words({**without_error, "step": step, "max_steps": planned}, state, run.path / LOCK_FILE)
    if state == "running":
        words = words.replace("is running", "was still running", 1)
    advice = f" `{run.going_on}` goes on." if state in ENDED else ""
    sentence = f"Training {words}: the numbers here are not final.{advice}"
    return [sentence, f"Error: {error}"] if error else [sentence]


def _row_notices(run: Run) -> list[str]:
    """Counts of rows that were skipped, truncated or dropped, whatever the tokenisation report calls them."""
    sentences = []
    for split, title in SPLITS.items():
        lost = [
            f"{name} {count}"
            for name, count in data_facts(run, split).items()
            if any(word in name for word in LOST_ROWS) and count != "0"
        ]
        if lost:
            sentences.append(f"{title}: {', '.join(lost)}.")
    return sentences


def _evaluation_settings(runs: list[Run]) -> list[str]:
    """The evaluation's settings in words, once where all runs share them."""
    texts = {}
    for run in runs:
        settings = dict_at(run.evaluation, "settings")
        texts[run.label] = ", ".join(_setting(key, plain(value)) for key, value in settings.items() if plain(value))
    return _shared_words(texts)


def _shared_words(texts: dict[str, str]) -> list[str]:
    """What is said of runs, by label: once where all that have something say the same, else with the runs' names."""
    labels: dict[str, list[str]] = {}
    for label, words in texts.items():
        if words:
            labels.setdefault(words, []).append(label)
    return [words if len(labels) == 1 else f"{join_words(names)}: {words}" for words, names in labels.items()]


def _setting(key: str, value: str) -> str:
    """One setting of an evaluation in words; of one that is not known its key and its value."""
    plural = "" if value == "1" else "s"
    return SETTINGS[key].format(value, s=plural) if key in SETTINGS else f"{key.replace('_', ' ')} {value}"


def _cut(text: str) -> str:
    return (
        text
        if len(text) <= RECIPE_CHARACTERS
        else f"{text[:RECIPE_CHARACTERS]}\n… ({len(text) - RECIPE_CHARACTERS} more characters)"
    )
