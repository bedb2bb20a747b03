"""Benchmark questions: the answer that the model finds likeliest against the right one, counted as lm-eval counts.

A record of a benchmark file is a question where it has `choices` (a list of texts) and `answer` (the index of the right
one, or its text). With a single choice, as in lm-eval's tasks of type loglikelihood, the figures are its
perplexity and whether greedy decoding would write it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from tasks.text.benchmarks import benchmark_files
from tasks.text.readers import read_file
from tasks.text.readers.records import Row
from tasks.text.source import Source, SourceFile

if TYPE_CHECKING:
    from model.scoring.text import AnswerScores
    from model.training.packing import Sequences
    from model.vocabulary.tokenizer import Tokenizer


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
        ValueError: a record has choices, but not the fields of the prompt, or no right answer among them; two files
            have one name.
    """
    files = benchmark_files(benchmarks).items()
    return [question for name, file in files for question in islice(_questions_of(name, file, prompt_format), limit)]


def _questions_of(benchmark: str, file: SourceFile, prompt_format: str) -> Iterator[Question]:
    for item in read_file(file.path, file.name, fields=None):
        if isinstance(item, Row) and "choices" in item.fields:
            yield _question(benchmark, item.place, item.fields, prompt_format)


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
    from model.training.packing import join_sequences

    ids: list[list[int]] = []
    masks: list[list[bool]] = []
    for question in questions:
        # The space before a choice belongs to its first token, and spaces that end a prompt too.
        prompt = question.prompt.rstrip()
        start = len(tokenizer.encode(prompt))
        for choice in question.choices:
            whole = tokenizer.encode(f"{question.prompt} {choice}")
            mask = [position >= start for position in range(len(whole))]
            # Nothing before the choice: lm-eval prefixes the end-of-text token too.
            if not start:
                whole, mask = [tokenizer.endoftext_id, *whole], [False, *mask]
            ids.append(whole[-window - 1 :])  # one more than a row: the last token is only ever a label
            masks.append(mask[-window - 1 :])
    return join_sequences(ids, masks)


def question_figures(questions: Sequence[Question], found: "AnswerScores") -> dict[str, float]:
    """lm-eval's `acc` (likeliest choice), `acc_norm` (likeliest per character) and `perplexity`, by benchmark; of a
    single choice `acc` is whether greedy decoding would write it.

    found: one score for each choice, in the order of `encode_questions`.
    """
    figures: dict[str, float] = {}
    outcomes: dict[tuple[str, str], list[float]] = {}
    position = 0
    for question in questions:
        here = slice(position, position + len(question.choices))
        for name, value in _outcome(question, found.log_probs[here].tolist(), bool(found.greedy[position])).items():
            outcomes.setdefault((name, question.benchmark), []).append(value)
        position = here.stop
    for (name, benchmark), values in outcomes.items():
        mean = sum(values) / len(values)
        figures[f"{name}/{benchmark}"] = math.exp(-mean) if name == "perplexity" else mean
    return figures


def _outcome(question: Question, scores: Sequence[float], greedy: bool) -> dict[str, float]:
    """What one question adds to each figure; `greedy` is of its first choice."""
    if len(scores) == 1:
        return {"acc": float(greedy), "perplexity": scores[0]}
    by_length = [score / len(choice) for score, choice in zip(scores, question.choices)]
    # Of equal scores the first counts, as with numpy's argmax in lm-eval.
    right = {"acc": scores, "acc_norm": by_length}
    return {name: float(values.index(max(values)) == question.answer) for name, values in right.items()}
