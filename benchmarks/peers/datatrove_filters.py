"""datatrove's Gopher, C4 and FineWeb filters over the same documents: run inside an environment that has it.

Usage: python datatrove_filters.py shipped|whitespace DOCUMENTS.jsonl RESULT.json
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)

FILTERS = {
    "gopher_quality": GopherQualityFilter,
    "gopher_repetition": GopherRepetitionFilter,
    "c4": C4QualityFilter,
    "fineweb": FineWebQualityFilter,
}


def split_on_whitespace() -> None:
    """Put `str.split` in the place of the spaCy word tokenizer; sentences stay with it."""
    # In each module: filters import the function by name.
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("datatrove") and hasattr(module, "split_into_words"):
            module.split_into_words = lambda text, language: text.split()


def judge(name: str, texts: list[str]) -> dict[str, Any]:
    """Seconds of CPU and the reason of each document ("" for kept)."""
    step = FILTERS[name]()
    step.filter(Document(text=texts[0], id="warm up"))  # the first call loads models
    documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
    started = time.process_time()
    verdicts = [step.filter(document) for document in documents]
    seconds = time.process_time() - started
    return {"seconds": seconds, "reasons": ["" if verdict is True else verdict[1] for verdict in verdicts]}


if __name__ == "__main__":
    if sys.argv[1] == "whitespace":
        split_on_whitespace()
    contents = [json.loads(line)["text"] for line in Path(sys.argv[2]).read_text(encoding="utf-8").split("\n") if line]
    Path(sys.argv[3]).write_text(json.dumps({name: judge(name, contents) for name in FILTERS}))
