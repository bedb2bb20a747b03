"""datatrove from JSON lines to token files: four filters, PII, MinHash in four steps, tokenizer.

Usage: python datatrove_pipeline.py WARM_UP_FOLDER FOLDER_OF_JSONL TOKENIZER.json WORK_FOLDER RESULT.json

CPU seconds count from after a few documents that load what is loaded once.
"""

import json
import resource
import sys
import time
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + usage.ru_utime + usage.ru_stime


def run(source: str, tokenizer: str, work: Path) -> None:
    """The pipeline as its documentation writes it, one task, one worker."""
    config = MinhashConfig()
    filters = [GopherQualityFilter(), GopherRepetitionFilter(), C4QualityFilter(), FineWebQualityFilter()]
    steps = [
        [JsonlReader(source), *filters, PIIFormatter(), JsonlWriter(str(work / "filtered"))],
        [JsonlReader(str(work / "filtered")), MinhashDedupSignature(str(work / "signatures"), config)],
        [MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"), config=config)],
        [MinhashDedupCluster(str(work / "buckets"), str(work / "remove"), config=config)],
        [
            JsonlReader(str(work / "filtered")),
            MinhashDedupFilter(str(work / "remove")),
            DocumentTokenizer(str(work / "tokens"), tokenizer, eos_token="<|endoftext|>", shuffle_documents=False),
        ],
    ]
    for number, step in enumerate(steps):
        # datatrove asks for a multiple of the buckets there.
        tasks = config.num_buckets if number == 2 else 1
        LocalPipelineExecutor(step, tasks=tasks, workers=1, logging_dir=str(work / f"log{number}")).run()


if __name__ == "__main__":
    warm_up, source, tokenizer, work = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
    run(warm_up, tokenizer, work / "warm-up")
    started = cpu_seconds()
    run(source, tokenizer, work / "measured")
    Path(sys.argv[5]).write_text(json.dumps({"cpu_seconds": cpu_seconds() - started}))
