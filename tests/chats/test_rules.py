"""Questions and answers by rules: sentences of the documentation, and a worse answer for each."""

import inspect
import sys
from pathlib import Path

import numpy as np
import pytest

from tasks.chats.rules import (
    MAX_ANSWER_CHARACTERS,
    dialogues,
    exchanges,
    purpose_of,
    rejected_answer,
    third_person,
)
from tasks.text.python.docstrings import parse_docstring
from tasks.text.python.pydocs import Entry, read_entries
from tests.helpers.data import NUMPY_STYLE


@pytest.mark.parametrize(
    ("kind", "doc", "expected"),
    [
        ("function", "Return the inverse of a matrix.", "`f` returns the inverse of a matrix."),
        ("function", "Compute and return the inverse of it.", "`f` computes and returns the inverse of it."),
        ("method", "Fetches all the rows there are", "`C.f` fetches all the rows there are."),
        ("class", "A furnace that never cools.", "`f` is a furnace that never cools."),
        ("function", "Inverse of a square matrix.", "The documentation of `f` says: Inverse of a square matrix."),
        ("function", "See :func:`g` for what this does.", ""),
        ("function", ">>> f(1) and something else", ""),
    ],
)
def test_purpose(kind: str, doc: str, expected: str) -> None:
    entry = Entry(kind, "lib.C.f" if kind == "method" else "lib.f", "(x)", doc, 1)  # type: ignore[arg-type]
    assert purpose_of(entry, parse_docstring(doc)) == expected


def test_third_person() -> None:
    assert [third_person(v) for v in ("return", "fetch", "apply", "display", "fix")] == [
        "returns", "fetches", "applies", "displays", "fixes",
    ]  # fmt: skip


SOLVE = Entry("function", "scipy.linalg.solve", "(a, b, overwrite=False, *args)", inspect.cleandoc(NUMPY_STYLE), 1)


def test_exchanges() -> None:
    found = {(e.aspect, e.answer) for e in exchanges(SOLVE)}
    assert found == {
        ("purpose", "`solve` solves a linear system. There is more on it in than here."),
        ("parameters", "`solve` takes `a`, `b`, `overwrite` and `args`. `a`: Coefficient matrices. `overwrite`: Whether"
                       " to overwrite `a`."),
        ("parameter", "`a` ((n, n) array_like): Coefficient matrices."),
        ("parameter", "`overwrite` (bool): Whether to overwrite `a`."),
        ("default", "The default of `overwrite` is `False`."),
        ("raises", "It can raise `LinAlgError`: If `a` is singular."),
        ("call", "Call it as `solve(a, b, overwrite=False, *args)`."),
    }  # fmt: skip


def test_dialogues_are_short_and_name_what_they_ask_about() -> None:
    entries = read_entries(Path(inspect.getsourcefile(argparse_module()) or "").read_text(), "python/argparse.py")
    entries += read_entries(Path(inspect.getsourcefile(np.lib._function_base_impl) or "").read_text(), "numpy/lib/f.py")
    found = [d for e in entries for d in dialogues(e.name, exchanges(e))]
    assert len(found) > 200 and any(len(d.turns) > 2 for d in found)
    for dialogue in found:
        assert all(question and answer and len(answer) <= MAX_ANSWER_CHARACTERS for question, answer in dialogue.turns)
        if len(dialogue.turns) == 1:
            assert dialogue.name.rpartition(".")[2] in dialogue.turns[0][0] and dialogue.library in dialogue.turns[0][0]


def argparse_module() -> object:
    import argparse

    return sys.modules[argparse.__name__]


def test_worse_answers_differ_from_the_true_one() -> None:
    found = exchanges(SOLVE)
    for exchange, sibling in zip(found, [None, *found]):
        worse = rejected_answer(exchange, sibling)
        assert worse and worse != exchange.answer
        assert (sibling is not None and worse == sibling.answer) or exchange.answer.startswith(worse)
