"""The tokenizer: exact round trips, ids equal to those of tokenizers and transformers, refusals, determinism."""

import base64
import json
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import models, pre_tokenizers

from model.vocabulary.other_tokenizers import load_counter
from model.vocabulary.tokenizer import (
    SEGMENT_CHARACTERS,
    SPECIAL_TOKENS,
    Tokenizer,
    byte_alphabet,
    split_segments,
    train_bpe,
)
from tasks.tokens.tokenizer import check_equality, name_of, others_bytes_per_token, write_tokenizer

TEXTS = [text for _, text in sorted(topics.items())][:40]
ODD = [
    "",
    " ",
    "\n\n \n",
    "\r\n\r\n",
    "naïve café",
    "你好，世界",
    "👩‍👩‍👧‍👦🏽",
    "\u00a0\u2003x",
    "\0\x01",
    "١٢٣ ½",
    "a" * 5000,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(train_bpe(iter(TEXTS), 512), path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def test_special_ids_are_the_last(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 512
    assert list(tokenizer.special_ids.values()) == [508, 509, 510, 511]


@settings(max_examples=200, deadline=None)
@given(st.text().filter(lambda text: not any(token in text for token in SPECIAL_TOKENS)))  # theirs cuts those out
def test_round_trip_and_equality_with_tokenizers(folder: Path, tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids == HuggingFaceTokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids


@pytest.mark.parametrize("text", ODD)
def test_odd_texts(folder: Path, tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text) == HuggingFaceTokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids


def test_every_code_point_is_cut_alike(folder: Path, tokenizer: Tokenizer) -> None:
    """The two regex engines carry their own Unicode tables; they differ on no assigned letter, digit or space."""
    theirs = HuggingFaceTokenizer.from_file(str(folder / "tokenizer.json"))
    points = [chr(p) for p in range(0x3400) if not 0xD800 <= p < 0xE000]
    different = [c for c in points if tokenizer.encode(f"a{c}b {c}1") != theirs.encode(f"a{c}b {c}1").ids]
    assert different == []


def in_bulk(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    encoded = tokenizer.encode_column(pa.array(texts, pa.large_string()))
    return [encoded[row].tolist() for row in range(len(encoded))]


def test_bulk_cuts_every_code_point_as_one_by_one(tokenizer: Tokenizer) -> None:
    points = [chr(p) for p in (*range(0xD800), *range(0xE000, 0x33500), *range(0xE0000, 0xE0200))]
    texts = [
        "".join(f"a{c}b {c}1 {c}{c} '{c} \n{c}\n" for c in points[i : i + 100]) for i in range(0, len(points), 100)
    ]
    for rows in (texts, ["".join(texts[:300])]):  # rows with a code point of unknown class, and without
        assert in_bulk(tokenizer, rows) == [tokenizer.encode(text) for text in rows]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.sampled_from("aB's'ſtRe vEmlLdD1.\n\r\t \u00a0é中🙂-_̈")), min_size=1))
def test_bulk_gives_the_ids_of_one_by_one(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert in_bulk(tokenizer, texts) == [tokenizer.encode(text) for text in texts]


def test_bulk_remembers_across_texts_that_it_gives_up(tokenizer: Tokenizer) -> None:
    texts = [*ODD, "naïve x" + "a" * 300 + " y", "naïve x y", "word \U000e0378 word", "word", *TEXTS, "".join(TEXTS)]
    assert in_bulk(tokenizer, texts) == [tokenizer.encode(text) for text in texts]


def test_text_cannot_forge_special_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("".join(SPECIAL_TOKENS))
    assert not set(ids) & set(tokenizer.special_ids.values())
    assert tokenizer.decode(ids) == "".join(SPECIAL_TOKENS)


def test_transformers_loads_it(folder: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs(TEXTS[7])["input_ids"] == tokenizer.encode(TEXTS[7])
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.im_end_id, tokenizer.pad_id)
    assert len(theirs) == tokenizer.vocab_size


def test_training_is_deterministic_in_any_document_order() -> None:
    assert train_bpe(iter(TEXTS), 512).to_str() == train_bpe(iter(TEXTS[::-1]), 512).to_str()


def test_too_large_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fill \d+ vocabulary entries at most, tokenizer.vocab_size asks for 50000"):
        train_bpe(iter(TEXTS), 50_000)


def test_digest_follows_content_not_layout(folder: Path, tokenizer: Tokenizer) -> None:
    specification = json.loads((folder / "tokenizer.json").read_text())
    relaid = json.loads(json.dumps(specification, indent=2, sort_keys=True))
    assert Tokenizer(relaid).digest == tokenizer.digest
    specification["model"]["merges"] = specification["model"]["merges"][:-1]
    assert Tokenizer(specification).digest != tokenizer.digest


@pytest.mark.parametrize("text", [" " * 1_000_000, "a" * 1_000_000, "ab \n" * 300_000, "\n" * 1_000_000])
def test_huge_monotonous_texts(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_segments_cut_at_lines_change_no_token(tokenizer: Tokenizer) -> None:
    text = "".join(TEXTS)
    assert len(text) > 2 * SEGMENT_CHARACTERS
    assert "".join(split_segments(text)) == text
    assert tokenizer.encode(text) == tokenizer._encoding.encode_ordinary(text)


def test_check_equality_notices_a_difference(tokenizer: Tokenizer) -> None:
    other = train_bpe(iter([text[::-1] for text in TEXTS]), 512)
    with pytest.raises(AssertionError, match="disagree"):
        check_equality(other, tokenizer, TEXTS)


def test_foreign_pre_tokenizer_is_refused(folder: Path) -> None:
    specification = json.loads((folder / "tokenizer.json").read_text())
    specification["pre_tokenizer"] = {"type": "Whitespace"}
    with pytest.raises(ValueError, match="expected a BPE"):
        Tokenizer(specification)


def test_other_tokenizers_are_read_and_counted(tmp_path: Path) -> None:
    """One token a byte, in both kinds of file: bytes per token are then known without any other tokenizer."""
    single = byte_alphabet()
    plain = HuggingFaceTokenizer(models.BPE(vocab=single, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    (tmp_path / "bytes").mkdir()
    plain.save(str(tmp_path / "bytes" / "tokenizer.json"))
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256)]
    (tmp_path / "single.tiktoken").write_text("".join(lines) + f"{base64.b64encode(b'ab').decode()} 256\n")
    paths = [tmp_path / "bytes" / "tokenizer.json", tmp_path / "single.tiktoken"]
    counters = {name_of(path): load_counter(path) for path in paths}
    assert others_bytes_per_token(counters, ["abc é", "xy"]) == {"bytes": 1.0, "single": 8 / 7}


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist \(tokenizer.compare_with\)"):
        load_counter(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read as a tokenizer"):
        load_counter(tmp_path / "tokenizer.json")
