"""Claims of a study's own: read with their line and key, refused where they could never be judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tdpo.config import ARM_NAMES, RecipeError, built_in_claims, dump_study, load_study

PART: dict[str, Any] = {"arm": "tdpo2", "against": ["dpo"], "metric": "ead", "at_matched": ["forward_kl"]}
BASE: dict[str, Any] = {
    "study_dir": "runs/own",
    "tasks": [{"environment": {"name": "sentiment"}}],
    "arms": [{"name": name, "strengths": [0.1]} for name in ("dpo", "tdpo2")],
}


def study_with(*parts: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {**BASE, **others, "claims": [{"text": "It does.", "parts": list(parts)}]}


def test_a_claim_of_ones_own_comes_back_from_its_file(tmp_path: Path) -> None:
    study = load_study(study_with(PART, {**PART, "metric": "self_bleu", "says": "less", "decides": False}))
    assert study.claims is not None and [part.metric for part in study.claims[0].parts] == ["ead", "self_bleu"]
    (tmp_path / "study.yaml").write_text(dump_study(study), encoding="utf-8")
    assert load_study(tmp_path) == study


def test_without_claims_the_built_in_ones_are_meant_and_not_written() -> None:
    study = load_study(BASE)
    assert study.claims is None and "claims" not in dump_study(study)
    assert [len(claim.parts) for claim in built_in_claims()] == [6, 3, 2, 6]


def test_the_example_of_the_page_can_be_judged() -> None:
    page = (Path(__file__).parents[2] / "docs/the_study.md").read_text(encoding="utf-8")
    example = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    claims = load_study({**BASE, **example}).claims
    assert claims is not None and [len(claim.parts) for claim in claims] == [3]


def test_the_built_in_claims_can_be_judged_where_all_arms_are() -> None:
    arms = [{"name": name, "strengths": [0.1]} for name in ARM_NAMES]
    claims = [claim.model_dump() for claim in built_in_claims()]
    assert load_study({**BASE, "arms": arms, "claims": claims}).claims == list(built_in_claims())


@pytest.mark.parametrize(
    ("part", "key", "reason"),
    [
        ({"arm": "kto"}, "arm", "expected one of sft, dpo"),
        ({"arm": "sft"}, "arm", "names sft, which is no arm of this study: add it to arms, or set optional"),
        ({"against": ["ppo_reverse"]}, "against", "names ppo_reverse, which is no arm of this study"),
        ({"against": ["tdpo2"]}, "against", "names tdpo2, the arm itself"),
        ({"against": ["reference"]}, "at_matched", "must be empty against the reference"),
        ({"metric": "self_blue"}, "metric", "names no metric: self_blue; did you mean self_bleu?"),
        ({"metric": "accuracy"}, "metric", "cannot be judged by accuracy: it has no value for a prompt"),
        ({"metric": "across_ead"}, "metric", "cannot be judged by across_ead"),
        ({"metric": "forward_kl"}, "at_matched", "has forward_kl, the metric itself"),
        ({"at_matched": []}, "at_matched", "is empty, which only reward_variance against"),
        ({"at_matched": ["length"]}, "at_matched", "expected a list"),
        ({"says": "not_less"}, "says", "can be not_less only without at_matched"),
        ({"primary": True}, "primary", "unknown key"),
    ],
)
def test_a_part_that_cannot_be_judged_is_refused_with_its_line(
    tmp_path: Path, part: dict[str, Any], key: str, reason: str
) -> None:
    file = tmp_path / "study.yaml"
    values = {name: "[" + ", ".join(v) + "]" if isinstance(v, list) else str(v) for name, v in {**PART, **part}.items()}
    lines = "".join(f"\n        {name}: {value.lower()}" for name, value in values.items()).strip()
    file.write_text(
        "study_dir: runs/own\ntasks: [{environment: {name: sentiment}}]\n"
        "arms: [{name: dpo, strengths: [0.1]}, {name: tdpo2, strengths: [0.1]}]\n"
        f"claims:\n  - text: It does.\n    parts:\n      - {lines}\n",
        encoding="utf-8",
    )
    with pytest.raises(RecipeError) as error:
        load_study(file)
    (problem,) = error.value.problems
    assert problem.key == f"claims[0].parts[0].{key}" and reason in problem.reason
    assert problem.where == f"{file}:{7 + list(values).index(key)}"


@pytest.mark.parametrize(
    ("study", "key", "reason"),
    [
        (study_with({**PART, "decides": False}), "claims[0].parts", "has no part that decides"),
        (
            study_with({**PART, "arm": "sft", "optional": True}),
            "claims[0].parts",
            "has no part that decides and whose arms the study has",
        ),
        (
            study_with({**PART, "metric": "vendi"}, embeddings=None),
            "claims[0].parts[0].metric",
            "vendi needs sentence embeddings, and embeddings is null",
        ),
        (
            study_with(
                {**PART, "metric": "gated_ead"},
                tasks=[{"name": "rows", "data": {"train": "pairs.jsonl", "eval_fraction": 0.1}}],
            ),
            "claims[0].parts[0].metric",
            "cannot be judged by gated_ead: no task has a reward",
        ),
    ],
)
def test_a_claim_that_the_study_cannot_judge_is_refused(study: dict[str, Any], key: str, reason: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_study(study)
    assert [problem.key for problem in error.value.problems] == [key]
    assert reason in error.value.problems[0].reason


def test_a_key_inside_a_list_is_found_in_the_file(tmp_path: Path) -> None:
    """A problem that names its key itself has the key's line too, not only the file."""
    file = tmp_path / "study.yaml"
    file.write_text(
        "study_dir: x\ntasks:\n  - name: rows\n    data: {train: pairs.jsonl, eval_fraction: 0.1}\n"
        "arms:\n  - {name: dpo, strengths: [0.1]}\n  - name: ppo_forward\n    strengths: [0.1]\n",
        encoding="utf-8",
    )
    with pytest.raises(RecipeError, match=rf"{file}:7: arms\[1\]\.name: can learn no task"):
        load_study(file)
