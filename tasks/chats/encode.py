"""Preference pairs as the model reads them: shared by the stage that learns from them and the one that measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.training.packing import Sequences
    from model.vocabulary.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs as tokens (sequence 2i chosen, 2i + 1 rejected), and how many were left out and why."""

    sequences: "Sequences"
    rows: tuple[int, ...]  # which of the rows given became which pair
    too_long: int
    empty: int
    equal: int


def encode_pairs(tokenizer: "Tokenizer", rows: Sequence[Mapping[str, Any]], sequence_length: int) -> EncodedPairs:
    """Render each pair; leave out those whose prompt leaves no room, with an empty answer, or with equal answers.

    Everything after the prompt counts as answer, the closing newline included, as in TRL. Answers are cut at the row's
    end.
    """
    from model.training.packing import join_sequences
    from model.vocabulary.chat_format import render_conversation, render_prompt

    ids: list[list[int]] = []
    masks: list[list[bool]] = []
    used: list[int] = []
    too_long = empty = equal = 0
    for index, row in enumerate(rows):
        prompt = render_prompt(tokenizer, row["prompt"])
        if any(not message["content"].strip() for side in ("chosen", "rejected") for message in row[side]):
            empty += 1
            continue
        sides = [render_conversation(tokenizer, [*row["prompt"], *row[side]]).ids for side in ("chosen", "rejected")]
        # A token more than the row: the last one is only ever a label.
        cut = [side[: sequence_length + 1] for side in sides]
        if len(prompt) > sequence_length:
            too_long += 1
        # After the cut: answers that differ only beyond the row give no margin to learn from.
        elif cut[0] == cut[1]:
            equal += 1
        else:
            used.append(index)
            for side in cut:
                start = _common_prefix(prompt, side)
                ids.append(side)
                masks.append([position >= start for position in range(len(side))])
    return EncodedPairs(join_sequences(ids, masks), tuple(used), too_long, empty, equal)


def _common_prefix(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """Where the answer begins; a tokenizer may join the prompt's last character with the answer's first."""
    for index, (a, b) in enumerate(zip(prompt, whole)):
        if a != b:
            return index
    return min(len(prompt), len(whole))


def read_pairs(path: Path, limit: int = 0) -> list[dict[str, Any]]:
    """The pairs of a Parquet file; the first `limit`, or all with 0."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["preference_id", "prompt", "chosen", "rejected"])
    rows: list[dict[str, Any]] = (table.slice(0, limit) if limit else table).to_pylist()
    return rows
