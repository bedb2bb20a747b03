"""Which documents one run learned from and another did not, and which stage dropped them there for what reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.mechanism.stage import Artifact
from tasks.text.documents import aligned_shards, document_shards

KEPT = "kept"
ABSENT = "not in the corpus"
EXCERPT_CHARACTERS = 300


@dataclass(frozen=True)
class JudgedCorpus:
    """Documents and what the stages, in pipeline order, said about each."""

    documents: Artifact
    stages: Mapping[str, Artifact]


@dataclass(frozen=True)
class DocumentSample:
    """A document to look at."""

    doc_id: str
    origin: str
    beginning: str


@dataclass(frozen=True)
class Movement:
    """Documents that had one fate in the first run and another in the second: `filter: min_words` to `kept`."""

    before: str
    after: str
    documents: int
    samples: list[DocumentSample]


@dataclass(frozen=True)
class DocumentChanges:
    """What the second run learned from and the first did not (`entered`), and the reverse (`left`)."""

    kept_before: int
    kept_after: int
    kept_in_both: int
    entered: list[Movement]
    left: list[Movement]


def document_changes(before: JudgedCorpus, after: JudgedCorpus, samples: int) -> DocumentChanges:
    """Compare two judged corpora text by text; one that was edited leaves as one document and enters as another."""
    joined = read_fates(before).join(read_fates(after), "doc_id", join_type="full outer", right_suffix="_after")
    old, new = (pc.fill_null(joined[name], ABSENT) for name in ("fate", "fate_after"))
    fates = pa.table({"doc_id": joined["doc_id"], "before": old, "after": new})
    was, is_now = pc.equal(old, KEPT), pc.equal(new, KEPT)
    return DocumentChanges(
        kept_before=_count(was),
        kept_after=_count(is_now),
        kept_in_both=_count(pc.and_(was, is_now)),
        entered=_movements(fates.filter(pc.and_(is_now, pc.invert(was))), after.documents, samples),
        left=_movements(fates.filter(pc.and_(was, pc.invert(is_now))), before.documents, samples),
    )


def read_fates(corpus: JudgedCorpus) -> pa.Table:
    """(doc_id, fate), once for each text: `kept` where one of its copies is, else the stage that dropped it and why."""
    parts = []
    for shard, *attributes in aligned_shards(corpus.documents, *corpus.stages.values()):
        doc_ids = pq.read_table(shard, columns=["doc_id"])["doc_id"]
        fate = pa.chunked_array([pa.array([""] * len(doc_ids), pa.string())])
        for name, path in zip(corpus.stages, attributes, strict=True):
            said = pq.read_table(path, columns=["keep", "reason"])
            # The first to drop it, in pipeline order: the judges after it only say that it went before.
            dropped_here = pc.and_(pc.equal(fate, ""), pc.invert(said["keep"]))
            fate = pc.if_else(dropped_here, pc.binary_join_element_wise(name, said["reason"], ": "), fate)
        parts.append(pa.table({"doc_id": doc_ids, "fate": fate}))
    empty = pa.table({"doc_id": pa.array([], pa.string()), "fate": pa.array([], pa.string())})
    best = pa.concat_tables([empty, *parts]).group_by("doc_id").aggregate([("fate", "min")])  # "" sorts first
    fate = pc.if_else(pc.equal(best["fate_min"], ""), KEPT, best["fate_min"])
    return pa.table({"doc_id": best["doc_id"], "fate": fate})


def _count(mask: pa.ChunkedArray) -> int:
    return int(pc.sum(mask).as_py() or 0)


def _movements(fates: pa.Table, documents: Artifact, samples: int) -> list[Movement]:
    """One for each pair of fates, the largest first."""
    groups = fates.group_by(["before", "after"]).aggregate([("doc_id", "count")]).to_pylist()
    # With the names: groups come in no order, and equal counts would be listed otherwise each time.
    groups.sort(key=lambda group: (-group["doc_id_count"], group["before"], group["after"]))
    shown: dict[tuple[str, str], list[str]] = {}
    for group in groups:
        pair = group["before"], group["after"]
        same = pc.and_(pc.equal(fates["before"], pair[0]), pc.equal(fates["after"], pair[1]))
        ids = fates.filter(same)["doc_id"]
        shown[pair] = ids.take(pc.select_k_unstable(ids, samples, sort_keys=[("", "ascending")])).to_pylist()
    texts = read_samples(documents, [doc_id for ids in shown.values() for doc_id in ids])
    return [
        Movement(
            group["before"],
            group["after"],
            group["doc_id_count"],
            [texts[doc_id] for doc_id in shown[group["before"], group["after"]]],
        )
        for group in groups
    ]


def read_samples(documents: Artifact, doc_ids: Sequence[str]) -> dict[str, DocumentSample]:
    """Origin and beginning of these documents; the text of other shards is not read."""
    found: dict[str, DocumentSample] = {}
    wanted = pa.array(doc_ids, pa.string())
    for shard in document_shards(documents):
        here = pc.is_in(pq.read_table(shard, columns=["doc_id"])["doc_id"], wanted)
        if not pc.any(here).as_py():
            continue
        for row in pq.read_table(shard, columns=["doc_id", "origin", "text"]).filter(here).to_pylist():
            sample = DocumentSample(row["doc_id"], row["origin"], row["text"][:EXCERPT_CHARACTERS])
            found.setdefault(row["doc_id"], sample)
    return found
