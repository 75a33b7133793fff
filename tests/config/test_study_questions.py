"""Questions of a study: read with their line and key, refused where they could never be answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tdpo.config import ArmChoice, Contrast, RecipeError, dump_study, load_study

QUESTION: dict[str, Any] = {"text": "Which?", "metric": "ead", "plus": ["tdpo2@0.1"], "minus": ["dpo"]}
BASE: dict[str, Any] = {
    "study_dir": "runs/own",
    "tasks": [{"environment": {"name": "sentiment"}}],
    "arms": [{"name": "dpo", "strengths": [0.1]}, {"name": "tdpo2", "strengths": [0.1, 0.5]}],
}
ARMS = ArmChoice({"dpo": [3.0, 8.0], "tdpo2": [3.0]}, {"sft": ["0.0001"], "best_of": ["2", "4"]})


def study_with(**keys: Any) -> dict[str, Any]:
    return {**BASE, "questions": [{**QUESTION, **keys}]}


def test_questions_come_back_from_their_file(tmp_path: Path) -> None:
    study = load_study(study_with())
    assert study.questions is not None and study.questions[0].weight_of == {"tdpo2@0.1": 1.0, "dpo": -1.0}
    (tmp_path / "study.yaml").write_text(dump_study(study), encoding="utf-8")
    assert load_study(tmp_path) == study
    assert "questions" not in dump_study(load_study(BASE))


def test_sides_are_means_and_weights_are_taken_as_they_are() -> None:
    two = Contrast.model_validate({**QUESTION, "plus": ["a", "b"], "minus": ["c"]})
    assert two.weight_of == {"a": 0.5, "b": 0.5, "c": -1.0}
    weights = {"a": 1.0, "b": -1.0, "c": -1.0, "d": 1.0}
    assert Contrast(text="?", metric="ead", weights=weights).weight_of == weights


@pytest.mark.parametrize(
    ("keys", "key", "reason"),
    [
        ({"plus": ["tdpo2"]}, "plus", "has the strengths 0.1, 0.5: write one as tdpo2@0.1"),
        ({"plus": ["tdpo2@0.2"]}, "plus", "names tdpo2@0.2; tdpo2 has the strengths 0.1, 0.5"),
        ({"plus": ["tdpo3@0.1"]}, "plus", "did you mean tdpo2?"),
        ({"minus": ["ppo_forward"]}, "minus", "names ppo_forward, which is no arm of this study"),
        ({"minus": ["reference@1"]}, "minus", "the reference has no strength"),
        ({"minus": []}, "weights", "is empty, and plus or minus names no arm"),
        ({"plus": ["dpo"]}, "minus", "names dpo, which plus has"),
        ({"plus": ["dpo", "dpo"]}, "plus", "names an arm twice"),
        ({"weights": {"dpo": 1.0, "tdpo2@0.1": -1.0}}, "weights", "stands beside plus or minus"),
        ({"plus": [], "minus": [], "weights": {"dpo": 1.0, "tdpo2@0.1": 1.0}}, "weights", "sum to 2, not 0"),
        ({"plus": [], "minus": [], "weights": {"dpo": 0.0}}, "weights", "gives dpo the weight 0"),
        ({"at_targets": [3.0]}, "at_targets", "has no effect: none of its arms is held at a target"),
        ({"at_targets": [3.0, 3.0]}, "at_targets", "names a target twice"),
        ({"metric": "eda"}, "metric", "did you mean ead?"),
        ({"metric": "accuracy"}, "metric", "has no value for a prompt"),
        ({"component": "within"}, "component", "has no effect on ead; it splits reward_variance"),
        ({"primary": True}, "smallest_effect", "must be given for a primary question"),
        ({"smallest_effect": 0.0}, "smallest_effect", "expected a number > 0"),
        ({"tasks": ["keywords"]}, "tasks", "names keywords, which is no task of this study (sentiment)"),
        ({"claim": 1}, "claim", "unknown key"),
    ],
)
def test_what_could_never_be_answered_is_refused(keys: dict[str, Any], key: str, reason: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_study(study_with(**keys))
    [problem] = refused.value.problems
    assert problem.key.endswith(key) and problem.key.startswith("questions[0]") and reason in problem.reason


@pytest.mark.parametrize(
    ("keys", "key", "reason"),
    [
        ({"plus": ["tdpo2"]}, "at_targets", "is empty, but tdpo2 is held at targets: name some of 3"),
        ({"plus": ["tdpo2"], "at_targets": [8.0]}, "plus", "which is not held at 8: add it to the arm's targets"),
        ({"minus": ["best_of"], "plus": ["sft"]}, "minus", "write one as best_of@2"),
        ({"plus": ["tdpo2@3"], "at_targets": [3.0]}, "plus", "is held at targets; write tdpo2"),
    ],
)
def test_arms_held_at_targets_are_asked_at_these(keys: dict[str, Any], key: str, reason: str) -> None:
    question = Contrast.model_validate({**QUESTION, **keys})
    problems = question.problems(ARMS, ["sentiment"], has_reward=True, has_embeddings=True)
    assert key in dict(problems) and reason in dict(problems)[key]
    fine = Contrast.model_validate(
        {**QUESTION, "plus": ["tdpo2"], "minus": ["sft", "dpo", "best_of@4"], "at_targets": [3.0]}
    )
    assert not fine.problems(ARMS, ["sentiment"], has_reward=True, has_embeddings=True)


def test_metrics_need_what_they_are_made_of() -> None:
    [no_vectors] = Contrast(**{**QUESTION, "metric": "vendi", "plus": ["sft"], "minus": ["reference"]}).problems(
        ARMS, [], has_reward=True, has_embeddings=False
    )
    [no_reward] = Contrast(**{**QUESTION, "metric": "gated_ead", "plus": ["sft"], "minus": ["reference"]}).problems(
        ARMS, [], has_reward=False, has_embeddings=True
    )
    assert "needs sentence embeddings" in no_vectors[1] and "no task has a reward" in no_reward[1]
