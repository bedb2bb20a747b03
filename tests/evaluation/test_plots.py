"""What is drawn and tabled of a built stage says what the stage's files say."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.show.markdown import loss_markdown, stage_markdown
from tasks.evaluation.plots import family_sizes, ranked_drops, stage_plots
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Outcome, obtain
from tasks.mechanism.store import Artifact, Manifest, Store
from tasks.text.dedup.dedup import DedupConfig, dedup
from tasks.text.filter import FilterConfig, filter
from tests.helpers.data import PROSE, keep_all, make_documents, words

PNG = b"\x89PNG\r\n"


def table_rows(markdown: str) -> list[list[str]]:
    """The cells of every line of the tables, their rules left out."""
    lines = [line for line in markdown.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def judged(outcome: Outcome) -> list[str]:
    shards = sorted((outcome.artifact.path / "attributes").glob("*.parquet"))
    return [reason for shard in shards for reason in pq.read_table(shard)["reason"].to_pylist()]


def test_waterfall_of_the_filter_ends_at_what_was_kept(tmp_path: Path) -> None:
    texts = ["too short", "also too short", PROSE, "1 2 3 4 5 6 7 8 9 " * 40]
    documents = make_documents(tmp_path / "documents", {"a": texts})
    execution = Execution(home=tmp_path / "home", workers=1, threads=1)
    outcome = obtain(filter, FilterConfig(), {"documents": documents}, execution)
    reasons = judged(outcome)
    drops = ranked_drops(outcome.manifest)
    assert dict(drops) == {r: reasons.count(r) for r in set(reasons) - {""}}
    assert [count for _, count in drops] == sorted((count for _, count in drops), reverse=True)
    rows = table_rows(stage_markdown(Store(execution.home), outcome))
    assert rows[1] == ["in", "", "4"]
    assert rows[-1][-1] == str(reasons.count(""))
    assert stage_plots(Store(execution.home), outcome)["waterfall.png"].startswith(PNG)


def test_families_of_duplicates_are_counted_with_the_one_that_is_kept(tmp_path: Path) -> None:
    twice, thrice = words(1, 200), words(2, 200)
    texts = [twice, f"{twice} end", thrice, f"{thrice} one", f"{thrice} two", words(3, 200)]
    documents = make_documents(tmp_path / "documents", {"a": texts})
    filtered = keep_all(tmp_path / "filtered", documents)
    execution = Execution(home=tmp_path / "home", workers=1, threads=1)
    outcome = obtain(dedup, DedupConfig(), {"documents": documents, "filtered": filtered}, execution)
    assert family_sizes(outcome) == {2: 1, 3: 1}
    rows = table_rows(stage_markdown(Store(execution.home), outcome))
    assert rows[1:5] == [
        ["documents in", "6"],
        ["duplicates exact", "0"],
        ["duplicates near", "3"],
        ["documents kept", "3"],
    ]
    assert rows[-2:] == [["2", "1"], ["3", "1"]]
    assert stage_plots(Store(execution.home), outcome)["families.png"].startswith(PNG)


def outcome_of(stage: str, metrics: dict[str, float]) -> Outcome:
    """A built stage call with these figures and nothing on disk."""
    manifest = Manifest(
        stage=stage,
        label=stage,
        version=1,
        key="k",
        digest="d",
        config={},
        inputs={},
        code_digest="",
        metrics=metrics,
        seconds=1.0,
        cpu_seconds=1.0,
        input_bytes=0,
        size_bytes=0,
        created="2026-01-01T00:00:00+00:00",
        environment={},
    )
    return Outcome(stage, Artifact("d", Path("nowhere")), manifest, "built", "")


@pytest.mark.parametrize(
    ("stage", "metrics", "picture"),
    [
        ("tokenizer", {"vocab_size": 512, "bytes_per_token": 2.0, "bytes_per_token/gpt2": 4.1}, "efficiency.png"),
        ("evaluate", {"bits_per_byte/web": 1.2, "bits_per_byte/code": 0.9}, "sources.png"),
    ],
)
def test_figures_by_name_are_drawn(tmp_path: Path, stage: str, metrics: dict[str, float], picture: str) -> None:
    plots = stage_plots(Store(tmp_path / "home"), outcome_of(stage, metrics))
    assert list(plots) == [picture]
    assert plots[picture].startswith(PNG)


def test_one_source_needs_no_picture(tmp_path: Path) -> None:
    assert stage_plots(Store(tmp_path / "home"), outcome_of("evaluate", {"bits_per_byte/web": 1.2})) == {}


def test_curve_of_the_loss_is_drawn_to_its_last_step() -> None:
    shown = loss_markdown("pretrain", [(step, 5.0 - step / 10) for step in range(1, 21)])
    assert "loss 3.0000 at step 20" in shown
    assert shown.count("```") == 2 and "•" in shown
