"""Preferences: prompt, chosen and rejected in their layouts; a file without them is refused with file and line."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.chats.preferences import PreferencesConfig, preference_of, preferences
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, obtain
from tasks.text.source import resolve_source
from tests.helpers import tiny

PROMPT = [{"role": "user", "content": "What is steel?"}]
GOOD = [{"role": "assistant", "content": "Iron with some carbon."}]
WORSE = [{"role": "assistant", "content": "A fruit."}]


def run(path: Path, execution: Execution, **config: Any) -> tuple[Artifact, dict[str, float]]:
    source = resolve_source(str(path), execution.home / "sources")
    outcome = obtain(preferences, PreferencesConfig(**config), {"pairs": source}, execution)
    return outcome.artifact, outcome.manifest.metrics


def rows(artifact: Artifact, split: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(artifact.path / f"{split}.parquet").to_pylist()
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "What is steel?", "chosen": "Iron with some carbon.", "rejected": "A fruit."},
        {"prompt": PROMPT, "chosen": GOOD, "rejected": WORSE},
        {"prompt": "What is steel?", "chosen": [*PROMPT, *GOOD], "rejected": [*PROMPT, *WORSE]},
        {"chosen": [*PROMPT, *GOOD], "rejected": [*PROMPT, *WORSE]},
    ],
)
def test_layouts(fields: dict[str, Any]) -> None:
    assert preference_of(fields) == (PROMPT, GOOD, WORSE)


def test_several_turns_before_the_answers() -> None:
    history = [*PROMPT, *GOOD, {"role": "user", "content": "Sure?"}]
    found = preference_of({"chosen": [*history, *GOOD], "rejected": [*history, *WORSE]})
    assert found == (history, GOOD, WORSE)
    assert preference_of({"prompt": history, "chosen": GOOD, "rejected": WORSE}) == (history, GOOD, WORSE)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


LATER = [turn("assistant", "A"), turn("user", "Second?")]


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        (
            {"prompt": "First?", "chosen": [*LATER, *GOOD], "rejected": [*LATER, *WORSE]},
            [turn("user", "First?"), *LATER],
        ),
        (
            {"prompt": [turn("system", "Brief."), *PROMPT], "chosen": [*PROMPT, *GOOD], "rejected": [*PROMPT, *WORSE]},
            [turn("system", "Brief."), *PROMPT],
        ),
        (
            {"prompt": "Second?", "chosen": [*PROMPT, *LATER, *GOOD], "rejected": [*PROMPT, *LATER, *WORSE]},
            [*PROMPT, *LATER],
        ),
        (
            {
                "prompt": "What is steel? ",
                "messages": [*PROMPT, *GOOD],
                "chosen": [*PROMPT, *GOOD],
                "rejected": [*PROMPT, *WORSE],
            },
            PROMPT,
        ),
        (
            {"instruction": "What is", "input": "steel?", "chosen": GOOD, "rejected": WORSE},
            [turn("user", "What is\n\nsteel?")],
        ),
        (
            {
                "conversations": [{"from": "human", "value": "What is steel?"}],
                "chosen": {"from": "gpt", "value": GOOD[0]["content"]},
                "rejected": {"from": "gpt", "value": WORSE[0]["content"]},
            },
            PROMPT,
        ),
        (
            {"system": "Brief.", "prompt": "What is steel?", "chosen": GOOD, "rejected": WORSE},
            [turn("system", "Brief."), *PROMPT],
        ),
        (
            {
                "chosen": "\n\nHuman: What is steel?\n\nAssistant: Iron with some carbon.",
                "rejected": "\n\nHuman: What is steel?\n\nAssistant: A fruit.",
            },
            PROMPT,
        ),
    ],
)
def test_what_came_before_the_answers_is_whole(fields: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    assert preference_of(fields) == (prompt, GOOD, WORSE)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "a", "chosen": "b"}, "no field 'rejected'; found: prompt, chosen; expected prompt, chosen and rej"),
        ({"text": "a"}, "no field 'chosen' and 'rejected'; found: text"),
        ({"chosen": "b", "rejected": "c"}, "no field 'prompt'"),
        ({"prompt": "a", "chosen": 5, "rejected": "c"}, "expected a list of messages, found 5"),
        (
            {"prompt": "a", "chosen": [*PROMPT, *GOOD], "rejected": [*PROMPT, *WORSE]},
            "'prompt': the answers begin with",
        ),
        ({"prompt": "a", "chosen": [*GOOD, *PROMPT], "rejected": WORSE}, "'chosen' ends with a turn of the user"),
        ({"prompt": "a", "chosen": PROMPT, "rejected": WORSE}, "'chosen' has no answer of the assistant"),
    ],
)
def test_unusable_records_say_why(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preference_of(fields)


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_file(tmp_path: Path, execution: Execution) -> None:
    good = [{"prompt": f"Question {i}?", "chosen": f"Yes {i}.", "rejected": "No."} for i in range(300)]
    equal = {"prompt": "x", "chosen": "same", "rejected": "same"}
    artifact, metrics = run(write(tmp_path / "a.jsonl", [*good, equal]), execution)
    train, validation = rows(artifact, "train"), rows(artifact, "validation")
    assert (len(train), len(validation)) == (268, 32) and metrics["equal_pairs"] == 1
    row = train[0]
    assert row["rejected"] == [{"role": "assistant", "content": "No."}]
    assert row["prompt"][0]["content"].replace("Question ", "").rstrip("?") in row["chosen"][0]["content"]
    assert len(row["preference_id"]) == 32 and row["source"] == "a"


def test_a_file_without_rejected_is_refused_with_file_line_and_fields(tmp_path: Path, execution: Execution) -> None:
    path = write(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b"}] * 5)
    with pytest.raises(ValueError, match=r"^pairs.jsonl, line 1: no field 'rejected'; found: prompt, chosen; expected"):
        run(path, execution)


def test_python_source_gives_true_and_worse_answers(tmp_path: Path) -> None:
    library = tiny.make_corpus(tmp_path / "library")
    first, _ = run(library, Execution(home=tmp_path / "h1", workers=1), max_pairs=500)
    second, _ = run(library, Execution(home=tmp_path / "h2", workers=2), max_pairs=500)
    assert first.digest == second.digest
    pairs = rows(first, "train") + rows(first, "validation")
    assert len(pairs) == 500
    truncated = [p for p in pairs if p["chosen"][0]["content"].startswith(p["rejected"][0]["content"])]
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    assert 100 < len(truncated) < 400, "both kinds of worse answer occur"
