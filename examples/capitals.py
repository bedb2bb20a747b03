"""Drop documents that are mostly written in capitals: a judge of one's own, wired in by own_judge.py.

A judge writes one attribute shard for each shard of documents: `keep` and `reason` for each of them, row by row. The
stages after it take any set of judgements, so that it is one more name among them.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from tasks.mechanism.shards import Counts, ShardJob, map_shards
from tasks.mechanism.stage import Artifact, StageConfig, StageRun, stage
from tasks.text.documents import document_shards, write_table


class CapitalsConfig(StageConfig):
    """When a text shouts."""

    max_capital_share: float = Field(0.3, ge=0, le=1, description="Most letters that are capitals, as a share.")


def judge_shard(inputs: tuple[Path, ...], output: Path, cfg: CapitalsConfig) -> Counts:
    """Shard function: a document shard -> its attribute shard, a row for each document in the same order."""
    table = pq.read_table(inputs[0], columns=["doc_id", "text"])
    letters = pc.count_substring_regex(table["text"], "[A-Za-z]").to_numpy()
    capitals = pc.count_substring_regex(table["text"], "[A-Z]").to_numpy()
    keep = pa.array(capitals <= cfg.max_capital_share * letters)
    reason = pc.if_else(keep, "", "max_capital_share")
    write_table(pa.table({"doc_id": table["doc_id"], "keep": keep, "reason": reason}), output)
    return {"documents_in": len(table), "documents_kept": pc.sum(keep).as_py() or 0}


@stage("capitals", version=1)
def capitals(run: StageRun, cfg: CapitalsConfig, documents: Artifact) -> None:
    """Judge each document; what was judged is remembered by shard, so a corpus that grows costs its new ones only."""
    jobs = [ShardJob((path,), run.out / "attributes" / path.name) for path in document_shards(documents)]
    counts = map_shards(run, judge_shard, jobs, cfg)
    for name in ("documents_in", "documents_kept"):
        run.metric(name, sum(count[name] for count in counts))
