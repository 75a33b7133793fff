"""The prompts of `sentiment`, its reward, and what happens when a reward misbehaves."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tdpo.environments
from tdpo.environments import Environment, Prompt, RewardError, check_reward, load_environment, score

# Words of the request itself ("in one sentence, …") say nothing about whether two prompts ask for the same thing.
REQUEST = set(
    re.findall(
        r"\w+",
        "a an the in on at of to for with and or that who is was it its your you i my one single short sentence line "
        "write describe about answer reply say tell give report sum up review what do does how why from by this",
    )
)


def words(prompt: str) -> set[str]:
    return set(re.findall(r"[a-z']+", prompt.lower())) - REQUEST


def overlap(a: str, b: str) -> float:
    return len(words(a) & words(b)) / len(words(a) | words(b))


def texts(prompts: list[Prompt]) -> list[str]:
    return [prompt.prompt[-1]["content"] for prompt in prompts]


@pytest.fixture(scope="module")
def sentiment() -> Environment:
    return load_environment("sentiment")


def test_sizes_and_shape(sentiment: Environment) -> None:
    assert (len(sentiment.train), len(sentiment.held_out)) == (128, 106)
    assert len({prompt.id for prompt in sentiment.train + sentiment.held_out}) == 234
    assert all([m["role"] for m in prompt.prompt] == ["user"] for prompt in sentiment.train + sentiment.held_out)
    assert sentiment.max_new_tokens == 32


def test_held_out_prompts_begin_with_those_of_earlier_versions(sentiment: Environment) -> None:
    """Recipes that take the first 40 keep their prompts, and so their numbers."""
    first = json.dumps([[prompt.id, prompt.prompt] for prompt in sentiment.held_out[:40]])
    assert hashlib.sha256(first.encode()).hexdigest()[:16] == "e1e9a3a14d3aa62c"
    train = json.dumps([[prompt.id, prompt.prompt] for prompt in sentiment.train])
    assert hashlib.sha256(train.encode()).hexdigest()[:16] == "d5232649880782d7"


def test_held_out_prompts_are_clusters_of_three_or_four(sentiment: Environment) -> None:
    clusters = Counter(map(sentiment.cluster_of, sentiment.held_out))
    assert len(clusters) == 34 and set(clusters.values()) == {3, 4}
    trained = set(map(sentiment.cluster_of, sentiment.train))
    assert len(trained) == 12 and not trained & set(map(sentiment.cluster_of, sentiment.held_out[40:]))
    assert all("one short sentence" in text for text in texts(sentiment.held_out[40:]))


def test_every_prompt_asks_for_little_and_says_so(sentiment: Environment) -> None:
    for text in texts(sentiment.train + sentiment.held_out):
        assert len(text) < 100, text
        assert re.search(r"\b(one|single|short|a)\b.*\b(sentence|line|headline)\b|one-(sentence|line)", text, re.I), (
            text
        )


def test_no_prompt_is_nearly_another(sentiment: Environment) -> None:
    train, held_out = texts(sentiment.train), texts(sentiment.held_out)
    assert len(set(train + held_out)) == 234
    across = max((overlap(a, b), a, b) for a in train for b in held_out)
    assert across[0] <= 0.5, across
    within = max((overlap(a, b), a, b) for i, a in enumerate(train) for b in train[:i])
    assert within[0] <= 0.6, within
    within = max((overlap(a, b), a, b) for i, a in enumerate(held_out) for b in held_out[:i])
    assert within[0] <= 0.5, within


def test_near_duplicates_would_be_seen() -> None:
    assert overlap("In one sentence, describe a cat at the vet.", "Write a single line about a cat at the vet.") == 1


def test_every_kind_of_training_prompt_is_held_out_too(sentiment: Environment) -> None:
    def kinds(prompts: list[Prompt]) -> set[str]:
        return {prompt.id.split("-")[0] for prompt in prompts}

    assert kinds(sentiment.train) == kinds(sentiment.held_out[:40])
    assert len(kinds(sentiment.train)) == 12


def test_prompts_come_as_packaged_data() -> None:
    file = Path(tdpo.environments.__file__).parent / "prompts" / "sentiment.jsonl"
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert all(set(record) == {"id", "split", "prompt", "theme"} for record in records)


def test_reward_is_vaders_compound(sentiment: Environment) -> None:
    prompts = sentiment.train[:3]
    good, bad, neutral = score(
        sentiment, prompts, ["VADER is smart, handsome, and funny.", "It was horrible.", "A table."]
    )
    assert good == pytest.approx(0.8316)  # the first example of VADER's own documentation
    assert bad == pytest.approx(-0.5423)
    assert neutral == 0.0


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no environment 'sentimnet': did you mean 'sentiment'\? known environments"):
        load_environment("sentimnet")
    with pytest.raises(ValueError, match=r"no environment 'zzz': known environments: brevity, .*, sentiment"):
        load_environment("zzz")


def test_missing_vader_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[eval\]"):
        load_environment("sentiment")


def environment(reward: Callable[..., Any]) -> Environment:
    return Environment("toy", PROMPTS, [], reward, "toy reward", 8, "")


PROMPTS = [Prompt("p0", "first", {"answer": 1}), Prompt("p1", "second", {"answer": 2, "hint": "h"})]


def test_reward_gets_trls_signature() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
        seen.update(prompts=prompts, completions=completions, **columns)
        return [1.0, 2.0]

    assert score(environment(reward), PROMPTS, ["a", "b"]) == [1.0, 2.0]
    assert seen == {
        "prompts": ["first", "second"], "completions": ["a", "b"], "answer": [1, 2], "hint": [None, "h"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "values", [[1, 2], (1.0, 2.0), np.array([1.0, 2.0], np.float32), torch.tensor([1.0, 2.0]), [True, np.int64(2)]]
)
def test_numbers_of_every_kind_become_floats(values: Any) -> None:
    rewards = score(environment(lambda **_: values), PROMPTS, ["a", "b"])
    assert rewards == [1.0, 2.0]
    assert all(type(reward) is float for reward in rewards)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "0.5", [1.0], torch.tensor(float("nan"))])
def test_what_is_no_finite_number_is_named(value: Any) -> None:
    with pytest.raises(RewardError) as caught:
        score(environment(lambda **_: [0.5, value]), PROMPTS, ["a", "the response"])
    message = str(caught.value)
    assert "'toy reward'" in message and "'p1'" in message and "'the response'" in message and repr(value) in message


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0]])
def test_wrong_length_is_named(values: list[float]) -> None:
    with pytest.raises(RewardError, match=rf"returned {len(values)} values for 2 completions \(prompts 'p0' to 'p1'\)"):
        score(environment(lambda **_: values), PROMPTS, ["a", "b"])


def test_a_reward_that_raises_names_the_completion_it_fails_on() -> None:
    def reward(completions: list[str], **_: Any) -> list[float]:
        return [1 / len(completion) for completion in completions]

    with pytest.raises(RewardError, match=r"raised ZeroDivisionError: .*\(prompt 'p1', response ''\)") as caught:
        score(environment(reward), PROMPTS, ["a", ""])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_reward_that_fails_on_the_batch_only_says_so() -> None:
    def reward(completions: list[str], **_: Any) -> list[float]:
        if len(completions) > 1:
            raise RuntimeError("too many")
        return [0.0]

    with pytest.raises(RewardError, match=r"too many \(prompts 'p0' to 'p1' together; each alone is fine\)"):
        score(environment(reward), PROMPTS, ["a", "b"])


def test_interrupting_a_reward_is_not_an_error_of_the_reward() -> None:
    def reward(**_: Any) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(environment(reward), PROMPTS, ["a", "b"])


def test_as_many_prompts_as_completions_and_none_is_fine() -> None:
    assert score(environment(lambda **_: pytest.fail("called")), [], []) == []
    with pytest.raises(ValueError, match="not 2 for 1"):
        score(environment(lambda **_: [1.0]), PROMPTS, ["a"])


class Leaving(BaseException):
    """What some libraries raise to get out of everything."""


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("bye"), Leaving("out"), GeneratorExit()])
def test_whatever_a_reward_raises_is_its_error(error: BaseException) -> None:
    def reward(**_: Any) -> list[float]:
        raise error

    with pytest.raises(RewardError, match=rf"reward 'toy reward' raised {type(error).__name__}: .*prompt 'p0'"):
        score(environment(reward), PROMPTS, ["a", "b"])


def test_an_exit_on_one_completion_only_names_it() -> None:
    def reward(completions: list[str], **_: Any) -> list[float]:
        if "b" in completions:
            sys.exit(0)
        return [1.0] * len(completions)

    with pytest.raises(RewardError, match=r"raised SystemExit: 0 \(prompt 'p1', response 'b'\)"):
        score(environment(reward), PROMPTS, ["a", "b"])


def test_an_exit_while_values_are_read_is_the_rewards_error() -> None:
    def reward(completions: list[str], **_: Any) -> Any:
        yield 1.0
        sys.exit(0)

    with pytest.raises(RewardError, match="raised SystemExit"):
        score(environment(reward), PROMPTS, ["a", "b"])
    assert score(environment(lambda **_: iter([1.0, 2.0])), PROMPTS, ["a", "b"]) == [1.0, 2.0]


def test_what_a_reward_does_to_its_arguments_changes_no_prompt() -> None:
    messages = [{"role": "user", "content": "question"}]
    given = Prompt("m", messages, {"answer": {"parts": [1, 2]}, "tags": ["x"]})
    seen: list[Any] = []

    def reward(prompts: list[Any], completions: list[str], answer: list[Any], tags: list[Any]) -> list[float]:
        seen.append((str(prompts), str(answer), str(tags)))
        prompts[0][0]["content"] = "something else"
        prompts[0].append({"role": "assistant", "content": completions[0]})
        assert prompts[1] == messages, "nor may one completion see what was done to another's"
        answer[0]["parts"].clear()
        tags[0].append("y")
        prompts.clear()
        completions.clear()
        return [1.0, 2.0]

    for _ in range(2):
        assert score(environment(reward), [given, given], ["a", "b"]) == [1.0, 2.0]
    assert seen[0] == seen[1]
    assert messages == [{"role": "user", "content": "question"}]
    assert given.columns == {"answer": {"parts": [1, 2]}, "tags": ["x"]}


def test_what_cannot_be_copied_is_handed_on() -> None:
    with Path(__file__).open(encoding="utf-8") as handle:
        got: list[Any] = []
        score(
            environment(lambda service, **_: [got.append(service) or 1.0]),
            [Prompt("p", "x", {"service": handle})],
            [""],
        )
        assert got == [[handle]]


async def async_reward(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (async_reward, "it is async; make it a plain function"),
        (lambda **_: {1.0: "a", 2.0: "b"}, r"it returned \{1.0: 'a', 2.0: 'b'\} where one number"),
        (lambda **_: {1.0, 2.0}, "it returned {1.0, 2.0} where one number"),
        (lambda **_: "12", "it returned '12' where one number"),
        (lambda **_: None, "it returned None where one number"),
        (lambda **_: 0.5, "it returned 0.5 where one number"),
        (lambda **_: torch.tensor(0.5), "raised TypeError"),
        (lambda **_: [10**400, 1], r"gave 1000.* it must be a finite number"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_not_one_number_a_completion_is_refused(reward: Any, reason: str) -> None:
    with pytest.raises(RewardError, match=reason):
        score(environment(reward), PROMPTS, ["a", "b"])


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (async_reward, "reward 'toy reward' is async"),
        (lambda prompts, completions: [], r"cannot be called; add \*\*columns to its arguments"),
        (lambda prompts, texts, **columns: [], "cannot be called; it gets prompts=, completions="),
    ],
)
def test_a_reward_that_cannot_be_called_is_found_without_a_call(reward: Any, reason: str) -> None:
    with pytest.raises(RewardError, match=reason):
        check_reward(environment(reward), PROMPTS, 8)
    check_reward(environment(lambda **_: pytest.fail("called")), PROMPTS, 8)
