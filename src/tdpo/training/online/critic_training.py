"""The critic in training: its gradients over processes, its part of the optimizer, and what checkpoints hold of it.

Under FSDP2 accelerate prepares one model with an optimizer of its weights alone. So the critic joins the optimizer
afterwards, and leaves it while accelerate writes or reads what it knows of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models import as_shard_of, is_shard, kept_whole, release
from ..resumption import reading
from ..sharding import average_gradients, shard_beside
from .critic import CRITIC_FILE, Critic

CRITIC_OPTIMIZER_FILE = "critic_optimizer.pt"  # in a checkpoint of sharded weights


def placed_critic(critic: Critic, trainer: Any) -> Any:
    """What is called for values: the critic, or it in a wrapper; its gradients are averages over processes.

    A body of its own is sharded as the policy is. The value head has D + 1 weights and is whole everywhere.
    """
    accelerator, processes = trainer.accelerator, trainer.args.world_size
    if accelerator.is_fsdp2:
        if critic.body is not None:
            critic.body = shard_beside(accelerator, critic.body)
        average_gradients(critic.head, processes)
        return critic
    return accelerator.prepare_model(critic) if processes > 1 else critic


def join_optimizer(critic: Critic, optimizer: Any, rate: float | None) -> None:
    """Give the critic's weights a group of their own, with the learning rate `rate` or its default one.

    Shards have another group than weights that are whole: an optimizer computes the tensors of a group together.
    """
    if critic.is_trained_by(optimizer):
        return
    trained = [p for p in critic.parameters() if p.requires_grad]
    for group in ([p for p in trained if not is_shard(p)], [p for p in trained if is_shard(p)]):
        if group:
            settings = {"lr": rate or critic.default_learning_rate, "weight_decay": 0.0}
            optimizer.add_param_group({"params": group, **settings})


def leave_optimizer(critic: Critic, optimizer: Any) -> None:
    """Take the critic's groups out of the optimizer; the state of its weights stays."""
    ours, inner = _ids(critic), _plain(optimizer)
    inner.param_groups = [group for group in inner.param_groups if not _holds(group, ours)]


@contextmanager
def only_part(optimizer: Any, critic: Critic, *, of_critic: bool) -> Iterator[Any]:
    """A context in which the optimizer has the critic's groups and their state only, or all others only.

    What is done to the part, such as loading it, is there afterwards.
    """
    ours, inner = _ids(critic), _plain(optimizer)
    groups, state = list(inner.param_groups), dict(inner.state)
    inner.param_groups = [group for group in groups if _holds(group, ours) == of_critic]
    inner.state = defaultdict(dict, {p: s for p, s in state.items() if (id(p) in ours) == of_critic})
    try:
        yield inner
    finally:
        rest = [group for group in groups if _holds(group, ours) != of_critic]
        inner.param_groups = [*rest, *inner.param_groups] if of_critic else [*inner.param_groups, *rest]
        others = {p: s for p, s in state.items() if (id(p) in ours) != of_critic}
        inner.state = defaultdict(dict, {**inner.state, **others})


def _plain(optimizer: Any) -> Any:
    """torch's optimizer within accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)


def _ids(critic: Critic) -> set[int]:
    return {id(p) for p in critic.parameters()}


def _holds(group: dict[str, Any], ids: set[int]) -> bool:
    return any(id(p) in ids for p in group["params"])


# ---- checkpoints ----


def save_critic(critic: Critic, checkpoint: Path, *, writes: bool) -> None:
    """Write the critic's weights, whole. All processes call it; the one that `writes` does."""
    release(critic)
    weights = {name: kept_whole(weight, keeps=writes) for name, weight in critic.state_dict().items()}
    if writes:
        torch.save(weights, checkpoint / CRITIC_FILE)


def load_critic(critic: Critic, checkpoint: Path) -> None:
    """Go on from `save_critic`. Raises DamagedCheckpoint where the file cannot be read."""
    with reading(checkpoint, CRITIC_FILE):
        saved = torch.load(checkpoint / CRITIC_FILE, weights_only=True, map_location="cpu")
        release(critic)
        own = critic.state_dict()
        critic.load_state_dict({n: as_shard_of(value, own[n]) if n in own else value for n, value in saved.items()})


def save_critic_optimizer(critic: Critic, optimizer: Any, checkpoint: Path, *, writes: bool) -> None:
    """As `save_critic`, the critic's part of the optimizer's state."""
    with only_part(optimizer, critic, of_critic=True) as part:
        content = _over_state(part.state_dict(), lambda value, _: kept_whole(value, keeps=writes))
    if writes:
        torch.save(content, checkpoint / CRITIC_OPTIMIZER_FILE)


def load_critic_optimizer(critic: Critic, optimizer: Any, checkpoint: Path) -> None:
    """Go on from `save_critic_optimizer`. Raises DamagedCheckpoint where the file cannot be read."""
    with reading(checkpoint, CRITIC_OPTIMIZER_FILE), only_part(optimizer, critic, of_critic=True) as part:
        weights = [p for group in part.param_groups for p in group["params"]]
        saved = torch.load(checkpoint / CRITIC_OPTIMIZER_FILE, weights_only=True, map_location="cpu")
        part.load_state_dict(_over_state(saved, lambda value, number: _laid_out(value, weights[number])))


def _laid_out(value: Tensor, weight: Tensor) -> Tensor:
    """A value of the optimizer's state, laid out as the weight where it has one number for each of its numbers."""
    return as_shard_of(value, weight) if value.shape == weight.shape else value


def _over_state(content: dict[str, Any], change: Callable[[Tensor, int], Tensor]) -> dict[str, Any]:
    """An optimizer's `state_dict` with every tensor of its state changed; `change` also gets the weight's number."""
    state = {
        number: {key: change(value, number) if isinstance(value, Tensor) else value for key, value in entry.items()}
        for number, entry in content["state"].items()
    }
    return {**content, "state": state}
