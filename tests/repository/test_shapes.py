"""The shapes in the signatures of the mathematics are true: right shapes pass a checker, wrong ones fail.

`import tdpo` must load torch and nothing else, so the library imports jaxtyping for type checkers only. Here the
annotations are evaluated with it, and a copy of every public function checks what it takes and what it gives.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import beartype
from torch import Tensor

import tdpo
from tdpo import Head, PairScores, PreferenceLoss, divergences, losses, policy_gradient
from tdpo import scores as scores_module
from tdpo import token_statistics as statistics_module
from tdpo.kl_choices import KLTerm
from tdpo.losses import LossBesideKL
from tdpo.policy_gradient import KLConstraint, PolicyLoss, ValueLoss

NAMES = {name: getattr(jaxtyping, name) for name in ("Bool", "Float", "Float64", "Int", "Int64")}
N, P, S, T, V, D, D_REF = 7, 3, 4, 6, 11, 5, 2


def checked(function: Callable[..., Any], **wrong: Any) -> Callable[..., Any]:
    """A copy of `function` that refuses what is not of the annotated shape; `wrong` replaces annotations."""
    assert isinstance(function, FunctionType)
    names = {**function.__globals__, **NAMES}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__, copy.__module__ = function.__kwdefaults__, function.__module__
    copy.__annotations__ = {**typing.get_type_hints(function, names), **wrong}
    return jaxtyping.jaxtyped(copy, typechecker=beartype)


def check_fields(instance: Any) -> None:
    """Raise where a field of a dataclass has not the annotated shape; a letter is one number in all of them."""
    kind = type(instance)
    hints = typing.get_type_hints(kind, {**inspect.getmodule(kind).__dict__, **NAMES})  # type: ignore[union-attr]
    names = [field.name for field in dataclasses.fields(kind)]
    code = compile(f"def takes({', '.join(names)}): ...", kind.__name__, "exec")
    scope: dict[str, Any] = {}
    exec(code, scope)
    scope["takes"].__annotations__ = {name: hints[name] for name in names}
    jaxtyping.jaxtyped(scope["takes"], typechecker=beartype)(**{name: getattr(instance, name) for name in names})


def logits() -> Tensor:
    return torch.randn(N, V)


def numbers(*shape: int) -> Tensor:
    return torch.rand(*shape)


TARGETS = torch.arange(N)
HEAD, OTHER_HEAD = Head(torch.randn(V, D), torch.randn(V)), Head(torch.randn(V, D_REF))
HIDDEN, OTHER_HIDDEN = torch.randn(N, D), torch.randn(N, D_REF)
SUMMARY = tdpo.summarize_reference(HIDDEN, HEAD, TARGETS)
STATS = tdpo.token_stats(logits(), logits(), TARGETS, extras=["reverse_kl", "policy_entropy"])
SCORES = PairScores(*(numbers(P) for _ in range(6)), *(torch.full((P,), 3) for _ in range(2)))
LOSS = PreferenceLoss(*(numbers(P) for _ in range(4)))
MASK = torch.ones(S, T, dtype=torch.bool)
IN_LOSS = KLConstraint("forward", "exact", "loss")

# A call with right shapes, and the position of an argument with one that must be refused in its place.
CALLS: dict[Callable[..., Any], tuple[tuple[Any, ...], dict[str, Any], tuple[int, Any]]] = {
    divergences.log_softmax: ((logits(),), {}, (0, TARGETS)),
    divergences.weighted_log_gap: ((logits(), logits(), logits()), {}, (2, numbers(N, V + 1))),
    divergences.kl_of_logp: ((logits(), logits()), {}, (1, numbers(V))),
    divergences.forward_kl: ((numbers(2, 3, V), numbers(2, 3, V)), {}, (1, numbers(2, V))),
    divergences.reverse_kl: ((logits(), logits()), {}, (0, numbers(N, V + 1))),
    divergences.jensen_shannon: ((logits(), logits(), 0.3), {}, (0, logits().long())),
    divergences.jensen_shannon_of_logp: ((logits(), logits(), 0.3), {}, (1, numbers(N, V + 1))),
    divergences.entropy: ((numbers(V),), {}, (0, torch.tensor(1.0))),
    divergences.sampled_kl: ((numbers(N), numbers(N), "k3"), {}, (1, numbers(N + 1))),
    statistics_module.token_stats: ((logits(), logits(), TARGETS), {}, (2, TARGETS.int())),
    statistics_module.linear_token_stats: (
        (HIDDEN, HEAD, OTHER_HIDDEN, OTHER_HEAD, TARGETS), {}, (2, numbers(N + 1, D_REF)),
    ),
    statistics_module.summarize_reference: ((HIDDEN, HEAD, TARGETS), {}, (0, HIDDEN[0])),
    statistics_module.frozen_head_token_stats: ((HIDDEN, HEAD, SUMMARY, TARGETS), {}, (3, TARGETS[1:])),
    scores_module.sum_by_sequence: ((numbers(N), TARGETS % (2 * P), P), {}, (1, TARGETS[1:])),
    scores_module.mean_over_tokens: ((numbers(P), TARGETS[:P]), {}, (1, numbers(P))),
    scores_module.score_pairs: ((STATS, TARGETS % (2 * P), P), {}, (1, numbers(N))),
    losses.dpo_loss: ((SCORES,), {"beta": 0.1}, (0, STATS)),
    losses.tdpo1_loss: ((SCORES,), {"beta": 0.1}, (0, STATS)),
    losses.tdpo2_loss: ((SCORES,), {"beta": 0.1, "alpha": 0.5}, (0, STATS)),
    losses.ipo_loss: ((SCORES,), {"beta": 0.1}, (0, STATS)),
    losses.sft_loss: ((SCORES,), {}, (0, STATS)),
    losses.simpo_loss: ((SCORES,), {"beta": 2.0, "gamma": 1.0}, (0, STATS)),
    policy_gradient.leave_one_out: ((numbers(2, 3),), {}, (0, numbers(2, 3, 1))),
    policy_gradient.group_relative: ((numbers(2, 3),), {"divide_by_std": True}, (0, numbers(2, 3, 1))),
    losses.f_dpo_loss: ((SCORES,), {"beta": 0.1, "divergence": "js"}, (0, STATS)),
    losses.zero_loss: ((SCORES,), {}, (0, STATS)),
    losses.beside_kl: ((LOSS, numbers(P), 0.3), {}, (1, numbers(P + 1, 2))),
    losses.pair_kl: ((STATS, TARGETS % (2 * P), P, KLTerm("reverse")), {}, (0, SCORES)),
    policy_gradient.gae: (
        (numbers(S, T), numbers(S, T), MASK), {"gamma": 1.0, "lam": 0.95}, (2, MASK.float()),
    ),
    policy_gradient.moments: ((numbers(S),), {}, (0, TARGETS)),
    policy_gradient.explained_variance: ((numbers(N), numbers(N)), {}, (1, numbers(N, 1))),
    policy_gradient.truncated_importance_weights: ((numbers(N), numbers(N), 2.0), {}, (1, numbers(1))),
    policy_gradient.clipped_policy_loss: ((numbers(N), numbers(N), numbers(N), 0.2), {}, (2, numbers(1))),
    policy_gradient.clipped_value_loss: ((numbers(N), numbers(N), numbers(N), 0.2), {}, (0, numbers(N, 1))),
    policy_gradient.kl_penalty: ((KLConstraint(), numbers(N), numbers(N)), {}, (1, numbers(N, 1))),
    policy_gradient.kl_loss: ((IN_LOSS, STATS, numbers(N)), {}, (2, numbers(N, 1))),
}  # fmt: skip


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
def test_right_shapes_pass(function: Callable[..., Any]) -> None:
    arguments, options, _ = CALLS[function]
    result = checked(function)(*arguments, **options)
    if dataclasses.is_dataclass(result):
        check_fields(result)


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
def test_a_wrong_shape_or_dtype_fails(function: Callable[..., Any]) -> None:
    arguments, options, (place, wrong) = CALLS[function]
    with pytest.raises(jaxtyping.TypeCheckError):
        checked(function)(*arguments[:place], wrong, *arguments[place + 1 :], **options)


def test_a_wrong_annotation_fails() -> None:
    float_of = jaxtyping.Float
    arguments, options, _ = CALLS[divergences.forward_kl]
    with pytest.raises(jaxtyping.TypeCheckError):
        checked(divergences.forward_kl, **{"return": float_of[Tensor, "*B V"]})(*arguments, **options)
    with pytest.raises(jaxtyping.TypeCheckError):
        checked(divergences.forward_kl, policy_logits=float_of[Tensor, "N V"])(*arguments, **options)
    with pytest.raises(jaxtyping.TypeCheckError):
        checked(scores_module.sum_by_sequence, **{"return": tuple[float_of[Tensor, " P"], float_of[Tensor, " N"]]})(
            *CALLS[scores_module.sum_by_sequence][0]
        )


FLAGS = torch.zeros(N, dtype=torch.bool)


@pytest.mark.parametrize(
    ("instance", "wrong"),
    [
        (HEAD, {}),
        (STATS, {"forward_kl": numbers(N + 1)}),
        (SUMMARY, {"offset": numbers(N)}),  # float32
        (SUMMARY, {"hidden": numbers(N, D + 1)}),
        (SCORES, {"chosen_sequence_kl": numbers(P, 1)}),
        (LOSS, {"margin": numbers(P + 1)}),
        (LossBesideKL(*(numbers(P) for _ in range(5))), {"kl_term": numbers(P + 1)}),
        (PolicyLoss(numbers(N), numbers(N), FLAGS), {"clipped": numbers(N)}),
        (ValueLoss(numbers(N), FLAGS), {"per_token": numbers(N + 1)}),
    ],
    ids=lambda value: type(value).__name__ if dataclasses.is_dataclass(value) else ", ".join(value),
)
def test_fields_have_the_annotated_shapes(instance: Any, wrong: dict[str, Any]) -> None:
    check_fields(instance)
    if wrong:
        with pytest.raises(jaxtyping.TypeCheckError):
            check_fields(dataclasses.replace(instance, **wrong))


def public_functions(module: Any) -> set[Callable[..., Any]]:
    """Functions of a module, its own or shown on its face, that take or give tensors."""
    own = {value for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")}
    return {f for f in own if f.__module__ == module.__name__ and "Tensor" in str(f.__annotations__)}


@pytest.mark.parametrize("module", [divergences, statistics_module, scores_module, losses, policy_gradient])
def test_every_public_function_is_called_here_and_has_shapes(module: Any) -> None:
    for function in public_functions(module):
        assert function in CALLS, f"{function.__name__} is public and takes tensors: give its shapes and call it here"
        for name, annotation in function.__annotations__.items():
            assert not str(annotation).startswith("Tensor"), f"{function.__name__}: {name} has no shape"


def imports_outside_type_checking(source: str) -> list[int]:
    """The lines of a module that import jaxtyping where the interpreter would."""
    tree = ast.parse(source)
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for inner in block.body
        for node in ast.walk(inner)
    }
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    return [node.lineno for node in imports if "jaxtyping" in ast.unparse(node) and id(node) not in guarded]


def test_jaxtyping_is_imported_for_type_checkers_only() -> None:
    files = {path: path.read_text("utf-8") for path in Path(tdpo.__file__).parent.rglob("*.py")}
    assert sum("jaxtyping" in source for source in files.values()) >= 5
    assert {path: lines for path, source in files.items() if (lines := imports_outside_type_checking(source))} == {}
    assert imports_outside_type_checking("if TYPE_CHECKING:\n    import jaxtyping\nimport jaxtyping") == [3]
