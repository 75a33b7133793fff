"""Loading of reward models, sequence classifiers with one output: a whole model, or an adapter with its head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .adapter_bases import adapter_base
from .adapters import load_adapter
from .folder_files import is_adapter_folder
from .model_loading import check_folder, refuse_pickles
from .trust import names_untrusted_code

NO_REWARD_MODEL = (
    "A reward model is a sequence classifier with one output (num_labels=1), saved whole with save_pretrained; a "
    "causal language model is none"
)


@names_untrusted_code
def load_reward_classifier(name: str | Path, *, trust_remote_code: bool = False) -> Any:
    """A sequence classifier with one output, frozen and in evaluation mode. Every weight comes from a file.

    Raises:
        FileNotFoundError: nothing is there, or pickled weights only.
        ValueError: weights are missing, broken or of another shape, several outputs, or code that may not run.
    """
    folder = check_folder(name)
    is_adapter = is_adapter_folder(folder)
    model = _adapted(name, folder, trust_remote_code) if is_adapter else _whole(name, folder, trust_remote_code)
    outputs = model.config.num_labels
    if outputs != 1:
        raise ValueError(f"the reward model {name} has {outputs} outputs; a reward is one number (num_labels=1)")
    return model.eval().requires_grad_(False)


def _whole(name: str | Path, folder: str, trust_remote_code: bool) -> Any:
    model, info = _from_pretrained(name, folder, trust_remote_code)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"the reward model {name} lacks weights that {type(model).__name__} needs, such as "
            f"{missing[0]}: they would start at random, and so would the rewards. {NO_REWARD_MODEL}"
        )
    _refuse_other_shapes(name, model, info)
    return model


def _adapted(name: str | Path, folder: str, trust_remote_code: bool) -> Any:
    """The adapter on its base, which mostly is a language model; the head then comes from the adapter."""
    base_name = adapter_base(folder)
    base = check_folder(base_name)
    model, info = _from_pretrained(base_name, base, trust_remote_code, num_labels=1)
    own_weights = _names_in(folder)
    missing = {key for key in info["missing_keys"] if f"base_model.model.{key}" not in own_weights}
    if missing:
        raise ValueError(
            f"the reward model {name} is an adapter of {base_name}, and neither of them holds {sorted(missing)[0]}: it "
            "would start at random, and so would the rewards. Save the adapter with its head (modules_to_save; "
            'task_type="SEQ_CLS" does it), or merge it into a whole classifier'
        )
    replaced = {key for key, *_ in info["mismatched_keys"] if f"base_model.model.{key}" in own_weights}
    info["mismatched_keys"] = [entry for entry in info["mismatched_keys"] if entry[0] not in replaced]
    _refuse_other_shapes(base_name, model, info)
    return load_adapter(model, folder)


def _from_pretrained(name: str | Path, folder: str, trust_remote_code: bool, **changes: Any) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    refuse_pickles(Path(folder), "AutoModelForSequenceClassification")
    auto: Any = AutoModelForSequenceClassification
    try:
        model, info = auto.from_pretrained(
            folder,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused later, with a message that says what to do
            **changes,
        )
        return model, info
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"cannot load the reward model {str(name)!r}: {reason}") from error
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are cut short or broken ({error}); save them again") from error
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(f"{name} is of a kind that transformers has no classifier of. {NO_REWARD_MODEL}") from error


def _refuse_other_shapes(name: str | Path, model: Any, info: Any) -> None:
    for key, saved_shape, needed_shape in sorted(info["mismatched_keys"]):
        raise ValueError(
            f"the weight {key} of {name} is {tuple(saved_shape)}, and {type(model).__name__} needs "
            f"{tuple(needed_shape)}: it would start at random. {NO_REWARD_MODEL}"
        )


def _names_in(folder: str) -> set[str]:
    """The names of the weights in an adapter's file; none if there is no file, which the loader reports."""
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / "adapter_model.safetensors"
    if not path.is_file():
        return set()
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"the weights of {folder} are cut short or broken ({error}); save them again") from error
