"""Documentation out of Python source: entries by parsing, docstrings taken apart."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.text.python.added_docs import added_docs
from tasks.text.python.docstrings import first_sentence, parse_docstring
from tasks.text.python.pydocs import Entry, clean, group_documents, library_files, module_name, read_entries
from tests.helpers.data import NUMPY_STYLE

SOURCE = '''
"""Blast furnaces and what comes out of them."""

import os

if os.name == "posix":
    def tap(furnace, *, heat=1500, **options):
        """Let the iron out of a `furnace`.

        See :class:`~steel.Furnace` for the details.
        """

class Furnace:
    """A furnace for pig iron.

    It never cools down.
    """

    def __init__(self, height=30.0, name="big"):
        """Build it from the ground."""

    def blow(self, air, /, pressure=(1, 2), *tuyeres):
        """Blow `air` into the furnace."""

    def _private(self):
        """Nobody reads this docstring."""

    class Lining:
        """The bricks on the inside."""

def undocumented():
    pass
'''


def test_entries() -> None:
    entries = read_entries(SOURCE, "steel/_core/furnace.py")
    assert [(e.kind, e.name, e.signature) for e in entries] == [
        ("module", "steel.furnace", ""),
        ("function", "steel.furnace.tap", "(furnace, *, heat=1500, **options)"),
        ("class", "steel.furnace.Furnace", "(height=30.0, name='big')"),
        ("method", "steel.furnace.Furnace.blow", "(air, pressure=(1, 2), *tuyeres)"),
        ("class", "steel.furnace.Furnace.Lining", ""),
    ]
    assert entries[1].doc.endswith("See `steel.Furnace` for the details.")
    assert entries[3].line == SOURCE[: SOURCE.index("def blow")].count("\n") + 1


def test_docs_equal_those_of_the_imported_module() -> None:
    """The oracle is `inspect.getdoc` of the living objects."""
    import textwrap as module

    assert module.__file__
    entries = {e.name: e for e in read_entries(Path(module.__file__).read_text(), "python/textwrap.py")}
    for name in ("dedent", "fill", "indent", "shorten", "wrap"):
        assert entries[f"textwrap.{name}"].doc == (inspect.getdoc(getattr(module, name)) or "").strip()
    assert entries["textwrap.TextWrapper.wrap"].doc == (inspect.getdoc(module.TextWrapper.wrap) or "").strip()


def test_nothing_is_imported_or_run() -> None:
    source = '"""A module that would end the process."""\nimport sys\nsys.exit("run")\n'
    assert [e.doc for e in read_entries(source, "python/a.py")] == ["A module that would end the process."]


def test_public_module_names() -> None:
    assert module_name("numpy/linalg/_linalg.py") == "numpy.linalg"
    assert module_name("python/asyncio/queues.py") == "asyncio.queues"
    assert module_name("pandas/__init__.py") == "pandas"
    assert module_name("_x/_y.py") == "_x"


def test_help_topics() -> None:
    source = "topics = {'while': 'The while statement\\n***\\n\\nIt is for repeated execution.'}\n'''x'''"
    entries = read_entries(source, "python/pydoc_data/topics.py")
    assert [(e.kind, e.name) for e in entries] == [("topic", "while")]


def test_documents_are_whole_objects_of_readable_length() -> None:
    entries = [Entry("function", f"m.f{i}", "(x)", "Word. " * 100, i) for i in range(1, 40)]
    documents = list(group_documents(entries))
    assert "".join(text for _, text in documents).count("m.f") == 39
    assert all(6000 <= len(text) < 8000 for _, text in documents[:-1])
    assert documents[0][1].startswith("m.f1(x)\n\nWord.")
    line, text = documents[1]
    assert text.startswith(f"m.f{line}(x)")


def test_the_embedded_corpus_has_its_libraries() -> None:
    names = [name for name, _ in library_files()]
    assert {name.split("/")[0] for name in names} >= {"python", "numpy", "torch", "sklearn", "pandas", "scipy"}
    assert not [n for n in names if "/tests/" in n or n.startswith("transformers/models/")]
    assert len(names) == len(set(names)) > 3000


def test_added_docs_of_torch_and_numpy_equal_the_living_ones() -> None:
    import numpy._core._add_newdocs as numpy_docs
    import torch._torch_docs as torch_docs

    torch_found = {d.name: d for d in added_docs(ast.parse(Path(torch_docs.__file__).read_text()), "torch")}
    for name in ("abs", "cumsum", "topk", "linspace"):
        found = torch_found[f"torch.{name}"]
        assert (getattr(torch, name).__doc__ or "").strip().endswith(found.doc.strip())
        assert "Computes" in found.doc or len(found.doc) > 200
    assert torch_found["torch.cumsum"].signature == "(input, dim, *, dtype=None, out=None)"
    numpy_found = {d.name: d for d in added_docs(ast.parse(Path(numpy_docs.__file__).read_text()), "numpy")}
    assert numpy_found["numpy.ndarray.partition"].of_class and not numpy_found["numpy.frombuffer"].of_class
    assert clean(numpy_found["numpy.frombuffer"].doc)[:200] in (np.frombuffer.__doc__ or "")


GOOGLE_STYLE = """Download a file from the hub.

Args:
    repo_id (`str`):
        A user or organization name.
    force (`bool`, *optional*, defaults to `False`): Whether to download it
        again.
    plain: No type here.

Returns:
    str: The local path.

Raises:
    OSError: If the connection breaks.

Example::

    >>> download("x")
"""
SPHINX_STYLE = """Send a request.

:param method: method for the new
    :class:`Request` object.
:param bytes url: URL of it.
:return: The answer.
:raises TimeoutError: nobody answers.
"""


@pytest.mark.parametrize(
    ("doc", "summary", "names", "texts", "returns", "raises"),
    [
        (NUMPY_STYLE, "Solve a linear system. It uses LU.", ["a", "overwrite", "args"],
         ["Coefficient matrices.", "Whether to overwrite `a`. Default is False. Another paragraph of it.", "The rest."],
         "The solution.", [("LinAlgError", "If `a` is singular.")]),
        (GOOGLE_STYLE, "Download a file from the hub.", ["repo_id", "force", "plain"],
         ["A user or organization name.", "Whether to download it again.", "No type here."],
         "The local path.", [("OSError", "If the connection breaks.")]),
        (SPHINX_STYLE, "Send a request.", ["method", "url"],
         ["method for the new :class:`Request` object.", "URL of it."],
         "The answer.", [("TimeoutError", "nobody answers.")]),
    ],
)  # fmt: skip
def test_docstring_styles(
    doc: str, summary: str, names: list[str], texts: list[str], returns: str, raises: list[tuple[str, str]]
) -> None:
    found = parse_docstring(inspect.cleandoc(doc))
    assert found.summary == summary
    assert [p.name for p in found.parameters] == names
    assert [p.text for p in found.parameters] == texts
    assert found.returns == returns
    assert [(r.name, r.text) for r in found.raises] == raises


@pytest.mark.parametrize(
    "doc", ["", "\n", "One line", "Args:", "Parameters\n----------", "x\n---\n  y", ":param", "\t"]
)
def test_odd_docstrings_do_no_harm(doc: str) -> None:
    parse_docstring(doc)


def test_first_sentence_knows_abbreviations() -> None:
    assert first_sentence("Use it, e.g. in tests. Then stop.") == "Use it, e.g. in tests."
    assert first_sentence("No full stop") == "No full stop"
