"""Train the tokenizer: a byte-level BPE on a recorded sample of the kept text, and the chat format beside it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import Field

from model.vocabulary.chat_format import CHAT_TEMPLATE
from model.vocabulary.other_tokenizers import CountTokens, load_counter
from model.vocabulary.tokenizer import (
    ENDOFTEXT,
    IM_END,
    PAD,
    SEGMENT_CHARACTERS,
    SPECIAL_TOKENS,
    HuggingFaceTokenizer,
    Tokenizer,
    train_bpe,
)
from tasks.mechanism.identity import canonical_json
from tasks.mechanism.stage import Artifact, StageConfig, StageRun, stage
from tasks.text.documents import aligned_shards, read_kept
from tasks.tokens.contract import contract_of_tokenizer, write_contract

EQUALITY_DOCUMENTS = 500
"""Documents on which every run compares tiktoken's ids with those of `tokenizers`."""


class TokenizerConfig(StageConfig):
    """How the BPE vocabulary is trained."""

    # 512 at least: 256 bytes and 4 special tokens come before the first merge.
    vocab_size: int = Field(
        4096, ge=512, le=1_000_000, description="Size of the vocabulary, the 4 special tokens included."
    )
    # 32,000 entries from 20 / 100 / 300 MB: 7 / 29 / 79 CPU-s and 141 / 267 / 425 MB of memory.
    sample_megabytes: float = Field(
        100.0, gt=0, le=10_000, description="Text to train on; documents are chosen by their hash (100 MB take 30 s)."
    )
    min_frequency: int = Field(2, ge=1, le=1000, description="Minimum frequency of a token pair to be merged.")
    compare_with: tuple[str, ...] = Field(
        (), description="Files of other tokenizers (tokenizer.json, .tiktoken) whose bytes per token are reported too."
    )


@stage("tokenizer", version=1, figures=("vocab_size", "bytes_per_token"))
def tokenizer(run: StageRun, cfg: TokenizerConfig, documents: Artifact, **judged: Artifact) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`, `contract.json` and `sample.json`.

    Raises:
        ValueError: no text is left, or a tokenizer to compare with cannot be read.
    """
    # First: a file that cannot be read is said before minutes of training.
    others = {name_of(path): load_counter(path) for path in map(Path, cfg.compare_with)}
    shards = aligned_shards(documents, *judged.values())
    kept_bytes = sum(_kept_bytes(shard, attributes) for shard, *attributes in shards)
    if kept_bytes == 0:
        raise ValueError(
            "No document is left to learn a vocabulary from: the filters dropped all. `bessemer inspect filter` shows "
            "what each rule drops."
        )
    share = min(1.0, cfg.sample_megabytes * 1e6 / kept_bytes)
    sample = [item for shard, *attributes in shards for item in sample_documents(shard, attributes, share)]
    texts = [text for _, text in sample]
    run.metric("sample_documents", len(texts))
    run.metric("sample_bytes", sum(len(text.encode()) for text in texts))
    # Byte-level, which gives the same merges each run; with a prefix or suffix of words they differ
    # (huggingface/tokenizers#1794).
    trained = train_bpe(iter(texts), cfg.vocab_size, cfg.min_frequency)
    write_tokenizer(trained, run.out)
    record = {
        "documents": len(sample),
        "share": share,
        "ids": xxhash.xxh3_128_hexdigest("".join(i for i, _ in sample).encode()),
    }
    (run.out / "sample.json").write_bytes(canonical_json(record) + b"\n")
    run.metric("vocab_size", cfg.vocab_size)
    for name, value in others_bytes_per_token(others, texts).items():
        run.metric(f"bytes_per_token/{name}", value)
    run.metric("bytes_per_token", check_equality(trained, Tokenizer.load(run.out), texts))


def name_of(path: Path) -> str:
    """`gpt2/tokenizer.json` is gpt2, `cl100k_base.tiktoken` is cl100k_base."""
    return path.resolve().parent.name if path.stem == "tokenizer" else path.stem


def others_bytes_per_token(others: Mapping[str, CountTokens], texts: list[str]) -> dict[str, float]:
    """Of each other tokenizer, on the texts on which ours is measured."""
    heads = equality_sample(texts)
    size = sum(len(head.encode()) for head in heads)
    return {name: size / max(sum(map(count, heads)), 1) for name, count in others.items()}


def equality_sample(texts: list[str]) -> list[str]:
    """The beginnings of evenly spaced texts."""
    # Not beyond: longer texts are cut before encoding, and a cut may fall into a token.
    return [text[:SEGMENT_CHARACTERS] for text in texts[:: max(1, len(texts) // EQUALITY_DOCUMENTS)]]


def _kept_bytes(shard: Path, attributes: list[Path]) -> int:
    table = read_kept(shard, attributes)
    return int(pc.sum(pc.binary_length(table["text"])).as_py() or 0)


def sample_documents(shard: Path, attributes: list[Path], share: float) -> Iterator[tuple[str, str]]:
    """(doc_id, text) of the kept documents whose hash falls into the first `share` of all hashes."""
    table = read_kept(shard, attributes)
    for doc_id, text in zip(table["doc_id"].to_pylist(), table["text"].to_pylist()):
        # By hash: the sample of a corpus that grows keeps its documents, but for those that the share now leaves out.
        if int(doc_id[:16], 16) < share * 2**64:
            yield doc_id, text


def write_tokenizer(trained: HuggingFaceTokenizer, folder: Path) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(folder)` and this pipeline read."""
    (folder / "tokenizer.json").write_text(trained.to_str(pretty=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": ENDOFTEXT,
        # What ends an answer: generators of others stop at it without being told.
        "eos_token": IM_END,
        "pad_token": PAD,
        "model_max_length": 1_000_000,  # the model says how much it reads, not its tokenizer
        "clean_up_tokenization_spaces": False,  # else decoding takes away spaces before punctuation
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    write_contract(folder, contract_of_tokenizer(folder))


def check_equality(trained: HuggingFaceTokenizer, ours: Tokenizer, texts: list[str]) -> float:
    """Compare our ids, one by one and in bulk, with those of `tokenizers` on evenly spaced texts.

    Returns their bytes per token.
    """
    heads = equality_sample(texts)
    in_bulk = ours.encode_column(pa.array(heads, pa.large_string()))
    bytes_seen = tokens_seen = 0
    for row, head in enumerate(heads):
        ids = ours.encode(head)
        assert ids == in_bulk[row].tolist(), f"bulk encoding differs from tiktoken on {head[:80]!r}"
        # `tokenizers` reads special tokens in text, ours never does, so such texts may differ.
        assert ids == trained.encode(head, add_special_tokens=False).ids or any(t in head for t in SPECIAL_TOKENS), (
            f"tiktoken and tokenizers disagree on the text that begins {head[:80]!r}"
        )
        bytes_seen += len(head.encode())
        tokens_seen += len(ids)
    return bytes_seen / max(tokens_seen, 1)
