"""Conversations: every usual layout, refusals with file and line, a validation split that asks of other objects."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.chats.conversations import ConversationsConfig, conversation_of, conversations
from tasks.chats.messages import content_id, group_hash, validation_mask
from tasks.chats.preferences import preference_of
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, obtain
from tasks.text.source import resolve_source
from tests.helpers import tiny

FIELDS = (
    *("messages", "conversations", "role", "content", "from", "value", "instruction", "input", "output", "history"),
    *("system", "prompt", "completion", "chosen", "rejected", "weight", "tool_calls", "type", "text"),
)
QUESTION = {"role": "user", "content": "What is steel?"}
ANSWER = {"role": "assistant", "content": "Iron with some carbon."}


def run(path: Path, execution: Execution, **config: Any) -> tuple[Artifact, dict[str, float]]:
    source = resolve_source(str(path), execution.home / "sources")
    outcome = obtain(conversations, ConversationsConfig(**config), {"sft": source}, execution)
    return outcome.artifact, outcome.manifest.metrics


def rows(artifact: Artifact, split: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(artifact.path / f"{split}.parquet").to_pylist()
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [QUESTION, ANSWER]},
        {"messages": [QUESTION, {"role": "assistant", "content": [{"type": "text", "text": ANSWER["content"]}]}]},
        {"conversations": [{"from": "human", "value": "What is steel?"}, {"from": "gpt", "value": ANSWER["content"]}]},
        {"conversations": [QUESTION, ANSWER]},
        {"instruction": "What is steel?", "input": "", "output": ANSWER["content"]},
        {"instruction": "What is steel?", "output": ANSWER["content"], "messages": None},
        {"prompt": "What is steel?", "completion": ANSWER["content"]},
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"messages": [QUESTION, ANSWER, {"role": "user", "content": "Thanks"}]},
    ],
)
def test_layouts(fields: dict[str, Any]) -> None:
    assert conversation_of(fields) == [QUESTION, ANSWER]


def test_alpaca_input_follows_the_instruction() -> None:
    found = conversation_of({"instruction": "Translate.", "input": "acier", "output": "steel"})
    assert found[0]["content"] == "Translate.\n\nacier"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": "x"}, "no known layout: found the fields text"),
        ({"messages": []}, "expected a list of messages, found"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "to be one of .*, found 'tool'"),
        ({"messages": [{"role": "user"}]}, "expected a message with 'role' and 'content'"),
        ({"messages": [QUESTION]}, "no answer of the assistant"),
        ({"messages": [QUESTION, {"role": "assistant", "content": " "}]}, "no answer of the assistant"),
    ],
)
def test_unusable_records_say_why(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        conversation_of(fields)


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [SYSTEM, QUESTION, ANSWER]},
        {"system": "Be brief.", "messages": [QUESTION, ANSWER]},
        {"system": "Be brief.", "messages": [SYSTEM, QUESTION, ANSWER]},
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "What is steel?"},
                {"from": "chatgpt", "value": ANSWER["content"]},
            ],
        },
        {"system_prompt": "Be brief.", "instruction": "What is steel?", "output": ANSWER["content"], "history": []},
        {"system": "Be brief.", "prompt": "What is steel?", "completion": ANSWER["content"], "tools": None},
    ],
)
def test_a_system_field_is_the_first_message(fields: dict[str, Any]) -> None:
    assert conversation_of(fields) == [SYSTEM, QUESTION, ANSWER]


def test_alpaca_history_comes_before_the_question() -> None:
    record = {"instruction": "Third", "output": "A3", "history": [["First", "A1"], ["Second", "A2"]]}
    assert [m["content"] for m in conversation_of(record)] == ["First", "A1", "Second", "A2", "Third", "A3"]


def test_a_transcript_is_its_turns() -> None:
    record = {
        "prompt": "\n\nHuman: What is iron?\n\nAssistant: A metal.\n\nHuman: Steel?\n\nAssistant:",
        "completion": " An alloy.",
    }
    assert [(m["role"], m["content"].strip()) for m in conversation_of(record)] == [
        ("user", "What is iron?"), ("assistant", "A metal."), ("user", "Steel?"), ("assistant", "An alloy."),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [QUESTION, {**ANSWER, "weight": 0}]}, "'weight': only 1 can be learnt, found 0"),
        ({"messages": [QUESTION, {**ANSWER, "train": False}]}, "'train'"),
        ({"messages": [QUESTION, {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}]}, "'tool_calls'"),
        (
            {"messages": [QUESTION, {"role": "assistant", "content": ""}, QUESTION, ANSWER]},
            "message 2: an empty answer",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}, ANSWER]},
            "expected a message with",
        ),
        ({"messages": [QUESTION, ANSWER], "tools": [{"name": "f"}]}, "'tools': cannot be learnt"),
        ({"messages": [QUESTION, ANSWER], "system": 5}, "'system': expected text, found 5"),
        ({"messages": [SYSTEM, QUESTION, ANSWER], "system": "Be long."}, "'system': the messages begin with another"),
        ({"messages": [QUESTION, ANSWER], "history": [["a", "b"]]}, "'history': is known beside"),
        ({"instruction": "I", "output": "O", "input": 5}, "'input': expected text, found 5"),
        ({"instruction": "I", "output": "O", "history": [["a"]]}, "'history': expected pairs"),
        ({"instruction": "I", "output": "O", "history": 7}, "'history': expected pairs"),
    ],
)
def test_a_field_that_would_be_dropped_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        conversation_of(fields)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=6))
def test_any_record_is_messages_or_a_named_refusal(fields: dict[str, Any]) -> None:
    for parse in (conversation_of, preference_of):
        try:
            found = parse(fields)
        except ValueError:
            continue
        sides = [found] if parse is conversation_of else [[*found[0], *side] for side in found[1:]]
        for messages in sides:
            assert messages[-1]["role"] == "assistant"
            assert all(isinstance(message["content"], str) for message in messages)


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in records).encode()))
    return path


def records(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"Question {i}?", "output": f"Answer {i}."} for i in range(count)]


def test_file_is_split_by_hash_and_nothing_is_lost(tmp_path: Path, execution: Execution) -> None:
    path = write_jsonl(tmp_path / "a.jsonl.gz", records(2000))
    artifact, metrics = run(path, execution, validation_share=0.1)
    train, validation = rows(artifact, "train"), rows(artifact, "validation")
    asked = {row["messages"][0]["content"] for row in train + validation}
    assert asked == {f"Question {i}?" for i in range(2000)}
    assert 150 < len(validation) < 250 and metrics["validation_conversations"] == len(validation)
    assert {row["source"] for row in train} == {"a"}
    assert len({row["conversation_id"] for row in train + validation}) == 2000
    grown, _ = run(write_jsonl(tmp_path / "a.jsonl.gz", records(2500)), execution, validation_share=0.1)
    before = {row["conversation_id"] for row in validation}
    assert before == {row["conversation_id"] for row in rows(grown, "validation")} & (
        before | {row["conversation_id"] for row in train}
    ), "growth moves nobody to the other side"


def test_few_conversations_still_give_32_for_validation(tmp_path: Path, execution: Execution) -> None:
    artifact, _ = run(write_jsonl(tmp_path / "a.jsonl.gz", records(200)), execution)
    assert (len(rows(artifact, "train")), len(rows(artifact, "validation"))) == (168, 32)
    artifact, _ = run(write_jsonl(tmp_path / "b.jsonl.gz", records(10)), execution)
    assert (len(rows(artifact, "train")), len(rows(artifact, "validation"))) == (5, 5)


def test_validation_mask_keeps_groups_together() -> None:
    groups = ["0" * 16, "f" * 16, "0" * 16, "8" * 16]
    assert validation_mask(groups, groups, 0.2).tolist() == [True, False, True, False]
    one_group, ids = ["f" * 16] * 4, [f"{i:032x}" for i in (0, 1 << 127, 1 << 126, 3 << 126)]
    assert validation_mask(one_group, ids, 0.2).tolist() == [True, False, True, False], "else nothing is left to learn"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 700), min_size=1, max_size=60),
    st.sampled_from([0.001, 0.03, 0.1, 0.25, 0.5]),
    st.integers(0, 1 << 30),
)
def test_validation_has_about_the_share_asked_for(sizes: list[int], share: float, seed: int) -> None:
    groups = [group_hash(f"{seed} {number}") for number, size in enumerate(sizes) for _ in range(size)]
    count = len(groups)
    held_out = int(validation_mask(groups, [content_id([seed, i]) for i in range(count)], share).sum())
    assert min(32, count // 2) <= held_out <= max(min(32, count // 2), max(0.1, 1.25 * share) * count)


def test_one_first_question_of_many_conversations_does_not_decide_the_share() -> None:
    questions = ["Summarize the text."] * 2970 + [f"Other {i}?" for i in range(30)]
    groups, ids = [group_hash(text) for text in questions], [content_id([q, i]) for i, q in enumerate(questions)]
    assert 60 <= validation_mask(groups, ids, 0.03).sum() <= 130


def test_limit_and_duplicates(tmp_path: Path, execution: Execution) -> None:
    path = write_jsonl(tmp_path / "a.jsonl.gz", records(300) + records(300))
    assert run(path, execution)[1]["train_conversations"] == 268
    _, metrics = run(path, execution, max_conversations=100)
    assert metrics["train_conversations"] + metrics["validation_conversations"] == 100


def test_bad_lines_are_tolerated_up_to_the_share(tmp_path: Path, execution: Execution) -> None:
    path = write_jsonl(tmp_path / "a.jsonl.gz", [*records(300), {"text": "no conversation"}])
    artifact, _ = run(path, execution)
    (error,) = (artifact.path / "errors.jsonl").read_text().splitlines()
    assert json.loads(error)["file"] == "a.jsonl.gz" and json.loads(error)["place"] == "line 301"
    path = write_jsonl(tmp_path / "b.jsonl.gz", [*records(10), {"text": "no conversation"}])
    with pytest.raises(ValueError, match=r"^b.jsonl.gz, line 11: no known layout: found the fields text; expected"):
        run(path, execution)


def test_no_conversation_is_refused(tmp_path: Path, execution: Execution) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="Found 0 conversations in 1 files, at least 2 are needed"):
        run(tmp_path / "a.jsonl", execution)


def test_python_source_gives_questions_about_it(tmp_path: Path) -> None:
    library = tiny.make_corpus(tmp_path / "library")
    first, metrics = run(library, Execution(home=tmp_path / "h1", workers=1), max_conversations=100_000)
    second, _ = run(library, Execution(home=tmp_path / "h2", workers=2), max_conversations=100_000)
    assert first.digest == second.digest
    train, validation = rows(first, "train"), rows(first, "validation")
    assert metrics["train_conversations"] == len(train) > 1500 and len(validation) >= 32
    assert all([m["role"] for m in row["messages"][:2]] == ["user", "assistant"] for row in train)
    questions = [row["messages"][0]["content"] for row in train + validation if len(row["messages"]) == 2]
    assert len(questions) == len(set(questions)), "one answer to one question"
    held_out = {row["messages"][1]["content"] for row in validation if "documentation of" in str(row["messages"])}
    assert held_out and not held_out & {m["content"] for row in train for m in row["messages"]}
