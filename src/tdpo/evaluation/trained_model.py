"""The model that is judged, and the one that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import AnyRecipe, Loss, PPORecipe, Recipe, load_recipe
from ..models import is_adapter_folder, load_causal_lm
from ..models.adapters import load_adapter
from ..models.devices import placed
from ..models.precision import hold_weights
from ..models.quantization import as_trained
from ..records.names import RECIPE_FILE
from ..runs import RunDirectory


@dataclass(frozen=True)
class TrainedModel:
    """Names of models, not loaded yet.

    Attributes:
        folder: the trained model, or the adapter.
        reference: the model that it is compared with; None: the adapter switched off.
        described: what evaluation.json says of the run.
        base: where the base of an adapter is; None: where the adapter says.
        load_as: the dtype in which weights were trained, "" for that of the recipe. Both models are judged in it: a
            rounding would be taken for a KL, or hide one.
        judged_on_own: whether the pairs that it is judged on are those that its own training held out.
    """

    folder: Path
    reference: str | None
    described: Mapping[str, Any]
    base: str | None = None
    load_as: str = ""
    judged_on_own: bool = False

    @property
    def tokenizer(self) -> str | Path:
        """The place of the tokenizer."""
        has_its_own = (self.folder / "tokenizer_config.json").exists()
        return self.folder if self.base is None or has_its_own else self.base

    def load(self, dtype: str, *, trust_remote_code: bool, device: str = "auto") -> Any:
        """The policy. Raises as `load_causal_lm`."""
        return placed(self._loaded(self.folder, self.load_as or dtype, trust_remote_code, device), device)

    def load_reference(self, dtype: str, *, trust_remote_code: bool, device: str = "auto") -> Any | None:
        """The second model, or None. Raises as `load_causal_lm`."""
        if self.reference is None:
            return None
        # First as the policy was before training, which may have rounded it.
        model = self._loaded(self.reference, dtype, trust_remote_code, device)
        if self.load_as:
            hold_weights(model, self.load_as)
        return placed(model, device)

    def _loaded(self, name: str | Path, dtype: str, trust_remote_code: bool, device: str) -> Any:
        """A model; an adapter on `base`, where that is given."""
        if self.base is None or not is_adapter_folder(Path(name).expanduser()):
            return load_causal_lm(name, dtype=dtype, trust_remote_code=trust_remote_code, device=device)
        dtype, quantization = as_trained(name, dtype, None)
        base = load_causal_lm(
            self.base, dtype=dtype, trust_remote_code=trust_remote_code, quantization=quantization, device=device
        )
        return load_adapter(base, name)


def model_of_run(run: RunDirectory, recipe: AnyRecipe) -> TrainedModel:
    """The model of a recipe's run and what it is compared with: the reference that the run had.

    Raises:
        RunError: no trained model yet.
    """
    reference = reference_of_recipe(run.model_path, recipe)
    return TrainedModel(
        run.model_path,
        reference,
        described_run(run, recipe),
        load_as=trained_dtype(run),
        judged_on_own=holds_out_as_trained(run, recipe),
    )


def holds_out_as_trained(run: RunDirectory, recipe: AnyRecipe) -> bool:
    """Whether `recipe`, with which the run is judged, holds out the rows that its training held out."""
    if not isinstance(recipe, Recipe) or not (run.path / RECIPE_FILE).is_file():
        return False
    trained = load_recipe(run.path)
    return isinstance(trained, Recipe) and _rows_held_out(trained) == _rows_held_out(recipe)


def _rows_held_out(recipe: Recipe) -> tuple[object, ...]:
    data = recipe.data
    return data.eval, data.eval_split, data.eval_fraction


def trained_dtype(run: RunDirectory) -> str:
    """The dtype in which a run trained its weights, "" where that is its recipe's or was not recorded."""
    return str((run.precision() or {}).get("load_as") or "")


def reference_of_recipe(folder: Path, recipe: AnyRecipe) -> str | None:
    """The reference of a model that a recipe trained; None: its adapter switched off.

    A saved adapter that was trained further began as itself, and not as its base: the recipe's model is then the
    reference, as it is where all weights were trained.
    """
    model = recipe.model
    if model.reference is not None:
        return model.reference
    began_as_adapter = model.lora is None and is_adapter_folder(Path(model.name).expanduser())
    return model.name if began_as_adapter or not is_adapter_folder(folder) else None


def strengths(loss: Loss) -> dict[str, float | None]:
    """β and α of a loss, null where it has none, and γ where it has one."""
    gamma = {} if loss.gamma is None else {"gamma": loss.gamma}
    return {"beta": loss.beta, "alpha": loss.alpha, **gamma}


def described_run(run: RunDirectory, recipe: AnyRecipe) -> dict[str, Any]:
    """What evaluation.json says of a recipe's run."""
    if isinstance(recipe, PPORecipe):
        method: dict[str, Any] = {"loss": "ppo", "kl": recipe.kl.model_dump()}
    else:
        method = {"loss": recipe.loss.name, **strengths(recipe.loss)}
    return {"name": run.path.resolve().name, **method, "model": recipe.model.name}
