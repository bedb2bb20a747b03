"""Bring text to one Unicode normal form, so that an accent is one token whichever way it was typed."""

import unicodedata
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from tasks.mechanism.stage import Artifact, StageConfig, StageRun, stage
from tasks.text.documents import document_shards, write_table


class NormalizeConfig(StageConfig):
    """Which form."""

    form: Literal["NFC", "NFD", "NFKC", "NFKD"] = Field("NFC", description="Unicode normal form of the text.")


@stage("normalize", version=1, figures=("documents",))
def normalize(run: StageRun, cfg: NormalizeConfig, documents: Artifact) -> None:
    """Write the same documents with their text in the normal form."""
    total = 0
    for shard in document_shards(documents):
        table = pq.read_table(shard)
        # Not pyarrow's utf8_normalize, whose NFC leaves accents apart.
        normal = [unicodedata.normalize(cfg.form, text) for text in table["text"].to_pylist()]
        text = pa.array(normal, pa.large_string())
        write_table(
            table.set_column(table.schema.get_field_index("text"), "text", text), run.out / "shards" / shard.name
        )
        total += len(table)
    run.metric("documents", total)
