"""The exact benchmark: closed forms against searches, measures against brute force, learners against their optimum."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from itertools import product

import pytest
import torch
from scipy.optimize import brentq, minimize
from torch import Tensor

from tdpo.exact import benchmark, optima, searching
from tdpo.exact.compared_methods import METHODS, path
from tdpo.exact.learning import Constraint, learn_from_pairs, learn_from_rewards
from tdpo.exact.measures import distance, measure
from tdpo.exact.objectives import all_pairs, pair_objective, sampled_pairs
from tdpo.exact.settings import Settings
from tdpo.exact.tabular_problems import SHAPES, Problem, make_problem
from tdpo.exact.trees import Tree

TOKEN, TREE = Tree(7), Tree(3, 3)
KINDS = [(TOKEN, shape, "rare") for shape in SHAPES] + [(TREE, shape, "common") for shape in SHAPES]


def gap(problem: Problem, first: Tensor, second: Tensor) -> float:
    """Total variation between the responses of two policies."""
    logp = problem.tree.response_logp
    return float(distance(logp(first), logp(second)))


def random_policy(problem: Problem, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(problem.reference.shape, generator=generator, dtype=torch.float64)
    return (problem.reference + noise).log_softmax(-1)


def gradient(problem: Problem, method: str, strength: float, node_logp: Tensor) -> Tensor:
    logits = node_logp.clone().requires_grad_()
    loss = pair_objective(problem, all_pairs(problem), method, strength)(logits)
    return torch.autograd.grad(loss, logits)[0]


# ---- trees and measures ----


def test_a_tree_knows_its_responses() -> None:
    problem = make_problem(TREE, "peaked", "equal")
    policy = random_policy(problem)
    for index, response in enumerate(product(range(3), repeat=3)):
        nodes = [0, 1 + response[0], 4 + 3 * response[0] + response[1]]
        expected = sum(policy[node, symbol] for node, symbol in zip(nodes, response, strict=True))
        assert torch.isclose(TREE.response_logp(policy)[index], torch.as_tensor(expected))
    assert math.isclose(float(TREE.response_logp(policy).exp().sum()), 1.0)
    assert torch.allclose(TREE.from_responses(TREE.response_logp(policy).exp()), policy)


def test_a_tree_travels_without_its_tables() -> None:
    tree = Tree(3, 3)
    tree.response_logp(make_problem(tree, "flat", "equal").reference)
    assert len(pickle.dumps(tree)) < 100 and pickle.loads(pickle.dumps(tree)) == tree


def test_measures_are_what_their_names_say() -> None:
    problem = make_problem(TREE, "multimodal", "common")
    policy = random_policy(problem)
    found = {key: float(value) for key, value in measure(problem, policy).items()}
    p = TREE.response_logp(policy).exp().tolist()
    q, r = problem.reference_logp.exp().tolist(), problem.rewards.tolist()
    mean = sum(a * b for a, b in zip(p, r, strict=True))
    good = [a for a, b in zip(p, r, strict=True) if b > 0]
    expected = {
        "reward": mean,
        "reward_variance": sum(a * (b - mean) ** 2 for a, b in zip(p, r, strict=True)),
        "forward_kl": sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)),
        "reverse_kl": sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)),
        "entropy": -sum(a * math.log(a) for a in p),
        "mode_coverage": sum(1 - (1 - a) ** 16 for a in good) / len(good),
        "effective_modes": math.exp(-sum(a / sum(good) * math.log(a / sum(good)) for a in good)),
    }
    assert found == pytest.approx(expected, abs=1e-12)


def test_rewards_name_the_modes_that_are_worth_more() -> None:
    for shape, (reward, sign) in product(SHAPES, {"common": 1, "rare": -1, "equal": 0}.items()):
        problem = make_problem(TOKEN, shape, reward)
        order = problem.reference_logp[problem.modes].argsort(descending=True, stable=True)
        worth = problem.rewards[problem.modes][order]
        assert bool((worth.diff().sign() == -sign).all()) and float(problem.rewards.max()) == 1.0
    with pytest.raises(ValueError, match="not round, equal"):
        make_problem(TOKEN, "round", "equal")


# ---- optima ----


def by_search(problem: Problem, value: Callable[[Tensor], Tensor]) -> Tensor:
    """The node_logp of the largest `value` of node_logp, by a quasi-Newton method that knows no closed form."""

    def negative(flat: object) -> tuple[float, object]:
        logits = torch.tensor(flat, dtype=torch.float64).reshape(problem.reference.shape).requires_grad_()
        loss = -value(logits.log_softmax(-1))
        return float(loss.detach()), torch.autograd.grad(loss, logits)[0].flatten().numpy()

    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000, "maxfun": 20000}
    found = minimize(negative, problem.reference.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).reshape(problem.reference.shape).log_softmax(-1)


@pytest.mark.parametrize("tree", [TOKEN, TREE])
def test_closed_forms_are_what_a_search_finds(tree: Tree) -> None:
    problem = make_problem(tree, "peaked", "rare")
    for direction, closed in (
        ("reverse_kl", optima.kl_in_reward(problem, 0.3)),
        ("forward_kl", optima.forward_kl_of_responses(problem, 0.3)),
    ):
        searched = by_search(
            problem, lambda p, d=direction: measure(problem, p)["reward"] - 0.3 * measure(problem, p)[d]
        )  # type: ignore[misc]
        assert gap(problem, closed, searched) < 1e-5, direction


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_kl_in_the_loss_makes_every_node_its_own_problem(direction: str) -> None:
    """What a policy gradient does: below a node the policy is what it is, and its KL there costs the node nothing."""
    problem = make_problem(TREE, "multimodal", "common")
    closed = optima.kl_in_loss(problem, direction, 0.2)
    logits = closed.clone().requires_grad_()
    logp = logits.log_softmax(-1)
    responses = TREE.response_logp(logp)
    kl = TREE.along_path(
        (logp.exp() * (logp - problem.reference)).sum(-1)
        if direction == "reverse"
        else (problem.reference.exp() * (problem.reference - logp)).sum(-1)
    )
    # The score function carries the reward; the KL is taken at the nodes that the policy, held fixed, comes through.
    surrogate = (responses.exp() * problem.rewards).sum() - 0.2 * (responses.exp().detach() * kl).sum()
    assert float(torch.autograd.grad(surrogate, logits)[0].abs().max()) < 1e-9


@pytest.mark.parametrize(("tree", "shape", "reward"), KINDS)
def test_pairs_without_end_lead_to_the_closed_forms(tree: Tree, shape: str, reward: str) -> None:
    problem = make_problem(tree, shape, reward)
    for method, closed in (
        ("dpo", optima.dpo(problem, 1.5)),
        ("f_dpo_forward", optima.f_dpo_forward(problem, 1.5)),
        ("f_dpo_js", optima.f_dpo_js(problem, 1.5)),
        ("sft_forward", optima.anchored_imitation(problem, 1.5)),
    ):
        assert float(gradient(problem, method, 1.5, closed).abs().max()) < 1e-12, method
        searched = searching.minimum(pair_objective(problem, all_pairs(problem), method, 1.5), problem.reference)
        assert gap(problem, closed, searched) < 1e-6, method


def test_a_search_that_ends_nowhere_says_so() -> None:
    with pytest.raises(RuntimeError, match="largest entry is still"):
        searching.minimum(lambda logits: logits.log_softmax(-1)[..., 0, 0], torch.zeros(1, 3, dtype=torch.float64))


def test_tdpo2_ends_where_its_gradient_vanishes_and_not_where_its_value_is_least() -> None:
    problem = make_problem(TREE, "peaked", "common")
    objective = pair_objective(problem, all_pairs(problem), "tdpo2", 1.0)
    fixed = searching.root_of_gradient(objective, problem.reference)
    assert float(gradient(problem, "tdpo2", 1.0, fixed).abs().max()) < 1e-8
    # The value is that of TDPO1 with α·D in D's place, whose own gradient does not vanish there: less is to be had.
    step, lowest = 0.01, float(objective(fixed))
    nearby = [random_direction(problem, seed) * step for seed in range(20)]
    assert min(float(objective(fixed + move)) for move in nearby) < lowest - 1e-6


def random_direction(problem: Problem, seed: int) -> Tensor:
    return torch.randn(problem.reference.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_tdpo1_is_dpo_where_pairs_share_their_only_state() -> None:
    for tree, is_same in ((TOKEN, True), (TREE, False)):
        problem = make_problem(tree, "multimodal", "rare")
        tdpo1 = searching.minimum(pair_objective(problem, all_pairs(problem), "tdpo1", 1.5), problem.reference)
        assert (gap(problem, tdpo1, optima.dpo(problem, 1.5)) < 1e-6) == is_same
        policy = random_policy(problem)
        losses = [pair_objective(problem, all_pairs(problem), name, 1.5)(policy) for name in ("dpo", "tdpo1")]
        assert math.isclose(*map(float, losses), rel_tol=1e-12) == is_same


def test_the_place_of_the_kl_matters_on_trees_only() -> None:
    for tree, is_same in ((TOKEN, True), (TREE, False)):
        problem = make_problem(tree, "peaked", "equal")
        apart = gap(problem, optima.kl_in_reward(problem, 0.3), optima.kl_in_loss(problem, "reverse", 0.3))
        assert (apart < 1e-12) if is_same else (apart > 1e-2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tree", [TOKEN, TREE])
def test_with_equal_rewards_no_direction_can_win(tree: Tree, shape: str) -> None:
    """Reward has two values, so either optimum over responses scales the good ones together: one policy a reward."""
    found = {}
    for reward in ("equal", "rare"):
        problem = make_problem(tree, shape, reward)
        reverse = optima.kl_in_reward(problem, 0.3)
        target = float(measure(problem, reverse)["reward"])

        def beyond(log_c: float, problem: Problem = problem, target: float = target) -> float:
            policy = optima.forward_kl_of_responses(problem, math.exp(log_c))
            return float(measure(problem, policy)["reward"]) - target

        strength = math.exp(brentq(beyond, math.log(1e-3), math.log(100.0), xtol=1e-13))
        found[reward] = gap(problem, reverse, optima.forward_kl_of_responses(problem, strength))
    assert found["equal"] < 1e-8 and found["rare"] > 1e-3


def test_every_method_moves_away_from_the_reference_as_its_hold_loosens() -> None:
    problem = make_problem(Tree(3, 2), "multimodal", "common", Settings(strengths=4))
    for name in METHODS:
        kls = [float(measure(problem, node_logp)["reverse_kl"]) for _, node_logp in path(problem, name)]
        assert kls == sorted(kls) and kls[-1] > 1.5 * kls[0] >= 0, name


def test_best_of_n_is_what_drawing_gives() -> None:
    problem = make_problem(TOKEN, "multimodal", "common")
    drawn = torch.multinomial(
        problem.reference_logp.exp().expand(200_000, -1), 4, True, generator=torch.Generator().manual_seed(0)
    )
    best = drawn.gather(1, problem.rewards[drawn].argmax(1, keepdim=True)).flatten()
    counted = torch.bincount(best, minlength=7) / len(best)
    assert float((counted - optima.best_of(problem, 4).exp()[0]).abs().max()) < 4e-3


# ---- learners ----


def test_a_sample_of_pairs_approaches_all_pairs() -> None:
    problem = make_problem(TOKEN, "multimodal", "rare")
    few, many = (sampled_pairs(problem, n, 20, torch.Generator().manual_seed(0)) for n in (50, 50_000))
    everything = all_pairs(problem)
    assert torch.allclose(many.sum((1, 2)), torch.ones(20, dtype=torch.float64))
    assert (
        float((many - everything).abs().sum((1, 2)).mean()) < 0.05 < float((few - everything).abs().sum((1, 2)).mean())
    )


def learned(problem: Problem, learner: str, direction: str, strength: float, scored: int) -> Tensor:
    common = {"scored": scored, "rates": torch.full((20,), 0.1, dtype=torch.float64), "seed": 0}
    if learner in ("ppo", "rloo"):
        return learn_from_rewards(problem, learner, Constraint(direction, "loss"), strength, **common)  # type: ignore[arg-type]
    return learn_from_pairs(problem, learner, strength, **common)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("learner", "direction", "strength"),
    [("ppo", "forward", 0.3), ("ppo", "reverse", 0.3), ("rloo", "forward", 0.3), ("dpo", "reverse", 3.0),
     ("tdpo2", "forward", 3.0), ("f_dpo_forward", "forward", 3.0)],
)  # fmt: skip
def test_learners_come_closer_to_their_own_optimum_with_more_data(
    learner: str, direction: str, strength: float
) -> None:
    problem = make_problem(TOKEN, "multimodal", "rare")
    name = f"rewards_{direction}_loss" if learner in ("ppo", "rloo") else learner
    optimum = METHODS[name].optimum(problem, strength, problem.reference)
    few, many = (
        benchmark._distances(problem, optimum, learned(problem, learner, direction, strength, n)).mean()
        for n in (50, 5000)
    )
    assert many < 0.06 and many < few / 2


def test_a_wrong_direction_ends_elsewhere() -> None:
    problem = make_problem(TOKEN, "peaked", "rare")
    policy = learned(problem, "ppo", "forward", 0.15, 5000)
    right, wrong = (optima.kl_in_loss(problem, direction, 0.15) for direction in ("forward", "reverse"))
    near, far = (float(benchmark._distances(problem, optimum, policy).mean()) for optimum in (right, wrong))
    assert far > 4 * near


def test_rates_belong_to_their_studies() -> None:
    problem = make_problem(TOKEN, "peaked", "equal")
    rates = torch.tensor([0.0, 0.1], dtype=torch.float64)
    policy = learn_from_pairs(problem, "dpo", 1.0, scored=50, rates=rates, seed=0)
    assert torch.allclose(policy[0], problem.reference) and not torch.allclose(policy[1], problem.reference)


# ---- tables ----

SMALL = Settings(
    trees=(Tree(2),), finite_trees=(Tree(2),), strengths=4, gains=(0.5,), studies=4, trial_studies=2, pair_updates=5,
    rollouts=((50, 10),),
)  # fmt: skip


def test_matched_rows_have_what_they_are_matched_on() -> None:
    tables = benchmark.run_problem(
        make_problem(TOKEN, "peaked", "rare", Settings(finite_trees=(), strengths=6, gains=(0.8,)))
    )
    assert tables["finite"] == [] and len(tables["matched"]) > 15
    for row in tables["matched"]:
        assert row[row["matched"]] == pytest.approx(row["target"], abs=2e-5)
    # DPO with a reverse KL in its loss jumps over all of them, and says nothing there.
    assert [row["matched"] for row in tables["matched"] if row["method"] == "dpo_reverse"] == []


def test_a_problem_gives_the_same_rows_twice() -> None:
    problem = make_problem(Tree(2), "multimodal", "rare", SMALL)
    first, second = benchmark.run_problem(problem), benchmark.run_problem(problem)
    assert first == second and first["finite"]
    text = benchmark.table_text(first["finite"])
    assert text.splitlines()[0].startswith(
        "tree,shape,rewards,method,learner,strength,scored,rate,distance,distance_sd"
    )
    assert text.count("\n") == len(first["finite"]) + 1
