"""Signatures: equal to datasketch's, the same with and without compilation, over any text."""

import numpy as np
import pyarrow as pa
import pytest
from datasketch import LeanMinHash, MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from model.corpus import minhash, words
from model.corpus.exact import text_hashes, text_hashes_plain

RELAXED = settings(deadline=None)  # the first example may load a kernel
ODD_TEXTS = [
    "",
    " \n\t ",
    "word",
    "one two",
    "a b c d e",
    "The quick brown fox jumps over the lazy dog, twice: THE QUICK BROWN FOX.",
    "自然语言处理是人工智能的一个方向",
    "東京タワーへ行きました。English も少し。",
    "emoji 😀😀 and 👍🏽 in between words",
    "Straße ÉCOLE İstanbul ǅ Ω K (Kelvin) ſ",
    "ไทยไม่มีช่องว่าง และ ລາວ",
    "don't stop-me_now 3.14 x²",
    "\x00nul\x00 and \ufeff bom",
    "한국어 문장은 띄어쓰기를 합니다",
    "ends with high code point \U0010ffff",
]


def column(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def any_text() -> st.SearchStrategy[str]:
    alphabet = st.one_of(
        st.sampled_from("ab c\n\tAZ_09.,-'!éßÉİ一二三あ가😀\u00a0\u2028\u3000、。’K"), st.characters(codec="utf-8")
    )
    return st.text(alphabet, max_size=120)


def by_datasketch(text: str, shingle_words: int, count: int, seed: int) -> np.ndarray:
    sketch = MinHash(count, seed, hashfunc=lambda value: value, scheme="affine32")
    hashed = words.shingles_plain(column([text]), shingle_words).values
    sketch.update_batch(minhash.shingle_hash32(hashed).tolist())
    return sketch.hashvalues


@RELAXED
@given(st.lists(st.one_of(any_text(), st.sampled_from(ODD_TEXTS)), max_size=5), st.integers(1, 7))
def test_compiled_shingles_are_the_plain_ones(texts: list[str], shingle_words: int) -> None:
    compiled, plain = (f(column(texts), shingle_words) for f in (words.shingles, words.shingles_plain))
    assert np.array_equal(compiled.values, plain.values)
    assert np.array_equal(compiled.offsets, plain.offsets)


@settings(RELAXED, max_examples=60)
@given(st.one_of(any_text(), st.sampled_from(ODD_TEXTS)), st.integers(1, 6), st.integers(0, 1000))
def test_signatures_equal_datasketch(text: str, shingle_words: int, seed: int) -> None:
    ours = minhash.signatures(column(["before", text, "after"]), shingle_words, 16, seed)[1]
    assert np.array_equal(ours, by_datasketch(text, shingle_words, 16, seed))
    assert np.array_equal(ours, minhash.signatures_plain(column([text]), shingle_words, 16, seed)[0])


def test_permutations_are_datasketchs() -> None:
    assert np.array_equal(minhash.permutations(112, 3), MinHash(112, 3, scheme="affine32").permutations)


def test_a_sliced_column_reads_its_own_texts() -> None:
    texts = column([*ODD_TEXTS, "the last one of the column"])
    whole = minhash.signatures(texts, 3, 32, 1)
    assert np.array_equal(minhash.signatures(texts.slice(3, 9), 3, 32, 1), whole[3:12])


def test_a_document_of_50_megabytes_equals_datasketch() -> None:
    rng = np.random.default_rng(0)
    part = " ".join(f"word{i}" for i in rng.integers(0, 5000, 50_000))
    text = " ".join([part] * 120)
    assert len(text) > 50_000_000
    ours = minhash.signatures(column([text]), 5, 4, 1)[0]
    hashed = words.shingles(column([text]), 5).values
    sketch = MinHash(4, 1, hashfunc=lambda value: value, scheme="affine32")
    sketch.update_batch(np.unique(minhash.shingle_hash32(hashed)).tolist())
    assert np.array_equal(ours, sketch.hashvalues)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World", ["hello", "world"]),
        ("snake_case x1", ["snake_case", "x1"]),
        ("don't", ["don", "t"]),
        ("自然语言", ["自", "然", "语", "言"]),
        ("AI是人工智能。", ["ai", "是", "人", "工", "智", "能"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("ÉCOLE Ω", ["école", "ω"]),
        ("a—b…c\u00a0d\u3000e", ["a", "b", "c", "d", "e"]),
        ("so 😀 ok", ["so", "😀", "ok"]),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words.words_of(text) == expected


def test_case_punctuation_and_blanks_do_not_matter_but_order_does() -> None:
    a, b, c = minhash.signatures(
        column(["One two, THREE four", "one  two three\nfour!", "four three two one"]), 2, 64, 1
    )
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_a_text_without_words_has_the_empty_signature() -> None:
    assert (minhash.signatures(column(["", " .,! "]), 5, 8, 1) == minhash.EMPTY).all()


@RELAXED
@given(st.lists(st.sampled_from("abcdefghij"), min_size=12, max_size=60), st.integers(0, 8))
def test_the_estimate_is_near_the_exact_similarity(letters: list[str], shift: int) -> None:
    texts = column([" ".join(letters), " ".join(letters[shift:])])
    left, right = minhash.signatures(texts, 2, 1024, 1)
    shingled = words.shingles(texts, 2)
    exact = minhash.jaccard(shingled[0], shingled[1])
    assert abs(float((left == right).mean()) - exact) < 6 * 0.5 / 1024**0.5


def test_lean_minhash_goes_out_and_comes_in() -> None:
    signature = minhash.signatures(column(ODD_TEXTS), 3, 64, 7)
    sketches = [minhash.to_lean(row, 7) for row in signature]
    stored = [LeanMinHash.deserialize(bytes(_serialized(sketch))) for sketch in sketches]
    assert np.array_equal(minhash.from_lean(stored, 7), signature)
    assert sketches[5].jaccard(sketches[5]) == 1.0


def _serialized(sketch: LeanMinHash) -> bytearray:
    buffer = bytearray(sketch.bytesize())
    sketch.serialize(buffer)
    return buffer


def test_foreign_sketches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scheme 'legacy' and seed 1, expected 'affine32' and 1"):
        minhash.from_lean([LeanMinHash(MinHash(8, 1, scheme="legacy"))], 1)
    with pytest.raises(ValueError, match="seed 2"):
        minhash.from_lean([LeanMinHash(MinHash(8, 2, scheme="affine32"))], 1)


def test_documents_share_a_band_key_where_the_band_is_equal() -> None:
    signature = np.arange(48, dtype=np.uint32).reshape(2, 24)
    signature[1, 8:16] = signature[0, 8:16]
    keys = minhash.band_keys(signature, 3, 8)
    assert (keys[:, 0] == keys[:, 1]).tolist() == [False, True, False]


@RELAXED
@given(st.lists(st.one_of(any_text(), st.sampled_from(ODD_TEXTS)), max_size=5))
def test_text_hashes_are_the_plain_ones(texts: list[str]) -> None:
    assert np.array_equal(text_hashes(column(texts)), text_hashes_plain(column(texts)))


def test_text_hashes_ignore_case_and_blanks_only() -> None:
    a, b, c = text_hashes(column(["Ab  c\n", "ab C", "ab c."])).tolist()
    assert a == b != c


@RELAXED
@given(st.lists(st.one_of(any_text(), st.sampled_from(ODD_TEXTS)), max_size=6), st.integers(1, 3))
def test_signing_sets_is_signing_texts(texts: list[str], slice_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minhash, "SLICE_BYTES", slice_bytes * 50)
        sets = minhash.shingle_sets(column(texts), 2)
    hashed = words.shingles(column(texts), 2)
    expected = [sorted(set(minhash.shingle_hash32(hashed[row]).tolist())) for row in range(len(texts))]
    assert [sets[row].tolist() for row in range(len(sets))] == expected
    assert np.array_equal(minhash.sign(sets, 16, 1), minhash.signatures(column(texts), 2, 16, 1))
    assert np.array_equal(minhash._sign_plain(sets, 16, 1), minhash.sign(sets, 16, 1))
