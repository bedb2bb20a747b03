"""The filter: a reason for every drop, features kept for inspection, thresholds changed without measuring again."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from model.corpus.features.measure import FEATURES
from model.corpus.language import identify
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, Outcome, obtain
from tasks.text.documents import attribute_shards, document_shards, read_kept
from tasks.text.filter import PUBLISHED, RULES, FilterConfig, filter, reasons
from tests.helpers.data import PROSE, make_documents

TOPICS = ["apples", "rivers", "stones", "clouds", "letters", "bridges", "gardens", "windows", "lamps", "maps"]
LONG = " ".join(f"Sentence number {word} is about {word} and the {word} of it." for word in TOPICS)
RELAXED = FilterConfig(
    languages=(), pii="keep", min_characters=0, min_words=0, min_mean_word_length=0, max_mean_word_length=1e6,
    max_hash_ratio=1e6, max_ellipsis_ratio=1e6, max_bullet_line_share=1, max_ellipsis_line_share=1,
    min_alphabetic_word_share=0, min_stop_words=0, max_duplicate_line_share=1, max_duplicate_line_char_share=1,
    max_duplicate_paragraph_share=1, max_duplicate_paragraph_char_share=1, max_top_2gram_share=9, max_top_3gram_share=9,
    max_top_4gram_share=9, max_duplicate_5gram_share=1, max_duplicate_6gram_share=1, max_duplicate_7gram_share=1,
    max_duplicate_8gram_share=1, max_duplicate_9gram_share=1, max_duplicate_10gram_share=1, max_lorem_ipsum=9,
    max_short_line_share=1, max_newlines_per_word=1e6, max_code_share=1, max_markup_share=1, max_boilerplate_share=1,
    max_top_word_share=1, max_longest_word_run=1000, max_symbol_share=1, max_digit_share=1,
)  # fmt: skip
"""No rule drops anything."""

DROPPED: dict[str, tuple[float, str]] = {
    "max_blocked_words": (0, "This FORBIDDEN phrase stands here."),
    "min_characters": (20, "Too short."),
    "max_characters": (20, "This is longer than twenty characters."),
    "min_words": (5, "only three words"),
    "max_words": (3, "these are four words"),
    "min_mean_word_length": (3, "a b c d e"),
    "max_mean_word_length": (10, "extraordinarily incomprehensible"),
    "max_longest_word": (20, "a " + "w" * 21),
    "max_hash_ratio": (0.1, "# one # two # three"),
    "max_ellipsis_ratio": (0.1, "well... so… what..."),
    "max_bullet_line_share": (0.9, "- a\n- b\n• c"),
    "max_ellipsis_line_share": (0.3, "so...\nwhat"),
    "min_alphabetic_word_share": (0.8, "1 2 3 four"),
    "min_stop_words": (2, "nothing here counts, the end"),
    "max_duplicate_line_share": (0.3, "one\none\ntwo"),
    "max_duplicate_line_char_share": (0.2, "a long line comes twice\na long line comes twice\nshort"),
    "max_duplicate_paragraph_share": (0.3, "a\n\na\n\nb"),
    "max_duplicate_paragraph_char_share": (0.2, "a whole paragraph\n\na whole paragraph\n\nb"),
    "max_top_2gram_share": (0.2, "buy now or buy now"),
    "max_top_3gram_share": (0.18, "buy it now or buy it now"),
    "max_top_4gram_share": (0.16, "come and buy it or come and buy it"),
    "max_duplicate_5gram_share": (0.15, "a b c d e a b c d e"),
    "max_duplicate_6gram_share": (0.14, "a b c d e f a b c d e f"),
    "max_duplicate_7gram_share": (0.13, "a b c d e f g a b c d e f g"),
    "max_duplicate_8gram_share": (0.12, " ".join("abcdefgh" * 2)),
    "max_duplicate_9gram_share": (0.11, " ".join("abcdefghi" * 2)),
    "max_duplicate_10gram_share": (0.10, " ".join("abcdefghij" * 2)),
    "min_c4_sentences": (5, "There is one sentence here."),
    "min_c4_line_share": (0.5, "This line is kept.\nthis one has no end and is rather long"),
    "max_curly_brackets": (0, "Then main() { return 0; } ends."),
    "max_lorem_ipsum": (0, "Lorem ipsum dolor sit amet"),
    "min_line_punctuation_share": (0.12, "no end\nno end either"),
    "max_short_line_share": (0.67, "short\nlines\nonly"),
    "max_fineweb_duplicate_share": (0.01, "one line\none line\n" + LONG),
    "max_newlines_per_word": (0.3, "one\ntwo\nthree"),
    "max_code_share": (0.5, "x = f(y);\nz = g(x);\nprose"),
    "max_markup_share": (0.3, "<div><p>text</p></div>"),
    "max_boilerplate_share": (0.3, "All rights reserved.\nClick here\nnews"),
    "max_top_word_share": (0.3, "spam spam ham spam"),
    "max_longest_word_run": (3, "no no no no"),
    "max_symbol_share": (0.5, "?!?! ab"),
    "max_digit_share": (0.3, "123 45 ab"),
}


def run(documents: Artifact, cfg: FilterConfig, home: Path, workers: int = 1) -> Outcome:
    return obtain(filter, cfg, {"documents": documents}, Execution(home=home, workers=workers))


def verdicts(outcome: Outcome) -> list[str]:
    return [r for shard in attribute_shards(outcome.artifact) for r in pq.read_table(shard)["reason"].to_pylist()]


def config(**changes: object) -> FilterConfig:
    return FilterConfig(**{**RELAXED.model_dump(), **changes})


def test_every_rule_has_a_test_and_a_feature() -> None:
    assert {rule.reason for rule in RULES} == set(DROPPED)
    assert {rule.feature for rule in RULES} - {"blocked_words"} == set(FEATURES)


def test_each_reason(tmp_path: Path) -> None:
    documents = make_documents(tmp_path / "documents", {"a": [*(text for _, text in DROPPED.values()), PROSE, LONG]})
    kept = run(documents, config(blocked_words=("forbidden",), max_blocked_words=9), tmp_path / "home")
    assert set(verdicts(kept)) == {""}
    for position, (reason, (threshold, _)) in enumerate(DROPPED.items()):
        outcome = run(documents, config(blocked_words=("forbidden",), **{"max_blocked_words": 9, reason: threshold}),
                      tmp_path / "home")  # fmt: skip
        found = verdicts(outcome)
        assert found[position] == reason
        assert set(found) == {"", reason}, "another rule dropped something"
        if reason not in ("max_characters", "max_words", "min_c4_sentences"):
            assert found[-2] == "", f"{reason} drops ordinary prose"
        assert outcome.manifest.metrics[f"dropped/{reason}"] == found.count(reason)


def test_values_at_the_threshold_pass() -> None:
    features = {name: np.zeros(1, np.float32) for name in FEATURES} | {"blocked_words": np.zeros(1, np.float32)}
    features["hash_ratio"] = np.array([1 / 10], np.float32)
    assert reasons(pa.table(features), config(max_hash_ratio=0.1)).to_pylist() == [""]
    assert reasons(pa.table(features), config(max_hash_ratio=0.0999)).to_pylist() == ["max_hash_ratio"]


def test_the_first_rule_in_order_is_the_reason(tmp_path: Path) -> None:
    documents = make_documents(tmp_path / "documents", {"a": ["no no no no", PROSE]})
    outcome = run(documents, config(min_words=10, max_longest_word_run=2), tmp_path / "home")
    assert verdicts(outcome) == ["min_words", ""]


def test_the_defaults_keep_technical_prose_and_drop_junk(tmp_path: Path) -> None:
    docstring = (
        "numpy.clip(a, a_min, a_max, out=None)\n\nClip (limit) the values in an array.\n\nGiven an interval, values "
        "outside the interval are clipped to\nthe interval edges.\n\nParameters\n----------\na : array_like\n    Array "
        "containing elements to clip.\na_min, a_max : array_like or None\n    Minimum and maximum value.\n\nExamples\n"
        "--------\n>>> import numpy as np\n>>> a = np.arange(10)\n>>> np.clip(a, 1, 8)\narray([1, 1, 2, 3, 4, 5, 6, 7, "
        "8, 8])\n"
    )
    junk = ["buy now " * 50, "<td>1</td>" * 40, "a", "0.1 0.2 0.3 " * 30, "{}();" * 50]
    documents = make_documents(tmp_path / "documents", {"a": [docstring, PROSE, *junk]})
    kept = [reason == "" for reason in verdicts(run(documents, FilterConfig(), tmp_path / "home"))]
    assert kept == [True, True] + [False] * len(junk)


def test_language(tmp_path: Path) -> None:
    german = (
        "Der Filter liest ein Dokument und misst, woran man es beurteilen kann. Er zählt die Wörter des Textes, die "
        "Zeilen mit einem Punkt am Ende und die Wendungen, die immer wieder vorkommen. Danach entscheidet eine Regel."
    )
    documents = make_documents(tmp_path / "documents", {"a": [PROSE, german]})
    english = run(documents, config(languages=("en",)), tmp_path / "home")
    assert verdicts(english) == ["", "min_foreign_probability"]
    columns = pq.read_table(attribute_shards(english.artifact)[0])
    assert columns["language"].to_pylist() == ["en", "de"]
    assert verdicts(run(documents, config(languages=("de", "en")), tmp_path / "home")) == ["", ""]
    assert verdicts(run(documents, config(languages=("de",)), tmp_path / "home")) == ["min_foreign_probability", ""]


def test_the_fast_guess_never_rejects() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    for text in (PROSE, "x = f(y)", "", "Une phrase en français, assez longue pour être reconnue par le modèle."):
        found = identify([text], ("fr",))[0]
        if found.code != "fr":
            assert (found.code, found.probability) == model.classify(text)


@pytest.mark.parametrize("pii", ["redact", "drop", "keep"])
def test_personal_data(tmp_path: Path, pii: str) -> None:
    secret = "Ünlike others, write to ann@site.org or 8.8.8.8, please.\n"
    documents = make_documents(tmp_path / "documents", {"a": [secret, PROSE]})
    outcome = run(documents, config(pii=pii), tmp_path / "home")
    kept = read_kept(document_shards(documents)[0], attribute_shards(outcome.artifact))["text"].to_pylist()
    expected = {
        "redact": ["Ünlike others, write to [EMAIL] or [IP], please.\n", PROSE],
        "drop": [PROSE],
        "keep": [secret, PROSE],
    }
    assert kept == expected[pii]
    assert verdicts(outcome)[0] == ("pii" if pii == "drop" else "")
    counted = {k: v for k, v in outcome.manifest.metrics.items() if k.startswith("pii/")}
    assert counted == ({} if pii == "keep" else {"pii/email": 1, "pii/ip": 1})


@pytest.mark.parametrize(
    ("blocked", "text", "count"),
    [
        ("bad", "Bad, bad badly BAD!", 3),
        ("bad word", "a bad word here", 1),
        ("坏词", "这是坏词吗", 1),
        ("c++", "I like C++ and c++11", 2),
        ("a.b", "a.b axb", 1),
    ],
)
def test_blocked_words(tmp_path: Path, blocked: str, text: str, count: int) -> None:
    documents = make_documents(tmp_path / "documents", {"a": [text, "ok"]})
    outcome = run(documents, config(blocked_words=(blocked,)), tmp_path / "home")
    assert pq.read_table(attribute_shards(outcome.artifact)[0])["blocked_words"].to_pylist() == [count, 0]
    assert verdicts(outcome) == ["max_blocked_words", ""]


@pytest.mark.parametrize("words", [("",), ("bad", " \t"), ("\u3000",)])
def test_an_empty_blocked_word_is_refused_with_its_place(words: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match=rf"word {len(words)} of {len(words)} is .*filter\.blocked_words"):
        FilterConfig(blocked_words=words)


def test_metrics_add_up(tmp_path: Path) -> None:
    documents = make_documents(tmp_path / "documents", {"a": [PROSE, "ü x"], "b": ["a b", LONG]})
    metrics: Mapping[str, float] = run(documents, config(min_words=3), tmp_path / "home").manifest.metrics
    assert metrics["documents_in"] == 4 and metrics["documents_kept"] == 2 and metrics["dropped/min_words"] == 2
    assert metrics["bytes_in"] == len((PROSE + "ü x" + "a b" + LONG).encode())
    assert metrics["bytes_kept"] == len((PROSE + LONG).encode())


def test_nothing_left_names_the_rule_that_dropped_most(tmp_path: Path) -> None:
    documents = make_documents(tmp_path / "documents", {"a": ["a b", "c d", "word " * 30]})
    with pytest.raises(ValueError, match=r"none of 3 documents.* min_words \(2\).*max_longest_word_run 1") as error:
        run(documents, config(min_words=3, max_longest_word_run=3), tmp_path / "home")
    assert "filter.min_words" in str(error.value)
    with pytest.raises(ValueError, match="given no documents"):
        run(make_documents(tmp_path / "none", {"a": []}), RELAXED, tmp_path / "home")


def test_a_new_threshold_measures_nothing_again(tmp_path: Path) -> None:
    documents = make_documents(tmp_path / "documents", {"a": [PROSE, "a b"], "b": [LONG]})
    run(documents, config(), tmp_path / "home")
    measured = {path: path.stat().st_mtime_ns for path in (tmp_path / "home" / "memo" / "measure_shard").rglob("data")}
    assert len(measured) == 2
    run(documents, config(min_words=3), tmp_path / "home")
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "home" / "memo" / "measure_shard").rglob("data")}
    assert again == measured


def test_columns_follow_the_rules_that_read_them(tmp_path: Path) -> None:
    documents = make_documents(tmp_path / "documents", {"a": [PROSE]})
    found = pq.read_schema(attribute_shards(run(documents, RELAXED, tmp_path / "home").artifact)[0]).names
    said = ["doc_id", "keep", "reason", "bytes", "language", "language_probability", "redactions"]
    assert found == [*said, *dict.fromkeys(rule.feature for rule in RULES)]


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    documents = make_documents(tmp_path / "documents", {name: [PROSE, LONG, f"{name} b"] for name in "abc"})
    digests = {run(documents, FilterConfig(), tmp_path / f"home{n}", workers=n).artifact.digest for n in (1, 2)}
    assert len(digests) == 1


def test_a_threshold_out_of_bounds_is_refused() -> None:
    with pytest.raises(ValidationError):
        FilterConfig(max_code_share=2)


def test_published_thresholds_are_those_of_the_papers() -> None:
    assert (PUBLISHED.min_words, PUBLISHED.max_words, PUBLISHED.min_stop_words) == (50, 100_000, 2)
    shares = [getattr(PUBLISHED, f"max_duplicate_{n}gram_share") for n in range(5, 11)]
    assert shares == [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
