"""Benchmark questions: the answer that the model finds likeliest against the right one, counted as lm-eval counts.

A record of a benchmark file is a question where it has `choices` (a list of texts) and `answer` (the index of the right
one, or its text). With a single choice there is no right or wrong: its perplexity is the figure.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tasks.readers import read_file
from tasks.readers.records import Row
from tasks.source import Source, SourceFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from model.data import Sequences
    from model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """A prompt and its possible continuations, of which number `answer` is right."""

    benchmark: str
    item: str
    prompt: str
    choices: tuple[str, ...]
    answer: int


def read_questions(benchmarks: Source, prompt_format: str, limit: int) -> list[Question]:
    """The first `limit` questions of each file; records without choices are no questions.

    Raises:
        ValueError: a record has choices, but not the fields of the prompt, or no right answer among them.
    """
    return [question for file in benchmarks.files for question in islice(_questions_of(file, prompt_format), limit)]


def _questions_of(file: SourceFile, prompt_format: str) -> Iterator[Question]:
    for item in read_file(file.path, file.name):
        if isinstance(item, Row) and "choices" in item.fields:
            yield _question(benchmark_name(file), item.place, item.fields, prompt_format)


def benchmark_name(file: SourceFile) -> str:
    """`mmlu/law.jsonl.gz` is mmlu/law: two folders may each have a file of one name."""
    path = PurePosixPath(file.name)
    return str(path.with_name(path.name.partition(".")[0]))


def _question(benchmark: str, place: str, row: Mapping[str, Any], prompt_format: str) -> Question:
    choices, answer = row["choices"], row.get("answer")
    where = f"Benchmark {benchmark}, {place}"
    texts = isinstance(choices, Sequence) and all(isinstance(choice, str) and choice for choice in choices)
    if isinstance(choices, str) or not texts or not choices:
        raise ValueError(f"{where}: choices must be a list of texts, found {choices!r}.")
    index = choices.index(answer) if answer in choices else answer
    if not isinstance(index, int) or not 0 <= index < len(choices):
        raise ValueError(
            f"{where}: answer is {answer!r}, expected one of the choices or an index below {len(choices)}."
        )
    try:
        prompt = prompt_format.format_map(row)
    except KeyError as error:
        raise ValueError(
            f"{where}: no field {error} for the prompt {prompt_format!r}; it has {', '.join(row)}. "
            "Set evaluate.question_format."
        ) from error
    return Question(benchmark, place, prompt, tuple(choices), index)


def encode_questions(tokenizer: "Tokenizer", questions: Sequence[Question], window: int) -> "Sequences":
    """Each question with each of its choices, in order; too long ones lose their beginning, as in lm-eval."""
    from model.data import join_sequences

    ids: list[list[int]] = []
    masks: list[list[bool]] = []
    for question in questions:
        # The space before a choice belongs to its first token, and spaces that end a prompt too.
        prompt = question.prompt.rstrip()
        start = len(tokenizer.encode(prompt))
        for choice in question.choices:
            whole = tokenizer.encode(f"{question.prompt} {choice}")
            mask = [position >= start for position in range(len(whole))]
            if not start:
                whole, mask = [tokenizer.endoftext_id, *whole], [False, *mask]
            ids.append(whole[-window - 1 :])
            masks.append(mask[-window - 1 :])
    return join_sequences(ids, masks)


def question_figures(questions: Sequence[Question], log_probs: "NDArray[np.float64]") -> dict[str, float]:
    """lm-eval's `acc` (likeliest choice), `acc_norm` (likeliest per character) and `perplexity`, by benchmark.

    log_probs: (questions * choices,) in nats, in the order of `encode_questions`.
    """
    figures: dict[str, float] = {}
    position = 0
    outcomes: dict[tuple[str, str], list[float]] = {}
    for question in questions:
        scores = log_probs[position : position + len(question.choices)].tolist()
        position += len(scores)
        if len(scores) == 1:
            outcomes.setdefault(("perplexity", question.benchmark), []).append(scores[0])
            continue
        by_length = [score / len(choice) for score, choice in zip(scores, question.choices)]
        for name, values in (("acc", scores), ("acc_norm", by_length)):
            right = values.index(max(values)) == question.answer
            outcomes.setdefault((name, question.benchmark), []).append(float(right))
    for (name, benchmark), found in outcomes.items():
        mean = sum(found) / len(found)
        figures[f"{name}/{benchmark}"] = math.exp(-mean) if name == "perplexity" else mean
    return figures
