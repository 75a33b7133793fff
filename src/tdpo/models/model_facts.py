"""What tokenisation needs to know of a model: the tokens that end a turn, and how many positions it has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..chat_templates import end_ids
from .adapter_bases import adapter_base
from .configurations import first_sentence
from .folder_files import is_adapter_folder
from .model_loading import check_folder, configuration_of, naming_the_adapter
from .trust import names_untrusted_code


@dataclass(frozen=True)
class ModelFacts:
    """What tokenisation needs to know of a model before its weights are loaded.

    `positions` is how many positions the model has, None if its configuration does not say.
    """

    end_token_ids: set[int]
    positions: int | None

    def max_length(self, limit: int | None) -> int | None:
        """The length limit in tokens, cut to the number of positions that the model has; None for no limit."""
        if self.positions is None:
            return limit
        return self.positions if limit is None else min(limit, self.positions)


@names_untrusted_code
def model_facts(name: str | Path, tokenizer: Any, *, trust_remote_code: bool = False) -> ModelFacts:
    """The facts of a model that is not loaded, from its configuration files.

    Raises:
        FileNotFoundError: as `load_causal_lm`.
    """
    from transformers import GenerationConfig

    folder = check_folder(name)
    if is_adapter_folder(folder):
        with naming_the_adapter(folder):
            return model_facts(adapter_base(folder), tokenizer, trust_remote_code=trust_remote_code)
    config = configuration_of(name, trust_remote_code=trust_remote_code)
    try:
        generation = GenerationConfig.from_pretrained(folder)
    except OSError:  # not every model has one
        generation = None
    except Exception as error:
        file = Path(folder) / "generation_config.json"
        raise ValueError(f"{file} holds settings that cannot be: {first_sentence(error)}") from error
    return _facts(config, generation, tokenizer, f"{folder}/generation_config.json")


def facts_of(model: Any, tokenizer: Any) -> ModelFacts:
    """The facts of a loaded model."""
    return _facts(model.config, getattr(model, "generation_config", None), tokenizer, "the model's generation_config")


def _facts(config: Any, generation: Any, tokenizer: Any, source: str) -> ModelFacts:
    setting = getattr(generation, "eos_token_id", None)
    ids = setting if isinstance(setting, list | tuple) else [setting]
    if odd := [i for i in ids if i is not None and (not isinstance(i, int) or i < 0)]:
        raise ValueError(f"{source}: eos_token_id must be a token's number or a list of them, got {odd[0]!r}")
    ends = set(end_ids(tokenizer, setting))
    return ModelFacts(ends, getattr(config.get_text_config(), "max_position_embeddings", None))
