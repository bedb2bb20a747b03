"""Which source of the corpus each token is from, so that validation can tell where a model is weak."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from model.training.data import TokenSources
from tasks.tokens.files import Split

MAX_SOURCES = 16
OTHER_SOURCES = "other"


def report_names(sizes: Mapping[str, int]) -> dict[str, str]:
    """The name under which figures of each source appear: its own for the largest, `other` for those that would make
    more than MAX_SOURCES.

    A corpus may have thousands of sources; a curve for each would help nobody.
    """
    ranked = sorted(sizes, key=lambda source: (-sizes[source], source))
    kept = MAX_SOURCES if len(ranked) <= MAX_SOURCES else MAX_SOURCES - 1
    return {source: source if rank < kept else OTHER_SOURCES for rank, source in enumerate(ranked)}


def token_sources(folder: Path, split: Split) -> TokenSources:
    """The sources of a split's tokens by the names of `report_names`; a separator is its document's."""
    columns = ["source", "start", "tokens"]
    spans = pq.read_table(folder / "spans.parquet", columns=columns, filters=[("split", "=", split)]).sort_by("start")
    sizes = spans.group_by("source").aggregate([("tokens", "sum")])
    reported = report_names(dict(zip(sizes["source"].to_pylist(), sizes["tokens_sum"].to_pylist())))
    names = tuple(sorted(set(reported.values())))
    numbers = {source: names.index(name) for source, name in reported.items()}
    owners = np.array([numbers[source] for source in spans["source"].to_pylist()], dtype=np.int64)
    return TokenSources(names, np.cumsum(spans["tokens"].to_numpy()), owners)
