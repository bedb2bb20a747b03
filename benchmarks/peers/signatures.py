"""MinHash signatures by datasketch and rensa, from text: run inside an environment that has them.

Usage: python signatures.py DOCUMENTS.jsonl RESULT.json
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from datasketch import MinHash
from rensa import RMinHash

PERMUTATIONS = 112  # dedup's 14 bands of 8


def shingles(text: str) -> list[str]:
    """Word 5-grams, as users of these libraries make them."""
    words = text.lower().split()
    return [" ".join(words[i : i + 5]) for i in range(max(len(words) - 4, 1))]


def by_datasketch(texts: list[str]) -> None:
    for text in texts:
        MinHash(PERMUTATIONS).update_batch([shingle.encode() for shingle in shingles(text)])


def by_rensa(texts: list[str]) -> None:
    for text in texts:
        sketch = RMinHash(PERMUTATIONS, 1)
        sketch.update(shingles(text))
        sketch.digest()


def by_rensa_in_bulk(texts: list[str]) -> None:
    RMinHash.digest_matrix_from_token_sets([shingles(text) for text in texts], PERMUTATIONS, 1)


def rate(function: Callable[[list[str]], None], texts: list[str]) -> float:
    """Documents per CPU-second, the best of three."""
    best = 0.0
    for _ in range(3):
        started = time.process_time()
        function(texts)
        best = max(best, len(texts) / (time.process_time() - started))
    return best


if __name__ == "__main__":
    documents = [json.loads(line)["text"] for line in Path(sys.argv[1]).read_text(encoding="utf-8").split("\n") if line]
    rates = {f.__name__: rate(f, documents) for f in (by_datasketch, by_rensa, by_rensa_in_bulk)}
    Path(sys.argv[2]).write_text(json.dumps(rates))
