"""Data sets of the Hugging Face hub, streamed by `datasets` into local Parquet files."""

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.mechanism.progress import Progress
from tasks.mechanism.store import write_atomically

FILE_ROWS = 20_000
_SPEC = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<words>[\w.-]+(?::[\w.-]+)?))?(?:\[:(?P<rows>\d+)\])?")


@dataclass(frozen=True)
class DatasetSpec:
    """A data set's name, the words after it (a config, a split, or both) and how many rows of it, 0 for all."""

    name: str
    words: tuple[str, ...]
    rows: int


def parse_dataset_spec(spec: str) -> DatasetSpec | None:
    """`org/name`, `org/name:split`, `org/name:config`, `org/name:config:split`, each with `[:1000]` for a head."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        return None
    words = tuple(match["words"].split(":")) if match["words"] else ()
    return DatasetSpec(match["name"], words, int(match["rows"] or 0))


def download_dataset(spec: DatasetSpec, cache: Path) -> list[tuple[str, Path]]:
    """(name, path) of Parquet files with the rows of the data set; what was downloaded before is not asked for again.

    Raises:
        ValueError: it does not exist, or the hub cannot be reached.
    """
    from datasets.exceptions import DatasetsError

    label = "/".join([spec.name, *spec.words, *([f"first-{spec.rows}"] if spec.rows else [])])
    folder = cache / label
    marker = folder / "complete"
    if not marker.exists():
        try:
            _write_rows(_open_stream(spec), spec.rows, label, folder)
        except (DatasetsError, OSError, ValueError) as error:
            raise ValueError(
                f"{spec.name}: there is no such file or folder, and the hub gives no such data set "
                f"({type(error).__name__}: {error}). Check the path or the name, and the connection to the hub."
            ) from error
        write_atomically(marker, b"")
    return [(f"{label}/{path.name}", path) for path in sorted(folder.glob("*.parquet"))]


def _open_stream(spec: DatasetSpec) -> Iterable[Mapping[str, Any]]:
    from datasets import get_dataset_config_names, load_dataset

    configs = get_dataset_config_names(spec.name)
    words = list(spec.words)
    config = words.pop(0) if words and words[0] in configs else None
    rows: Iterable[Mapping[str, Any]] = load_dataset(
        spec.name, config, split=words[0] if words else "train", streaming=True
    )
    return rows


def _write_rows(rows: Iterable[Mapping[str, Any]], limit: int, label: str, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted download left
    folder.mkdir(parents=True)
    source = iter(islice(rows, limit) if limit else rows)
    with Progress(f"download {label}", limit, "rows") as bar:
        number = 0
        while chunk := list(islice(source, FILE_ROWS)):
            pq.write_table(pa.Table.from_pylist(chunk), folder / f"{number:05d}.parquet", compression="zstd")
            number += 1
            bar.advance(len(chunk))
