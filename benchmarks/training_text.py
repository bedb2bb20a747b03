"""The text that training benchmarks share: tokens to train on, held-out documents, and a source left out altogether."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.training.data import WindowBatches, fixed_rows
from model.vocabulary.tokenizer import Tokenizer, train_bpe
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import build
from tasks.text.documents import document_shards
from tasks.text.ingest import IngestConfig, ingest
from tasks.text.source import resolve_source
from tasks.tokens.pack import split_of
from tasks.tokens.tokenizer import write_tokenizer
from tasks.train.job import bytes_of_tokens

VALIDATION_SHARE = 0.03  # of 60 MB: 686k tokens in domain (benchmarks/RESULTS.md)
SPLITS = ("train", "in_domain", "out_of_domain")
ROW = 256  # tokens of a row, in training and in evaluation


@dataclass(frozen=True)
class TokenStreams:
    """Each split as one stream of tokens, every document followed by <|endoftext|>."""

    train: NDArray[np.uint16]
    in_domain: NDArray[np.uint16]
    out_of_domain: NDArray[np.uint16]
    token_bytes: NDArray[np.float32]
    vocab_size: int
    endoftext_id: int

    def windows(self, split: str, seed: int = 0) -> WindowBatches:
        """Rows of ROW tokens of a split; a seed orders those of training."""
        plan = fixed_rows(ROW)
        return WindowBatches(getattr(self, split), plan, ROW, seed, self.token_bytes, self.endoftext_id)


def token_streams(corpus: str, left_out: str, vocab_size: int, folder: Path) -> TokenStreams:
    """Documents whose origin contains `left_out` are out of domain; of the others 3 %, by hash, are held out.

    The tokenizer learns from the training documents alone. What was made once is read from `folder`.

    Raises:
        ValueError: a split is empty.
    """
    made = folder / f"tokens-{vocab_size}"
    if not (made / "out_of_domain.npy").exists():
        made.mkdir(parents=True, exist_ok=True)
        texts = _split_texts(corpus, left_out, folder)
        write_tokenizer(train_bpe(iter(texts["train"]), vocab_size), made)
        tokenizer = Tokenizer.load(made)
        for split in SPLITS:
            ids = tokenizer.encode_column(pa.array(texts[split], pa.large_string()))
            stream = np.insert(ids.values, ids.offsets[1:], np.uint32(tokenizer.endoftext_id))
            np.save(made / f"{split}.npy", stream.astype(np.uint16))  # vocabularies here are below 2^16
    tokenizer = Tokenizer.load(made)
    streams = {split: np.load(made / f"{split}.npy", mmap_mode="r") for split in SPLITS}
    return TokenStreams(
        **streams,
        token_bytes=bytes_of_tokens(tokenizer),
        vocab_size=tokenizer.vocab_size,
        endoftext_id=tokenizer.endoftext_id,
    )


def _split_texts(corpus: str, left_out: str, folder: Path) -> dict[str, list[str]]:
    home = folder / "home"
    documents = build(ingest, IngestConfig(), {"corpus": resolve_source(corpus, home / "cache")}, Execution(home=home))
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for shard in document_shards(documents):
        for row in pq.read_table(shard, columns=["doc_id", "text", "origin"]).to_pylist():
            held_out = split_of(row["doc_id"], VALIDATION_SHARE) == "validation"
            split = "out_of_domain" if left_out in row["origin"] else "in_domain" if held_out else "train"
            texts[split].append(row["text"])
    for split, found in texts.items():
        if not found:
            raise ValueError(f"The {split} split of {corpus} is empty. --left-out {left_out} must name one of several "
                             "sources, and there must be some hundred documents.")  # fmt: skip
    return texts
