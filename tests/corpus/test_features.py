"""Features: the kernel agrees bit for bit with the plain definition, and the definition says what it should."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.corpus.features.measure import FEATURES, measure_compiled, measure_plain
from model.corpus.features.phrases import PHRASES

RELAXED = settings(deadline=None, max_examples=300)  # the first example may load the kernel
PIECES = [
    "the", "be", "to", "and", "word", "Word", "foo_bar", "x", "3.14", "#", "##", "...", "…", "-", "•", "$ ",
    ">>> ", "... ",
    "{", "}", ";", "f(x)",
    "one two { three.\n", "a=b", "\n", "\n\n", "\n\n\n", " ", "  ", "\t", "\r\n", ".", "?", "!", '"', "'", ")", "[1]",
    "[edit]", "[citation needed]", "[x]", "]", "[", "<b>", "</b>", "<", ">", "<!-- -->", "&amp;", "&", "](http://x.y)",
    "](a b)", "](", "```", "lorem ipsum", "Terms of Use", "javascript", "all rights reserved", "All Rights Reserved.",
    "cookie policy", "自然", "语言。", "é", "É", "😀", "\u00a0", "\u2028", "\u3000", "\x1c", "\x85", "K", "İ", "ſ",
    "w" * 40, "same same same same", "one two three four five six", "\ufeff", "_", "٣", "½",
]  # fmt: skip


def compiled(texts: list[str]) -> np.ndarray:
    return measure_compiled(pa.array(texts, pa.large_string()))


def plain(texts: list[str]) -> np.ndarray:
    return np.array([measure_plain(text) for text in texts]).reshape(-1, len(FEATURES)).astype(np.float32)


def value(text: str, feature: str) -> float:
    found = compiled([text])[0, FEATURES.index(feature)]
    assert found == np.float32(measure_plain(text)[FEATURES.index(feature)])
    return float(found)


def assert_same(texts: list[str]) -> None:
    ours, expected = compiled(texts), plain(texts)
    for row, column in zip(*np.nonzero(ours != expected)):
        pytest.fail(f"{FEATURES[column]}: {ours[row, column]} is not {expected[row, column]} for {texts[row]!r}")


@RELAXED
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), max_size=3))
def test_the_kernel_agrees_with_the_definition(texts: list[str]) -> None:
    assert_same(texts)


@RELAXED
@given(st.lists(st.sampled_from(["a", "b", "cc", "ddd", "\n", "e."]), max_size=120).map(" ".join))
def test_the_kernel_agrees_on_repetition(text: str) -> None:
    assert_same([text])


@settings(RELAXED, max_examples=100)
@given(st.text(st.characters(codec="utf-8"), max_size=80))
def test_the_kernel_agrees_on_any_character(text: str) -> None:
    assert_same([text, "between", text + "\n" + text])


def test_long_words_lines_and_tags_at_their_limits() -> None:
    texts = [f"<a {'x' * n}>" for n in (297, 298, 299, 300)] + [f"]({'x' * n})" for n in (499, 500, 501)]
    texts += [f"&{'a' * n};" for n in (1, 2, 10, 11)] + [f"one two {'w' * n}." for n in (998, 999, 1000, 1001)]
    texts += ["x" * n for n in (29, 30, 31)]
    assert_same(texts)


def test_every_phrase_is_found_in_any_case_and_nothing_else() -> None:
    for phrase, _ in PHRASES:
        assert_same([phrase, f"Xx{phrase.upper()}yy", phrase[:-1] + "#", phrase[1:], phrase + "\n" + phrase])


@pytest.mark.parametrize(
    ("text", "feature", "expected"),
    [
        ("äöü", "characters", 3),
        ("one, two -- 3 *", "words", 3),
        ("one, two -- 3 *", "mean_word_length", (4 + 3 + 1) / 3),
        ("a bcd ef", "longest_word", 3),
        ("# one # two", "hash_ratio", 0.5),
        ("one... two… three four", "ellipsis_ratio", 0.5),
        ("- a\n • b\nc\n", "bullet_line_share", 2 / 3),
        ("a...\nb…  \nc\nd.", "ellipsis_line_share", 0.5),
        ("one 2 three 4,", "alphabetic_word_share", 0.5),
        ("The the of that of", "stop_words", 3),
        ("a\nb\na\n\na", "duplicate_line_share", 0.5),
        ("aa\nbb\naa", "duplicate_line_char_share", 2 / 8),
        ("x\ny\n\nz\n\nx\ny", "duplicate_paragraph_share", 1 / 3),
        ("x\ny\n\nz\n\nx\ny", "duplicate_paragraph_char_share", 3 / 11),
        ("a b c a b d", "top_2gram_share", 6 / 11),
        ("a b c d e f", "top_2gram_share", 0),
        ("a b c x a b c", "top_3gram_share", 10 / 13),
        ("a b c d x a b c d", "top_4gram_share", 14 / 17),
        ("a b c d e a b c d e", "duplicate_5gram_share", 5 / 19),
        (" ".join("abcdefghij" * 2), "duplicate_10gram_share", 10 / 39),
        ("This is one. And two!\nno end here\nToo short.", "c4_sentences", 2),
        ("This has a note.[12][edit]", "c4_sentences", 1),
        ("This trails off...", "c4_sentences", 0),
        ("See our privacy policy here.", "c4_sentences", 0),
        ("Please enable Javascript now.", "c4_sentences", 0),
        ("This is one line.\nabc", "c4_line_share", 17 / 20),
        ("this has { one { b.", "curly_brackets", 2),
        ("no end, so not judged {", "curly_brackets", 0),
        ("javascript is { looked for. first", "curly_brackets", 0),
        ("Lorem ipsum dolor\nlorem ipsum", "lorem_ipsum", 2),
        ("One.\ntwo\n\nThree? \n四。", "line_punctuation_share", 0.75),
        ("short\n" + "x" * 31, "short_line_share", 0.5),
        ("aa\nbb\naa", "fineweb_duplicate_share", 2 / 6),
        ("a b\nc d\n", "newlines_per_word", 0.5),
        (">>> f()\nSome prose is here.", "code_share", 6 / 22),
        ("Words are here.\n```\nplain\n```", "code_share", 11 / 24),
        ("x = f(a[0], b)", "code_share", 1),
        ("Some prose, with a comma.", "code_share", 0),
        ("<b>bold</b>", "markup_share", 7 / 11),
        ("a < b and c > d", "markup_share", 0),
        ("[a](http://b) &amp;", "markup_share", (11 + 5) / 19),
        ("Real text\nAll rights reserved.", "boilerplate_share", 20 / 29),
        ("buy buy now buy", "top_word_share", 0.75),
        ("no no no yes", "longest_word_run", 3),
        ("0 0 0 0", "longest_word_run", 0),
        ("ab! ?", "symbol_share", 0.5),
        ("a1 2", "digit_share", 2 / 3),
    ],
)
def test_definitions(text: str, feature: str, expected: float) -> None:
    assert value(text, feature) == pytest.approx(expected, rel=1e-6)


def test_a_text_of_nothing_measures_nothing() -> None:
    for text in ("", "   ", "\n\n\n"):
        found = dict(zip(FEATURES, compiled([text])[0].tolist()))
        assert_same([text])
        assert not any(v for k, v in found.items() if k not in ("characters", "newlines_per_word")), text


def test_one_document_does_not_change_another() -> None:
    texts = ["".join(PIECES[i:]) for i in range(0, len(PIECES), 5)]
    together = compiled(texts)
    assert np.array_equal(together, np.concatenate([compiled([text]) for text in texts]))
