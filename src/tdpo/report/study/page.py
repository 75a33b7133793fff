"""From a study's folder to the HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ... import __version__
from ...records.dotted import text_at
from ..drawing import Figure, base_layout
from ..embedding import checked_script, embed_json, security_policy
from ..page import RECIPE_CHARACTERS
from ..templating import joined_scripts, template_environment, template_text
from .answers import read_answers
from .arm_styles import method_color, method_symbol
from .claims import VERDICTS, read_claims
from .curves import curve_data, task_curves
from .distributions import distributions, spread_numbers
from .diversity import diversity_tables
from .frontiers import diversity_groups, frontier_data, shown_metrics, task_frontiers
from .overview import in_words, overviews
from .provenance import cost_rows, failures, settings_facts, task_table
from .samples import collect_samples, first_columns
from .strengths import choices, rules_of, strength_words, targets_of
from .study_reading import StudyRecord, load_study
from .summary import glance, notices, subset_words, summary

PAGE_BYTES = 7_900_000  # below 8 MB, with room for what is not counted beforehand
LEAST_SAMPLES = 200_000
SCRIPTS = ("study/figures.js", "study/strengths.js", "study/browser.js")


def render_study(study_dir: Path) -> str:
    """The whole report of the study in `study_dir` as one HTML document."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = template_environment()
    study_script = joined_scripts(*SCRIPTS)
    sources = {"plotly": get_plotlyjs(), "study": study_script, "two_kls": template_text("two_kls.js")}
    scripts = {name: checked_script(f"the script {name}", source) for name, source in sources.items()}
    study = load_study(study_dir)
    content, data = study_content(study)
    fixed = {
        "policy": security_policy(list(scripts.values())),
        "css": Markup(template_text("report.css") + "\n" + template_text("study/study.css")),
        "scripts": [Markup(script) for script in scripts.values()],
        "study_data": Markup(embed_json(data)),
        "color": method_color,
        "marker": method_symbol,
    }
    template = environment.get_template("study/study.html.jinja")

    def page(samples: Any) -> str:
        sentences = notices(study, content["frontiers"], content["curves"], samples)
        words = subset_words(samples) if samples else ""
        return template.render(**content, **fixed, notices=sentences, samples=samples, samples_shown=words)

    rest = len(page(None).encode("utf-8", errors="replace"))
    return page(collect_samples(study, max(PAGE_BYTES - rest, LEAST_SAMPLES)))


def study_content(study: StudyRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the template shows, and what the page's script draws from, as plain data."""
    claims, answers = read_claims(study), read_answers(study)
    chosen = choices(study)
    frontiers = [task_frontiers(study, task) for task in study.tasks]
    curves = [task_curves(study, task) for task in study.tasks]
    tables = [(task, diversity_tables(study, task, chosen[task.name])) for task in study.tasks]
    spreads, glances = distributions(study, chosen), overviews(study, chosen)
    costs, cost_lines = cost_rows(study)
    strengths = {arm.name: {s: strength_words(arm, s) for s in arm.strengths} for arm in study.arms}
    content = {
        "title": text_at(study.about, "title") or study.path.name,
        "study": study,
        "summary": summary(study, claims, answers),
        "at_a_glance": glance(study),
        "failures": failures(study),
        "claims": claims,
        "answers": answers,
        "verdicts": VERDICTS,
        "confidence": _confidence(study),
        "frontiers": frontiers,
        "distances": shown_metrics(study, "kl"),
        "diversities": diversity_groups(study),
        "choices": chosen,
        "rules": rules_of(study),
        "held": targets_of(study),
        "strength_texts": strengths,
        "first_columns": first_columns(study),
        "overviews": glances,
        "words": in_words(study, glances),
        "spreads": spreads,
        "spread_figures": [_numbers_of(spread) for spread in spreads],
        "tables": [(task, own) for task, own in tables if own],
        "curves": curves,
        "facts": settings_facts(study),
        "task_table": task_table(study),
        "cost_heads": costs,
        "cost_rows": cost_lines,
        "command": text_at(study.about, "command"),
        "recipe": study.recipe_text[:RECIPE_CHARACTERS],
        "writer": __version__,
    }
    layout = base_layout()
    data = {
        "arms": [
            {"name": arm.name, "label": arm.label, "color": method_color(arm.name), "symbol": method_symbol(arm.name),
             "strengths": strengths[arm.name]}
            for arm in study.arms
        ],
        "frontiers": frontier_data(study, frontiers),
        "curves": curve_data(curves),
        "rules": [chosen[task.name].rules for task in study.tasks],
        "layout": layout,
    }  # fmt: skip
    return content, data


def _numbers_of(spread: Any) -> Figure:
    heads = ["Method", "Strength", "Mean", "Variance", "Median", "Responses"]
    rows = spread_numbers(spread)
    return Figure(f"{spread.task.id}-rewards", "Rewards of single responses", "", "", spread.alt, heads, rows, [])


def _confidence(study: StudyRecord) -> str:
    value = study.claims.get("confidence", 0.95)
    return f"{100 * value:g}\u2009%" if isinstance(value, float) else "95\u2009%"
