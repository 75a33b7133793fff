"""Where the reference's part of a step on pairs comes from: a cache made once, or the model in every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ...batches import PromptResponses, ResponseBatch, ResponseCollator, shared_length
from ...models import Reference, causal_lm_of, kept_reference
from ...models.adapter_bases import findable_base
from ...models.quantization import rounds_activations
from ...records.caches import LIMIT_VARIABLE, cache_folder, cache_limit, readable_bytes
from ...records.folders import require_writable
from ...reference_cache import CacheLayout, CachePlan, Field, Fingerprint, ReferenceCache, build_cache, model_digest
from ...scoring.head_path import HeadPath
from ...scoring.reference_source import CachedReference, LiveReference, ReferenceSource, copied_head
from ...token_statistics import Head
from ...token_statistics.cuda.choice import kernels_apply
from ..sharding import placed
from .config import TDPOConfig

AUTO_LIMIT = 20_000_000_000  # the most bytes that "auto" writes to a disk


@dataclass(frozen=True)
class CacheRequest:
    """All that is needed to plan and fill a cache for one trainer."""

    policy: Any
    start: Reference  # the reference as long as the policy is not trained
    path: HeadPath
    collator: ResponseCollator
    pairs: Sequence[PromptResponses]
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    precision: str  # of products, and what else they are rounded by, in words
    batch_size: int  # pairs in a forward of the reference
    about: Mapping[str, str]  # model, data and run in words

    def values(self, pairs: Sequence[PromptResponses]) -> dict[str, Tensor]:
        """Each field of the cache for the flat tokens of these pairs."""
        batch = ResponseBatch.from_inputs(self.collator(pairs), self.device)
        with torch.no_grad(), self.autocast():
            return dict(LiveReference(self.start, self.path).part(self.policy, batch).values)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """While it lasts, the policy and a second model are on the device and in evaluation mode; then as before."""
        models = [self.policy] if self.start.model in (None, self.policy) else [self.policy, self.start.model]
        before = [(model, next(model.parameters()).device, model.training) for model in models]
        try:
            for model in models:
                model.to(self.device).eval()
            yield
        finally:
            for model, device, training in before:
                model.to(device).train(training)

    def plan(self, root: Path, limit: int | None) -> CachePlan:
        """The plan of the cache in `root`, whose caches may take `limit` bytes together.

        The reference runs on the shortest pair, to show what the cache will hold.
        """
        example = self.values([min(self.pairs, key=shared_length)])
        fields = [Field(k, v.dtype, v.shape[1] if v.dim() == 2 else None) for k, v in example.items()]
        layout = CacheLayout.of(self.pairs, fields)
        content = ", ".join(f"{f.name} {str(f.dtype).removeprefix('torch.')} {f.width or 1}" for f in fields)
        fingerprint = Fingerprint(
            self._model_digest(), self._arithmetic(), layout.data_digest, content, self.collator.describe_rows()
        )
        return CachePlan(root, fingerprint, layout, self.about, limit)

    def _arithmetic(self) -> str:
        """Everything that decides how what the reference says is rounded, in words: where the policy's is rounded
        otherwise, the KL does not start at 0."""
        words = [self.precision]
        if self.device.type != "cpu":
            is_cuda = self.device.type == "cuda"
            words.append(torch.cuda.get_device_name(self.device) if is_cuda else self.device.type)
        if self.path.name == "frozen" and self.path.head is not None and kernels_apply(self.path.head().weight):
            words.append("kernels")
        return " ".join(words)

    def head_to_keep(self) -> Head | None:
        """The reference's head as it is now, in memory of its own, where the cache holds hidden states only."""
        return None if self.path.name == "frozen" else copied_head(self.start, self.device)

    def _model_digest(self) -> str:
        if self.start.kind == "adapter-off":
            prefix = getattr(self.policy.base_model, "prefix", "lora_")
            return model_digest(causal_lm_of(self.policy), adapter_prefix=prefix)
        return model_digest(causal_lm_of(self.start.model))


def about_cache(reference: Any, sources: Sequence[str], output_dir: str) -> dict[str, str]:
    """Whose reference, which data and which run a cache is made for, in words."""
    name = str(getattr(causal_lm_of(reference), "name_or_path", "") or "")
    return {
        "model": findable_base(name)[0] if name else "a model in memory",
        "data": ", ".join(sources) or "pairs in memory",
        "run": str(Path(output_dir).absolute()),
    }


def pair_reference_source(
    request: CacheRequest,
    args: TDPOConfig,
    train_pairs: int,
    *,
    sharded: bool,
    place: Callable[[Reference], Reference],
    say: Callable[[str], None],
    progress: Callable[[int, int, str], None] | None,
) -> ReferenceSource:
    """The reference of a run on pairs: a cache, or a model that stays what it is while the policy is trained.

    Args:
        request: what a cache would be made of.
        args: of the trainer; `args.reference` says which of the two, or leaves it open.
        train_pairs: pairs of an epoch.
        sharded: whether the model's weights are sharded over processes.
        place: brings a model that runs in every step to where the policy is computed.
        say: told what is done, in sentences.
        progress: called while a cache is made.

    Raises:
        ValueError, OSError: as `cache_of`.
    """
    cache = cache_of(request, args, train_pairs, sharded=sharded, say=say, progress=progress)
    if cache is None:
        return LiveReference(place(kept_reference(request.policy, request.start)), request.path)
    # An adapter that is switched off is there in any case, for pairs that the cache does not know.
    live = LiveReference(request.start, request.path) if request.start.kind == "adapter-off" else None
    return CachedReference(cache, request.head_to_keep(), live)


def cache_root(args: TDPOConfig) -> Path:
    """The folder of all caches."""
    return Path(args.reference_cache_dir).expanduser() if args.reference_cache_dir else cache_folder() / "reference"


def cache_of(
    request: CacheRequest,
    args: TDPOConfig,
    train_pairs: int,
    *,
    sharded: bool,
    say: Callable[[str], None],
    progress: Callable[[int, int, str], None] | None,
) -> ReferenceCache | None:
    """The cache that `args.reference` names, or that "auto" chooses; None where the model runs in every step.

    Raises:
        ValueError: "cache", but the statistics need full logits.
        OSError: "cache", but the disk cannot hold it; or a folder for it is named that cannot be written to.
    """
    if args.reference == "model" or not request.pairs:
        return None
    if (obstacle := _obstacle_to_cache(request)) is not None:
        if args.reference == "cache":
            raise ValueError(f"reference='cache' is not possible: {obstacle}. Use 'auto' or 'model'.")
        return None
    with request.ready():
        # A folder of the user's own has no limit: it may be on a disk that is there for caches.
        plan = request.plan(cache_root(args), None if args.reference_cache_dir else cache_limit())
        if args.reference_cache_dir is not None and not plan.is_finished:
            require_writable(plan.root, "reference_cache_dir")
        if args.reference == "auto":
            mine = reason_against(plan, planned_visits(args, train_pairs), train_pairs, sharded)
            # The disk may look different to another process, and all must do the same.
            [reason] = broadcast_object_list([mine])
            if reason:
                say(f"The reference runs in every step: {reason}.")
                return None
        return build_cache(
            plan,
            request.values,
            batch_size=request.batch_size,
            rank=args.process_index,
            processes=args.world_size,
            say=say,
            progress=progress,
        )


def _obstacle_to_cache(request: CacheRequest) -> str | None:
    """Why no cache can hold what this reference says in a training step; None where one can."""
    if request.path.name == "logits":
        return f"a cache would have to hold full logits: {request.path.why}"
    if rounds_activations(request.start.model or request.policy):
        return (
            "the reference's eight-bit layers round activations, so what it says of a token changes with the batch, "
            "and the KL would not start at 0"
        )
    return None


def reason_against(plan: CachePlan, visits: float, train_pairs: int, sharded: bool) -> str | None:
    """Why "auto" keeps the model although a cache is possible, or None where the cache is the better choice."""
    if sharded:
        return "the model is sharded over processes"
    if plan.is_finished:
        return None
    try:
        require_writable(plan.root, "TDPO_CACHE")
    except OSError as error:
        return f"a cache cannot be kept ({error})"
    if plan.layout.bytes > AUTO_LIMIT:
        return f"a cache would hold {plan.size()}; reference='cache' makes it all the same"
    if not plan.is_within_limit:
        limit = f"{readable_bytes(plan.limit or 0)} ({LIMIT_VARIABLE})"
        return f"a cache ({plan.size()}) would exceed the limit of all caches, {limit}"
    if not plan.fits:
        return f"the disk cannot hold a cache ({plan.size()})"
    if visits < train_pairs:
        return f"the run uses {visits:.0f} of {train_pairs} pairs, and a cache would run the reference over all"
    return None


def planned_visits(args: TDPOConfig, train_pairs: int) -> float:
    """Pairs that the run will use, repetitions counted."""
    if args.max_steps > 0:
        per_update = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return float(args.max_steps * per_update)
    return float(args.num_train_epochs * train_pairs)


def reference_source_of(
    trainer: Any,
    start: Reference,
    path: HeadPath,
    pairs: Sequence[PromptResponses],
    say: Callable[[str], None],
    progress: Callable[[int, int, str], None] | None,
) -> ReferenceSource:
    """The reference of a trainer on these pairs, as its arguments want it; see `pair_reference_source`."""
    request = CacheRequest(
        policy=trainer.model,
        start=start,
        path=path,
        collator=trainer.collator,
        pairs=pairs,
        device=trainer.args.device,
        autocast=trainer.accelerator.autocast,
        precision=str(trainer.accelerator.mixed_precision) + (" liger" if trainer.args.use_liger_kernel else ""),
        # Without a backward pass twice the pairs of a training step need less memory than one.
        batch_size=trainer.args.precompute_ref_batch_size or 2 * trainer.args.per_device_train_batch_size,
        about=about_cache(start.model or trainer.model, trainer._datasets.sources, str(trainer.args.output_dir)),
    )
    train: Any = trainer.train_dataset
    return pair_reference_source(
        request,
        trainer.args,
        len(pairs) if train is None else len(train),
        sharded=trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled,
        place=partial(placed, trainer),
        say=say,
        progress=progress,
    )
