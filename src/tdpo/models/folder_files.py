"""The files of a model's folder: which of them make the model, and its JSON, where an error names a broken file."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

# The files that transformers and peft read, each a JSON object. tokenizer.json is large and left to the tokenizer.
JSON_FILES = (
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "model.safetensors.index.json",
)  # fmt: skip

CARD_FILE = "README.md"
# What makes a model, an adapter and a tokenizer, with the card and the note on how the base of an adapter is quantised.
# A checkpoint holds more: the state of its training, and pickled files, which run code of their writer where they are
# opened.
PATTERNS = (
    CARD_FILE, "LICENSE*", "config.json", "generation_config.json", "adapter_config.json", "model*.safetensors",
    "adapter_model*.safetensors", "*.safetensors.index.json", "base_quantization.json", "tokenizer*",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken",
    "chat_template*", "preprocessor_config.json", "processor_config.json", "modeling_*.py", "configuration_*.py",
    "tokenization_*.py",
)  # fmt: skip
TEMPLATES = "additional_chat_templates"  # the one folder inside a tokenizer's


def model_files(folder: Path) -> dict[str, Path]:
    """The files of `folder` that make a model, an adapter and a tokenizer, by their names in it."""
    beside = (path for path in sorted(folder.iterdir()) if any(fnmatch(path.name, pattern) for pattern in PATTERNS))
    files = {path.name: path for path in beside if path.is_file()}
    templates = (path for path in sorted((folder / TEMPLATES).glob("*")) if path.is_file())
    return files | {f"{TEMPLATES}/{path.name}": path for path in templates}


def check_json_files(folder: Path) -> None:
    """Raise ValueError, with the file's path, where one of `folder`'s JSON files is cut short, broken or no object."""
    for name in JSON_FILES:
        if (folder / name).is_file():
            read_json_object(folder / name)


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file is not UTF-8, not JSON, or contains something other than an object.
    """
    advice = "copy the file from where the model came from, or save the model again"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start}): {advice}") from None
    except json.JSONDecodeError as error:
        where = "it is empty" if not error.doc.strip() else f"line {error.lineno}: {error.msg}"
        raise ValueError(f"{file} is not JSON, or was cut short ({where}): {advice}") from None
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply to be read: {advice}") from None
    if not isinstance(content, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(content), f"{content!r:.40}")
        raise ValueError(f"{file}: expected a JSON object {{…}}, got {kind}: {advice}")
    return content


def is_adapter_folder(folder: str | Path) -> bool:
    """Whether the folder contains an adapter of peft."""
    return (Path(folder) / "adapter_config.json").is_file()
