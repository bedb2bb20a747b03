"""Text to token ids and back: one byte-level BPE, trained by `tokenizers`, run by tiktoken and, in bulk, by model/bpe.

Ids below the special tokens are in merge-rank order, so tiktoken (5-7 times faster in bulk than `tokenizers` on the
same merges) gives the ids of the Hugging Face tokenizer without a table in between, and whole columns of text are
encoded by compiled code that is faster again; the tokenizer stage checks all three against each other each run.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tiktoken
from numpy.typing import NDArray
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HuggingFaceTokenizer

from model.corpus.words import Ragged
from model.kernels.jit import COMPILED
from model.vocabulary.bpe import Encoded, encode_column
from model.vocabulary.merges import Merges, merges_of

__all__ = ["HuggingFaceTokenizer", "Tokenizer", "train_bpe"]

ENDOFTEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = (ENDOFTEXT, IM_START, IM_END, PAD)
"""In the order of their ids, which are the last of the vocabulary."""

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is cut before merging: the pattern of Qwen2 (llama.cpp's pre-tokenizer `qwen2`), a token for each digit."""

Ids = Sequence[int] | NDArray[np.uint32]

SEGMENT_CHARACTERS = 100_000
"""Longer texts are cut before encoding: the regex engine's backtracking overflows on a run of a million spaces."""


def byte_alphabet() -> dict[str, int]:
    """The printable stand-in of each byte in `tokenizer.json` (GPT-2's `bytes_to_unicode`, inverted)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def token_bytes(token: str, alphabet: dict[str, int]) -> bytes:
    """The bytes that a vocabulary entry of `tokenizer.json` stands for."""
    return bytes(map(alphabet.__getitem__, token))


class Tokenizer:
    """A tokenizer as the stages use it. Text never yields a special token: those are put in by id, so that no document
    and no user can forge the border of a message."""

    def __init__(self, specification: dict[str, Any]) -> None:
        """Take the parsed content of a `tokenizer.json`.

        Raises:
            ValueError: it is not a byte-level BPE whose ids are in merge-rank order, or a special token is missing.
        """
        self._model = specification["model"]
        self._pattern = _split_pattern(specification)
        self._special_ids = {token["content"]: int(token["id"]) for token in specification["added_tokens"]}
        alphabet = byte_alphabet()
        ranks = {
            token_bytes(token, alphabet): int(rank)
            for token, rank in self._model["vocab"].items()
            if token not in self._special_ids
        }
        self.vocab_size = len(ranks) + len(self._special_ids)
        if sorted([*ranks.values(), *self._special_ids.values()]) != list(range(self.vocab_size)):
            raise ValueError(f"tokenizer.json: the ids are not 0..{self.vocab_size - 1}, each once.")
        self.endoftext_id, self.im_start_id, self.im_end_id, self.pad_id = map(self._special_id, SPECIAL_TOKENS)
        self._ranks = ranks
        self._encoding = tiktoken.Encoding(
            "bessemer", pat_str=self._pattern, mergeable_ranks=ranks, special_tokens=self._special_ids
        )

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read `tokenizer.json` from an artifact or model folder."""
        return cls(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))

    def _special_id(self, token: str) -> int:
        if token not in self._special_ids:
            raise ValueError(
                f"tokenizer.json has no special token {token}; found {', '.join(sorted(self._special_ids)) or 'none'}. "
                "Use a tokenizer made by the tokenizer stage."
            )
        return self._special_ids[token]

    @property
    def special_ids(self) -> dict[str, int]:
        """Special token -> id."""
        return {token: self._special_ids[token] for token in SPECIAL_TOKENS}

    @cached_property
    def digest(self) -> str:
        """sha256 over all that decides ids: vocabulary, merges, pattern, special tokens; not over the file's layout."""
        merges = [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in self._model["merges"]]
        content = [
            sorted(self._model["vocab"].items(), key=lambda item: item[1]),
            merges,
            self._pattern,
            sorted(self._special_ids.items(), key=lambda item: item[1]),
        ]
        # Of the parsed content: another layout of the file, or merges as "a b" instead of pairs, are the same.
        return hashlib.sha256(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; the text of a special token is encoded like any other text."""
        if len(text) <= SEGMENT_CHARACTERS:
            return self._encoding.encode_ordinary(text)
        return [token for segment in split_segments(text) for token in self._encoding.encode_ordinary(segment)]

    def encode_column(self, texts: pa.LargeStringArray) -> Ragged:
        """The ids of each text, as `encode` gives them, end to end. Values (tokens,) uint32."""
        # In bytes, of which there are as many as characters or more: nothing long slips by.
        long = pc.greater(pc.binary_length(texts), SEGMENT_CHARACTERS)
        if not pc.any(long).as_py():
            return self._encode_segments(texts)
        segments = [split_segments(text) for text in texts.to_pylist()]
        borders = np.cumsum([0, *map(len, segments)])
        encoded = self._encode_segments(pa.array([part for parts in segments for part in parts], pa.large_string()))
        return Ragged(encoded.values, encoded.offsets[borders])

    def _encode_segments(self, texts: pa.LargeStringArray) -> Ragged:
        if self._merges is None:
            return _ragged([self._encoding.encode_ordinary(text) for text in texts.to_pylist()])
        encoded = encode_column(texts, self._merges)
        return self._fill_unknown(texts, encoded) if encoded.unknown.any() else encoded.ids

    def _fill_unknown(self, texts: pa.LargeStringArray, encoded: Encoded) -> Ragged:
        """Put tiktoken's ids in for the texts that the compiled encoder left."""
        rows: list[Ids] = [encoded.ids[row] for row in range(len(texts))]
        for row in np.flatnonzero(encoded.unknown).tolist():
            rows[row] = self._encoding.encode_ordinary(texts[row].as_py())
        return _ragged(rows)

    @cached_property
    def _merges(self) -> Merges | None:
        """The compiled encoder's tables; None where it cannot do what tiktoken does."""
        return merges_of(self._ranks) if COMPILED and self._pattern == QWEN2_PATTERN else None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens as they are spelt; bytes that are not UTF-8 become U+FFFD."""
        return self._encoding.decode(list(ids), errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes of `ids`."""
        return self._encoding.decode_bytes(list(ids))


def _ragged(rows: Sequence[Ids]) -> Ragged:
    ends = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Ragged(np.concatenate([np.empty(0, np.uint32), *(np.asarray(row, np.uint32) for row in rows)]), ends)


def split_segments(text: str) -> list[str]:
    """Cut a long text before a line's first letter where there is one, so that the cut seldom changes a token."""
    segments = []
    start = 0
    while len(text) - start > SEGMENT_CHARACTERS:
        end = start + SEGMENT_CHARACTERS
        # In the second half of a segment, so that there are at most twice as many as needed.
        newline = text.rfind("\n", start + SEGMENT_CHARACTERS // 2, end)
        while newline > start and text[newline + 1].isspace():
            newline = text.rfind("\n", start + SEGMENT_CHARACTERS // 2, newline)
        end = newline + 1 if newline > start else end
        segments.append(text[start:end])
        start = end
    return [*segments, text[start:]]


def _split_pattern(specification: dict[str, Any]) -> str:
    """The regular expression of the pre-tokenizer `Sequence[Split(Regex), ByteLevel(use_regex=False)]`."""
    steps = (specification.get("pre_tokenizer") or {}).get("pretokenizers", [])
    kinds = [step.get("type") for step in steps]
    if specification["model"]["type"] != "BPE" or kinds != ["Split", "ByteLevel"] or steps[1]["use_regex"]:
        raise ValueError(
            f"tokenizer.json: model {specification['model']['type']} with pre-tokenizer steps {kinds}; expected a BPE "
            "with [Split by a regular expression, ByteLevel]."
        )
    return str(steps[0]["pattern"]["Regex"])


def train_bpe(texts: Iterator[str], vocab_size: int, min_frequency: int = 2) -> HuggingFaceTokenizer:
    """A byte-level BPE with `vocab_size` entries whose last ids are the special tokens.

    Byte-level only: with a subword prefix or suffix, `tokenizers` gives other merges in every run (its issue 1794). No
    normalizer, so that decoding gives back every byte. Each digit is a token; a space goes with the word after it.

    Raises:
        ValueError: the text has too few different pairs for so many entries.
    """
    trained = HuggingFaceTokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")
    # Without a prefix space, which decoding would give back too.
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    trained.decoder = decoders.ByteLevel()
    wanted = vocab_size - len(SPECIAL_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=wanted,
        min_frequency=min_frequency,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # all 256 bytes: every text can be encoded
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    found = trained.get_vocab_size()
    if found < wanted:
        raise ValueError(
            f"The text can fill {found + len(SPECIAL_TOKENS)} vocabulary entries at most, tokenizer.vocab_size asks "
            f"for {vocab_size}. Give more text, or set tokenizer.vocab_size to {found + len(SPECIAL_TOKENS)} or less."
        )
    trained.add_special_tokens(list(SPECIAL_TOKENS))  # after training: the last ids
    return trained
