"""From what the user named — a file, a saved dataset, a dataset of the Hugging Face hub — to numbered records."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tdpo.preferences.compressed import check_expanded
from tdpo.preferences.formats import PAIRS, PROMPTS, Wanted
from tdpo.preferences.rows import UnreadablePreferences
from tdpo.preferences.text_files import Read, Record, read_csv, read_json, read_json_lines, read_text

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


def read_parquet(path: Path) -> Read:
    """All columns of a Parquet file, numbered by record."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path) as file:
            types = {field.name: field.type for field in file.schema_arrow if "arrow.json" in str(field.type)}
            size, groups = path.stat().st_size, range(file.num_row_groups)
            expanded = sum(file.metadata.row_group(i).total_byte_size for i in groups)
            check_expanded(path, expanded, size)  # what is declared; a dictionary can stand for much more
            expanded = 0
            for batch in file.iter_batches(batch_size=128):  # few, as each may be far larger than the file
                check_expanded(path, expanded := expanded + batch.nbytes, size)
                for values in batch.to_pylist():
                    row += 1
                    yield Record(row, values | {name: _from_json(values[name], types[name]) for name in types})
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UnreadablePreferences(f"{path}: not readable as Parquet after record {row} ({error}).") from error


def _from_json(value: Any, kind: Any) -> Any:
    """`value` with the parts that Arrow keeps as JSON decoded, as `datasets` does on reading (its feature `Json`)."""
    import pyarrow as pa

    if value is None:
        return None
    if getattr(kind, "extension_name", "") == "arrow.json":
        return json.loads(value)
    if pa.types.is_struct(kind):
        return {field.name: _from_json(value[field.name], field.type) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [_from_json(part, kind.value_type) for part in value]
    return value


def _whatever_is_wanted(read: Callable[[Path], Read]) -> Callable[[Path, Wanted], Read]:
    """A reader of a format in which the columns cannot be in doubt."""
    return lambda path, wanted: read(path)


READERS: dict[str, Callable[[Path, Wanted], Read]] = {
    ".jsonl": _whatever_is_wanted(read_json_lines),
    ".ndjson": _whatever_is_wanted(read_json_lines),
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": _whatever_is_wanted(read_text),
    ".parquet": _whatever_is_wanted(read_parquet),
}
READERS |= {f"{suffix}.gz": read for suffix, read in READERS.items() if suffix != ".parquet"}
PLAIN_TEXT = (".txt", ".txt.gz")  # lines without columns: prompts can be read from them, pairs cannot


def read_source(source: str | Path, split: str, wanted: Wanted = PAIRS) -> Read:
    """The records of a file, of a folder that `datasets` saved, or of a hub dataset (`owner/name[:configuration]`).

    `split` chooses among the splits of a saved `DatasetDict` and of a hub dataset; other sources have none.
    Raises FileNotFoundError for a path that does not exist, UnreadablePreferences for what is none of these.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _reader_for(path, wanted)(path, wanted)
    if path.is_dir():
        return read_dataset(_load_folder(path, split), str(source))
    name = str(source)
    if isinstance(source, Path) or _suffix(path) or not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise FileNotFoundError(_no_such_path(path))
    return read_dataset(_load_from_hub(name, split), name)


def read_dataset(dataset: Any, source: str) -> Read:
    """The rows of a `datasets.Dataset`, or of any iterable of mappings, numbered from 1."""
    if isinstance(dataset, Mapping):
        splits = ", ".join(repr(name) for name in dataset)
        raise UnreadablePreferences(f"{source}: holds several datasets ({splits}). Choose one of them.")
    if isinstance(dataset, str | bytes) or not isinstance(dataset, Iterable):
        raise UnreadablePreferences(
            f"{source}: a dataset or a list of rows was expected, not {type(dataset).__name__}."
        )
    if hasattr(dataset, "with_format"):
        dataset = dataset.with_format(None)  # a format set for training would give tensors
    return (Record(row, values) for row, values in enumerate(dataset, start=1))


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return next((suffix for suffix in sorted(READERS, key=len, reverse=True) if name.endswith(suffix)), "")


def _reader_for(path: Path, wanted: Wanted) -> Callable[[Path, Wanted], Read]:
    suffix = _suffix(path)
    readable = [name for name in READERS if wanted == PROMPTS or name not in PLAIN_TEXT]
    if suffix not in readable:
        plain = [name for name in readable if not name.endswith(".gz")]
        raise UnreadablePreferences(
            f"{path}: files of this kind ({suffix or path.suffix or 'no suffix'}) are not read. "
            f"Known are {', '.join(plain)} (but for Parquet also with .gz), a folder saved by `datasets`,"
            " or the name of a dataset on the Hugging Face hub."
        )
    return READERS[suffix]


def _load_folder(path: Path, split: str) -> Any:
    is_dict = (path / "dataset_dict.json").is_file()
    if not is_dict and not (path / "state.json").is_file():
        files = sorted(file.name for file in path.iterdir() if _suffix(file))
        inside = f" It contains {', '.join(files[:5])}: name one of these files." if files else ""
        raise UnreadablePreferences(
            f"{path}: the folder was not saved by `datasets` (no dataset_dict.json, no state.json).{inside}"
        )
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a damaged folder makes datasets or arrow raise
        raise UnreadablePreferences(f"{path}: the saved dataset cannot be loaded ({_one_line(error)}).") from error
    if not is_dict:
        return loaded
    if split not in loaded:
        near = difflib.get_close_matches(split, list(loaded), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnreadablePreferences(f"{path}: no split {split!r}; there are {', '.join(map(repr, loaded))}.{hint}")
    return loaded[split]


def _load_from_hub(name: str, split: str) -> Any:
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        return datasets.load_dataset(repository, configuration or None, split=split, trust_remote_code=False)
    except Exception as error:  # no network, no such dataset, no access, no such split: each its own class
        near = _near_names(Path(name))
        raise UnreadablePreferences(
            f"{name}: there is no such file or folder{near}, and it could not be loaded from the Hugging Face hub "
            f"with split {split!r}.\n{type(error).__name__}: {_one_line(error)}\n"
            "Check the name, the split and the network (HF_HUB_OFFLINE must not be set; a private or gated dataset "
            f'needs `hf auth login`). Without a network: run load_dataset("{repository}").save_to_disk("folder") where '
            "there is one, copy the folder here and give its path."
        ) from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"


def _no_such_path(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path}: no such file, and no folder {str(folder)!r}{_near_names(folder)}."
    return f"{path}: no such file or folder{_near_names(path)} (looked in {folder.resolve()})."


def _near_names(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [entry.name for entry in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(str(path.parent / name)) for name in near)}?" if near else ""
