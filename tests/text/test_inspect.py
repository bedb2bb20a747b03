"""Forensics: what a person is told about the filter and dedup is what those stages did, or would do."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, build
from tasks.text.dedup.dedup import DedupConfig, dedup
from tasks.text.documents import attribute_shards
from tasks.text.filter import FilterConfig, filter
from tasks.text.inspect.dedup import dedup_report, render_dedup_report
from tasks.text.inspect.filter import filter_report, render_filter_report, render_what_if, what_if
from tasks.text.inspect.filter_page import render_filter_page
from tests.helpers.data import keep_all, make_documents, words

PROSE = "The rule of the house is that each guest has to be kind to the others and help with the work to be done."
LOOSE = FilterConfig(languages=(), max_mean_word_length=100, min_words=3, max_digit_share=1, max_short_line_share=1)
SHARDS = {
    "a": [PROSE, "to be of the kind", f"{PROSE} </script>", "x"],
    "b": [
        "The numbers 1001 1002 1003 1004 1005 1006 are of the kind that has to be",
        "the one",
        PROSE + " Mail to ann@site.org.",
    ],
}


def reasons(artifact: Artifact) -> list[str]:
    return [r for shard in attribute_shards(artifact) for r in pq.read_table(shard)["reason"].to_pylist()]


@pytest.fixture
def filtered(tmp_path: Path) -> tuple[Artifact, Artifact]:
    documents = make_documents(tmp_path / "documents", SHARDS)
    return documents, build(filter, LOOSE, {"documents": documents}, Execution(home=tmp_path / "home", workers=1))


def test_the_report_counts_and_shows_each_drop(filtered: tuple[Artifact, Artifact]) -> None:
    report = filter_report(*filtered, LOOSE, samples=1)
    dropped = [reason for reason in reasons(filtered[1]) if reason]
    assert {drop.reason: drop.documents for drop in report.drops} == {r: dropped.count(r) for r in dropped}
    assert report.documents_in == 7 and report.documents_kept == 7 - len(dropped)
    assert all(len(drop.samples) == 1 for drop in report.drops)
    assert "min_characters = 50: 3 documents" in render_filter_report(report)


def test_what_if_says_what_a_run_would_do(filtered: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    documents, before = filtered
    after = LOOSE.model_copy(update={"min_characters": 10, "max_digit_share": 0.2, "max_top_4gram_share": 9.0})
    answer = what_if(documents, before, LOOSE, after)
    rerun = build(filter, after, {"documents": documents}, Execution(home=tmp_path / "home", workers=1))
    changes = list(zip(reasons(before), reasons(rerun)))
    assert answer.newly_dropped == sum(not old and bool(new) for old, new in changes) == 1
    assert answer.newly_kept == sum(bool(old) and not new for old, new in changes) > 0
    assert "NEWLY DROPPED" in render_what_if(answer) and "max_digit_share = 0.2" in render_what_if(answer)


def test_what_if_refuses_what_needs_a_run(filtered: tuple[Artifact, Artifact]) -> None:
    with pytest.raises(ValueError, match=r"filter\.pii was 'redact' and would be 'drop'"):
        what_if(*filtered, LOOSE, LOOSE.model_copy(update={"pii": "drop"}))


def test_the_page_carries_what_its_verdicts_need(filtered: tuple[Artifact, Artifact]) -> None:
    page = render_filter_page(*filtered, LOOSE)
    start = page.index("const data = ") + len("const data = ")
    data = json.loads(page[start : page.index(";\n", start)])
    assert page.count("</script>") == 1, "a document's text ended the script"
    assert "http" not in page.replace("http://x", ""), "the page asks the network for something"
    assert sum(data["weights"]) == 7
    verdicts = []
    for row in range(7):
        failed = [
            rule["reason"]
            for rule in data["rules"]
            if rule["side"] != "foreign"
            and (data["features"][rule["feature"]][row] < data["thresholds"][rule["reason"]]) == (rule["side"] == "min")
            and data["features"][rule["feature"]][row] != data["thresholds"][rule["reason"]]
        ]
        verdicts.append(failed[0] if failed else "")
    assert sorted(verdicts) == sorted(reasons(filtered[1]))


@pytest.fixture
def without_pii(tmp_path: Path) -> tuple[Artifact, Artifact, FilterConfig]:
    """One document is dropped for the address in it and nothing else, one for its length before its address counts."""
    texts = [f"{PROSE} Mail to ann@site.org or bob@site.org.", "ann@site.org", PROSE]
    documents = make_documents(tmp_path / "documents", {"a": texts})
    cfg = LOOSE.model_copy(update={"pii": "drop"})
    return documents, build(filter, cfg, {"documents": documents}, Execution(home=tmp_path / "home", workers=1)), cfg


def test_what_was_dropped_for_personal_data_is_told(without_pii: tuple[Artifact, Artifact, FilterConfig]) -> None:
    documents, judged, cfg = without_pii
    assert reasons(judged) == ["pii", "min_characters", ""]
    report = filter_report(documents, judged, cfg)
    assert (report.documents_in, report.documents_kept) == (3, 1)
    (pii,) = [drop for drop in report.drops if drop.reason == "pii"]
    assert pii.threshold is None
    assert [(sample.origin, sample.value) for sample in pii.samples] == [("a:0", 2.0)]
    assert "pii: 1 documents" in render_filter_report(report)


def test_what_if_keeps_nobody_who_would_be_dropped_for_personal_data(
    without_pii: tuple[Artifact, Artifact, FilterConfig], tmp_path: Path
) -> None:
    documents, judged, cfg = without_pii
    off = {"min_characters": 0, "min_words": 0, "min_stop_words": 0, "max_top_word_share": 1.0}
    looser = cfg.model_copy(update=off)
    rerun = build(filter, looser, {"documents": documents}, Execution(home=tmp_path / "home", workers=1))
    assert reasons(rerun) == ["pii", "pii", ""]
    answer = what_if(documents, judged, cfg, looser)
    assert (answer.newly_dropped, answer.newly_kept) == (0, 0)
    stricter = cfg.model_copy(update={"min_characters": 10_000})
    answer = what_if(documents, judged, cfg, stricter)
    assert answer.newly_dropped == 1, "the document that was dropped for personal data counted as kept"


def test_the_page_shows_what_was_dropped_for_personal_data(
    without_pii: tuple[Artifact, Artifact, FilterConfig],
) -> None:
    page = render_filter_page(*without_pii)
    start = page.index("const data = ") + len("const data = ")
    data = json.loads(page[start : page.index(";\n", start)])
    rule = data["rules"][-1]
    assert rule == {"reason": "pii", "feature": "personal_data", "side": "max"} and data["fixed"] == ["pii"]
    found = dict(zip(data["origins"], data["features"]["personal_data"]))
    assert found == {"a:0": 2, "a:1": 1, "a:2": 0} and data["thresholds"]["pii"] == 0
    assert '"personal_data"' not in render_filter_page(*without_pii[:2], LOOSE), "nobody is dropped for it there"


def test_a_sampled_page_is_weighted(tmp_path: Path) -> None:
    documents = make_documents(tmp_path / "documents", {"a": [f"{PROSE} {n}" for n in range(40)] + ["x"] * 10})
    done = build(filter, LOOSE, {"documents": documents}, Execution(home=tmp_path / "home", workers=1))
    page = render_filter_page(documents, done, LOOSE, most_documents=20)
    start = page.index("const data = ") + len("const data = ")
    data = json.loads(page[start : page.index(";\n", start)])
    assert len(data["weights"]) == 20
    assert sum(data["weights"]) == pytest.approx(50)


def test_the_dedup_report(tmp_path: Path) -> None:
    text = words(1, 100)
    near = text.replace(text.split()[50], "different", 1)
    documents = make_documents(
        tmp_path / "documents", {"a": [text, words(2, 30), text], "b": [near, words(2, 30).upper()]}
    )
    inputs = {"documents": documents, "filtered": keep_all(tmp_path / "kept", documents)}
    done = build(dedup, DedupConfig(), inputs, Execution(home=tmp_path / "home", workers=1))
    report = dedup_report(documents, done)
    assert (report.documents_in, report.exact, report.near) == (5, 2, 1)
    assert [(family.kept_origin, family.dropped) for family in report.families] == [("a:0", 2), ("a:1", 1)]
    rendered = render_dedup_report(report)
    assert "family of 3: kept a:0" in rendered
    assert f"{text.split()[50]:<58} | different" in rendered
    assert "… 50 words alike …" in rendered


def test_a_dedup_report_without_duplicates(tmp_path: Path) -> None:
    documents = make_documents(tmp_path / "documents", {"a": [words(1, 50)]})
    inputs = {"documents": documents, "filtered": keep_all(tmp_path / "kept", documents)}
    done = build(dedup, DedupConfig(), inputs, Execution(home=tmp_path / "home", workers=1))
    assert render_dedup_report(dedup_report(documents, done)).startswith("1 documents, 0 exact and 0 near")
