"""Drop documents from files that somebody asked to have taken down."""

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from tasks.mechanism.stage import Artifact, StageConfig, StageRun, stage
from tasks.text.documents import aligned_shards, kept_rows, write_table

REMOVED_BEFORE, TAKEN_DOWN = "removed_before", "taken_down"


class TakedownConfig(StageConfig):
    """What was asked for."""

    files: tuple[str, ...] = Field((), description="Names of the files whose documents go.")


def reason(origin: str, kept: bool, files: tuple[str, ...]) -> str:
    """Why the document goes, "" if it stays. `origin`: name of its file, then the place in it."""
    if not kept:
        return REMOVED_BEFORE
    return TAKEN_DOWN if any(f"{origin} ".startswith(f"{name} ") for name in files) else ""


@stage("takedown", version=1, figures=("documents_in", "documents_kept"))
def takedown(run: StageRun, cfg: TakedownConfig, documents: Artifact, **judged: Artifact) -> None:
    """Judge every document left so far."""
    totals: Counter[str] = Counter()
    for shard, *attributes in aligned_shards(documents, *judged.values()):
        table = pq.read_table(shard, columns=["doc_id", "origin"])
        kept = kept_rows(shard, attributes).to_pylist()
        reasons = [reason(origin, keep, cfg.files) for origin, keep in zip(table["origin"].to_pylist(), kept)]
        keep = pa.array([not found for found in reasons], pa.bool_())
        verdict = {"doc_id": table["doc_id"], "keep": keep, "reason": pa.array(reasons, pa.string())}
        write_table(pa.table(verdict), run.out / "attributes" / shard.name)
        totals.update(reasons)
    run.metric("documents_in", totals[""] + totals[TAKEN_DOWN])
    run.metric("documents_kept", totals[""])
