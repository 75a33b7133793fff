"""The fields of TRL's `DPOConfig` that `TDPOConfig` understands beside its own, and what becomes of them.

`config/trl_names.py` has the table. A field that is left out is None, which changes nothing.
"""

# ruff: noqa: RUF009  # _field calls dataclasses.field, which ruff does not see

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...config import trl_names
from ...config.schema import Loss, ReferenceSource
from ..arguments import Arguments


def _field(name: str) -> Any:
    taken = trl_names.TAKEN.get(name)
    if taken is not None:
        effect = f"sets {taken.effect}"
    else:
        same = " and ".join(map(repr, trl_names.FIXED[name].same)) or "leaving it out"
        effect = f"only {same} means what is done here; the rest is refused"
    return field(default=None, metadata={"help": f"A name of TRL's DPOConfig; {effect}.".replace("%", "%%")})


@dataclass
class TRLArguments(Arguments):
    """The names of TRL's `DPOConfig`, of 1.16 and some of earlier versions; None where one is left out.

    What means the same is taken, what does not is refused with what to use; docs/from_trl.md lists all of them.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012  # as transformers has it
        *Arguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "ref_model_init_kwargs",
    ]

    # As in transformers, whose parsers make --no_remove_unused_columns of it; it is False once the rest is known.
    remove_unused_columns: bool = field(default=True, metadata={"help": "Changes nothing: no other column is read."})
    loss_type: list[str] | str | None = _field("loss_type")
    precompute_ref_log_probs: bool = _field("precompute_ref_log_probs")
    precompute_ref_batch_size: int | None = _field("precompute_ref_batch_size")
    model_init_kwargs: dict[str, Any] | str | None = _field("model_init_kwargs")
    ref_model_init_kwargs: dict[str, Any] | str | None = _field("ref_model_init_kwargs")
    pad_token: str | None = _field("pad_token")
    dataset_num_proc: int | None = _field("dataset_num_proc")
    max_prompt_length: int | None = _field("max_prompt_length")
    max_completion_length: int | None = _field("max_completion_length")
    disable_dropout: bool = _field("disable_dropout")
    truncation_mode: str | None = _field("truncation_mode")
    padding_free: bool = _field("padding_free")
    pad_to_multiple_of: int | str | None = _field("pad_to_multiple_of")
    loss_weights: list[float] | None = _field("loss_weights")
    ld_alpha: float | None = _field("ld_alpha")
    f_divergence_type: str | None = _field("f_divergence_type")
    f_alpha_divergence_coef: float | None = _field("f_alpha_divergence_coef")
    use_weighting: bool = _field("use_weighting")
    discopop_tau: float | None = _field("discopop_tau")
    router_aux_loss_coef: float | None = _field("router_aux_loss_coef")
    activation_offloading: bool = _field("activation_offloading")
    sync_ref_model: bool = _field("sync_ref_model")
    ref_model_mixup_alpha: float | None = _field("ref_model_mixup_alpha")
    ref_model_sync_steps: int | None = _field("ref_model_sync_steps")
    reference_free: bool = _field("reference_free")
    rpo_alpha: float | None = _field("rpo_alpha")
    is_encoder_decoder: bool = _field("is_encoder_decoder")
    label_pad_token_id: int | None = _field("label_pad_token_id")
    padding_value: int | None = _field("padding_value")
    generate_during_eval: bool = _field("generate_during_eval")
    model_adapter_name: str | None = _field("model_adapter_name")
    ref_adapter_name: str | None = _field("ref_adapter_name")
    force_use_ref_model: bool = _field("force_use_ref_model")
    use_logits_to_keep: bool = _field("use_logits_to_keep")
    use_liger_loss: bool = _field("use_liger_loss")
    tools: list[str] | None = _field("tools")

    def __post_init__(self) -> None:
        self._trl_refusals = list(self._take_trl_names())
        super().__post_init__()

    def _take_trl_names(self) -> Iterator[str]:
        """Set our fields by TRL's; yields what cannot be taken."""
        given = [name for name in trl_names.NAMES if getattr(self, name, None) is not None]
        yield from self._take_log_names(uses_trl=bool(set(given) - {"remove_unused_columns"}))
        self.remove_unused_columns = False  # rows become token ids: no other column reaches the model either way
        yield from self._take_loss()
        yield from self._take_reference()
        for name in given:
            if name in trl_names.FIXED and (problem := trl_names.fixed_problem(name, getattr(self, name))):
                yield problem

    def _take_log_names(self, *, uses_trl: bool) -> Iterator[str]:
        own: Any = self
        metric = self.metric_for_best_model
        is_trls = metric is not None and metric.endswith(tuple(trl_names.LOG_NAMES))
        if metric is not None and metric.removeprefix("eval_") in trl_names.NOT_LOGGED:
            yield f"metric_for_best_model={metric!r} is a number of TRL's that is not logged here"
        if own.log_names is None:
            own.log_names = "both" if uses_trl or is_trls else "tdpo"
        if is_trls and own.log_names == "tdpo":
            yield (
                f"metric_for_best_model={metric!r} is a name that TRL logs, and log_names='tdpo' leaves these out: "
                "write log_names='both', or the name that tdpo logs"
            )

    def _take_loss(self) -> Iterator[str]:
        own: Any = self
        loss, problem = (None, None) if self.loss_type is None else trl_names.loss_of(self.loss_type)
        if problem:
            yield problem
        elif loss and own.loss not in (None, loss):
            yield f"loss_type={self.loss_type!r} is loss={loss!r}, and loss={own.loss!r} was given. Leave one out"
        elif loss and (problem := trl_names.smoothing_problem(own.label_smoothing)):
            yield problem
        if own.loss is None:
            own.loss = loss or Loss.model_fields["name"].default

    def _take_reference(self) -> Iterator[str]:
        own: Any = self
        if self.precompute_ref_log_probs is not None:
            source: ReferenceSource = "cache" if self.precompute_ref_log_probs else "model"
            if own.reference not in ("auto", source):
                yield (
                    f"precompute_ref_log_probs={self.precompute_ref_log_probs} is reference={source!r}, and "
                    f"reference={own.reference!r} was given. Leave one of them out"
                )
            own.reference = source
        if self.precompute_ref_batch_size is not None and own.reference == "model":
            yield "precompute_ref_batch_size has no effect without precompute_ref_log_probs=True. Leave it out"

    def _trl_problems(self) -> Iterator[str]:
        """What is wrong with these fields. Dictionaries that came as text have been read by then."""
        yield from self._trl_refusals
        for name in ("model_init_kwargs", "ref_model_init_kwargs"):
            if getattr(self, name) is not None:
                yield from trl_names.loading_problems(name, getattr(self, name))
        for name in ("precompute_ref_batch_size", "dataset_num_proc", "max_prompt_length", "max_completion_length"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                yield f"{name} must be a whole number ≥ 1 or None, got {value!r}"
