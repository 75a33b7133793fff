"""Recipes that nobody writes by hand: bombs, control characters, numbers beyond all reason, files that are none."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tdpo.config import RecipeError, load_recipe, load_study
from tdpo.config._sections import LARGEST_INTEGER, why_no_divisor
from tdpo.config._yaml import YamlProblem, read_yaml
from tdpo.guards.documents import MAX_BYTES, MAX_DEPTH, MAX_VALUES, DocumentError, load_yaml, parse_json
from tdpo.guards.texts import printable

MINIMAL = {"run_dir": "runs/x", "data": {"train": "pairs.jsonl"}}
LETTERS = "abcdefghijkl"


def bomb(first: str, layer: Callable[[str], str]) -> str:
    """A document of a few hundred bytes in which each line stands for nine times the one before it."""
    lines = [f"a: &a {first}"]
    for before, letter in pairwise(LETTERS):
        lines.append(f"{letter}: &{letter} {layer(', '.join([f'*{before}'] * 9))}")
    return "\n".join(lines) + "\n"


BOMBS = {
    "lists": bomb("[x, x]", lambda aliases: f"[{aliases}]"),
    "merged keys": bomb("{k: 1}", lambda aliases: f"{{<<: [{aliases}]}}"),
    "values": bomb("{k: 1}", lambda alias: "{" + ", ".join(f"k{i}: {alias.split(',')[0]}" for i in range(9)) + "}"),
}


def refusal(source: Any, *overrides: str) -> str:
    """Why the recipe is refused, which must be told in a moment and without a word that reaches a terminal's cursor."""
    started = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, overrides)
    assert time.monotonic() - started < 3
    text = str(caught.value)
    assert printable(text) == text
    return text


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return path

    return write


@pytest.mark.parametrize("name", BOMBS)
def test_aliases_of_aliases_are_counted_and_not_expanded(written: Callable[[str], Path], name: str) -> None:
    assert len(BOMBS[name]) < 1500
    text = refusal(written(BOMBS[name]))
    assert "recipe.yaml: stands for " in text and f"at most {MAX_VALUES:,} are" in text
    with pytest.raises(DocumentError, match="stands for"):
        load_yaml(BOMBS[name])


def test_values_up_to_the_limit_are_read() -> None:
    assert len(read_yaml(f"a: [{'1, ' * (MAX_VALUES - 4)}1]")[0]["a"]) == MAX_VALUES - 3
    with pytest.raises(YamlProblem, match=f"stands for {MAX_VALUES + 1:,} values"):
        read_yaml(f"a: [{'1, ' * (MAX_VALUES - 3)}1]")


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 200, "{a: " * 200, "- " * 200 + "1", "a0: &a0 [1]\n" + "".join(
        f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(MAX_DEPTH)
    )],
)  # fmt: skip
def test_nesting_ends_in_a_sentence_with_its_line(written: Callable[[str], Path], text: str) -> None:
    assert f"is nested deeper than {MAX_DEPTH} levels" in refusal(written(text))
    with pytest.raises(DocumentError, match="nested deeper"):
        load_yaml(text)


def test_nesting_up_to_the_limit_is_read() -> None:
    inside = MAX_DEPTH - 1  # the number in the middle is a level of its own
    value = read_yaml("[" * inside + "1" + "]" * inside)[0]
    for _ in range(inside):
        (value,) = value
    assert value == 1


def test_a_file_that_is_too_long_is_not_read_to_its_end(written: Callable[[str], Path]) -> None:
    assert f"is {MAX_BYTES + 2:,} bytes long; at most {MAX_BYTES:,}" in refusal(written("#" * (MAX_BYTES + 2)))
    assert "characters long" in refusal(MINIMAL, "run_dir=" + "x" * (MAX_BYTES + 1))
    if os.path.exists("/dev/zero"):  # noqa: PTH110
        assert "does not end" in refusal("/dev/zero")


def test_what_an_alias_repeats_is_changed_in_one_place_only(written: Callable[[str], Path]) -> None:
    path = written("run_dir: a\ndata: {train: p}\nsampling: &s {batch_size: 3}\nevaluation: *s\n")
    recipe = load_recipe(path, ["sampling.batch_size=9"])
    assert (recipe.sampling.batch_size, recipe.evaluation.batch_size) == (9, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run_dir: a\x1b[31m", r":1: is not valid YAML: the character \x1b may not stand in YAML"),
        ("a: 1\nb: \0", r":2: is not valid YAML: the character \x00"),
        ('run_dir: "\\e[31m"\n', r":1: run_dir: holds the control character \x1b at place 1; expected plain text"),
        ('run_dir: "a\\0"\n', r"run_dir: holds the control character \x00 at place 2"),
        ('run_dir: "a\\nb"\n', r"run_dir: holds the control character \x0a at place 2"),
        ('run_dir: "\\ud800"\n', r"run_dir: holds half a character (a lone surrogate) \ud800"),
        ('model: {lora: {targets: ["q\\e"]}}', r"model.lora.targets: holds the control character \x1b"),
        ('"\\e[2Jkey": 1\n', r"\x1b[2Jkey: unknown key"),
        ("a: !!timestamp x", "holds a value that its tag does not fit"),
        ("a: !!bool x", "holds a value that its tag does not fit"),
        ("a: !!float x", "holds a value that its tag does not fit"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor for the tag"),
        ("seed: " + "9" * 5000, ":1: a whole number of 5000 digits; at most 400 are read"),
        ("seed: 1e400", ":1: 1e400 is beyond the largest number there is"),
        ("training: {batch_size: 99999999999999}", "training.batch_size: is 1e+14; whole numbers go up to 4294967296"),
        ("training: {epochs: " + "9" * 400 + "}", "training.epochs: expected a number > 0, or null, got 999"),
        ("run_dir: &a [*a]", "contains itself"),
    ],
)  # fmt: skip
def test_what_no_person_writes_is_named(written: Callable[[str], Path], text: str, message: str) -> None:
    assert message in refusal(written(text))


@pytest.mark.parametrize(
    "seed", [10**5000, float("inf"), -(10**5000), "\ud800", b"\xff", {1}, object()], ids=lambda v: type(v).__name__
)
def test_mappings_of_anything(seed: Any) -> None:
    assert "seed: expected a whole number" in refusal({**MINIMAL, "seed": seed})
    assert "model.dtype: " in refusal({**MINIMAL, "model": {"dtype": seed}})


def test_a_long_override_is_shown_by_its_beginning() -> None:
    assert len(refusal(MINIMAL, "seed=" + "9" * 100_000)) < 500
    assert r"override '\x1b[31mx=1': \x1b[31mx: unknown key" in refusal(MINIMAL, "\x1b[31mx=1")


def test_many_problems_are_explained_up_to_a_hundred() -> None:
    text = refusal({**MINIMAL, **{f"key_{number}": 1 for number in range(2000)}})
    assert "has 1900 more problems" in text and text.count("unknown key") == 100


def test_names_that_no_file_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").mkdir()
    assert "recipe.yaml: cannot be read: Is a directory" in refusal(tmp_path)
    assert "File name too long" in refusal(tmp_path / ("n" * 300))
    assert "cannot be read: embedded null byte" in refusal(f"{tmp_path}/a\0b")

    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", "secret.yaml")

    monkeypatch.setattr(Path, "open", refused)
    assert "secret.yaml: cannot be read: Permission denied" in refusal("secret.yaml")


@pytest.mark.parametrize("whole", [1, 2, 12, 97, 360, LARGEST_INTEGER])
def test_the_nearest_divisor_is_found_without_counting_up_to_it(whole: int) -> None:
    for part in {1, 5, whole // 2 + 1, whole - 1, whole + 3} - {0}:
        reason = why_no_divisor(part, "key", whole)
        if whole % part == 0:
            assert reason is None
        elif whole < 1000:
            below = max(d for d in range(1, part + 1) if whole % d == 0)
            assert str(reason).endswith(f"the nearest below is {below}")


def test_deep_json_is_a_sentence() -> None:
    for depth in (101, 100_000):
        with pytest.raises(DocumentError, match="at most 100 levels are read"):
            parse_json("[" * depth + "]" * depth)
        with pytest.raises(DocumentError, match="at most 100 levels are read"):
            parse_json(b'{"a":' * depth + b"1" + b"}" * depth)
    assert parse_json("[" * 100 + "]" * 100)
    assert parse_json('["' + "[" * 500 + '"]') == ["[" * 500]
    assert len(parse_json("[" + "[1]," * 5000 + "1]")) == 5001


# Anything: every failure is an error of ours, in a moment

FAST = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
scraps = st.sampled_from(
    ["a", "&a ", "*a", "[", "]", "{", "}", ": ", "- ", "\n", "  ", "<<: ", "!!set ", "!!binary ", "!!omap ", "!x ",
     "? ", "| ", "> ", '"', "'", "\\", "\\e", "\\ud800", "#", "%", "1e999", "0", "-1", ".nan", "~", "true", "---\n",
     "\0", "\x1b", "\udc80", "\u2028", "run_dir: x\n", "data: {train: p}\n", "training: {", "batch_size: ", "loss",
     "ppo: {}\n"]
)  # fmt: skip


@FAST
@given(st.lists(scraps, max_size=25).map("".join) | st.text(max_size=30))
@example("? [a]\n: 1")
@example("!!python/name:os.system ")
def test_any_text_is_read_or_refused_by_us(text: str) -> None:
    try:
        read_yaml(text)
    except YamlProblem as problem:
        assert problem.reason


@FAST
@given(
    st.sampled_from(["seed", "loss.beta", "model.name", "model.lora.targets", "training.batch_size", "data", "run_dir",
                     "training.micro_batch_size", "training.report_to", "arms", "environment.name", ""])
    | st.text(max_size=6),
    st.lists(scraps, max_size=8).map("".join) | st.integers().map(str) | st.floats().map(str) | st.text(max_size=8),
)  # fmt: skip
def test_any_override_is_taken_or_refused_by_us(key: str, value: str) -> None:
    for load in (load_recipe, load_study):
        try:
            load(MINIMAL, [f"{key}={value}"])
        except RecipeError as error:
            assert printable(str(error)) == str(error)


@FAST
@given(st.binary(max_size=40) | st.lists(scraps, max_size=25).map("".join).map(lambda t: t.encode(errors="replace")))
def test_any_file_is_read_or_refused_by_us(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    try:
        load_recipe(path)
    except RecipeError as error:
        assert "any.yaml" in str(error)
