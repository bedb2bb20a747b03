"""Documentation out of Python source: docstrings and signatures by parsing, never by importing.

It is the embedded default corpus (the standard library and the libraries this project depends on), and what a `.py`
file in anybody's folder is read as. Private objects are passed over.
"""

import ast
import importlib.util
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.text.python.added_docs import added_docs

LIBRARIES = (
    "accelerate", "aiohttp", "alembic", "anyio", "click", "datasets", "docker", "fastapi", "flask", "fsspec", "httpx",
    "huggingface_hub", "jinja2", "joblib", "matplotlib", "mlflow", "networkx", "numpy", "packaging",
    "pandas", "PIL", "prefect", "psutil", "pyarrow", "pydantic", "requests", "rich", "scipy", "sklearn", "sqlalchemy",
    "starlette", "torch", "transformers", "urllib3", "werkzeug",
)  # fmt: skip
"""Libraries of the embedded corpus: dependencies of this project, direct or not; absent ones are passed over."""

SKIPPED_FOLDERS = frozenset(
    (
        "__pycache__", "_pytest", "_vendor", "benchmarks", "ensurepip", "externals", "idlelib", "lib2to3",
        "site-packages", "test", "tests", "turtledemo", "vendored",
    )
)  # fmt: skip
SKIPPED_PATHS = frozenset(
    (
        "mlflow/protos", "mlflow/store/db_migrations", "numpy/distutils", "numpy/f2py", "numpy/testing",
        "pandas/_testing", "python/distutils", "sqlalchemy/testing", "torch/_dynamo", "torch/_functorch",
        "torch/_inductor", "torch/ao", "torch/distributed", "torch/fx", "torch/onnx", "torch/sparse", "torch/testing",
        "transformers/models",
    )
)  # fmt: skip
"""Of the embedded corpus: much source and little prose for users, or hundreds of near-copies."""

MIN_DOCSTRING_CHARACTERS = 20
DOCUMENT_CHARACTERS = 6000
"""A module's documentation is cut between top-level objects into documents of about this length."""

Kind = Literal["module", "class", "function", "method", "topic"]
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_MARKUP = re.compile(r":(?:py:)?(?:[a-z]+):`~?([^`<]*?)(?:\s*<[^`>]*>)?`")


@dataclass(frozen=True)
class Entry:
    """One documented object. `name` is the dotted public name, `signature` "(x, axis=None)" or "", `line` 1-based."""

    kind: Kind
    name: str
    signature: str
    doc: str
    line: int

    @property
    def heading(self) -> str:
        """The line that introduces the object."""
        return f"class {self.name}{self.signature}" if self.kind == "class" else f"{self.name}{self.signature}"


def library_folders() -> dict[str, Path]:
    """Name -> folder of the standard library and of each installed library of the embedded corpus."""
    found = {"python": Path(sysconfig.get_paths()["stdlib"])}
    for name in LIBRARIES:
        # Of a top-level package this looks for it, and imports nothing.
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            found[name] = Path(next(iter(spec.submodule_search_locations)))
    return found


def library_files() -> Iterator[tuple[str, Path]]:
    """(library/relative name, path) of the Python files of the embedded corpus."""
    for library, folder in library_folders().items():
        yield from _source_files(str(folder), library)


def _source_files(folder: str, name: str) -> Iterator[tuple[str, Path]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):  # scandir has no order
            inner = f"{name}/{entry.name}"
            if entry.name.endswith(".py"):
                yield inner, Path(entry.path)
            elif entry.name not in SKIPPED_FOLDERS and inner not in SKIPPED_PATHS and entry.is_dir():
                yield from _source_files(entry.path, inner)


def module_name(relative: str) -> str:
    """The public dotted name of a module: private parts left out, as users import from the package around them."""
    parts = relative.removesuffix(".py").removeprefix("python/").split("/")
    public = [part for part in parts if not part.startswith("_")]
    return ".".join(public or [parts[0]])  # a private module on top keeps its name


def read_entries(source: str, relative: str) -> list[Entry]:
    """Everything that the source text documents, in order.

    Raises:
        SyntaxError: it is not Python of this version.
    """
    # Parsing is what costs here, and without triple quotes there is no docstring worth it.
    if '"""' not in source and "'''" not in source:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        tree = ast.parse(source)
    module = module_name(relative)
    if relative.endswith("pydoc_data/topics.py"):
        return list(_topics(tree))
    entries = []
    doc = _docstring(tree)
    if doc:
        entries.append(Entry("module", module, "", doc, 1))
    for added in added_docs(tree, module):
        kind: Kind = "method" if added.of_class else "function"
        entries.append(Entry(kind, added.name, added.signature, clean(added.doc), added.line))
    for node in _definitions(tree.body):
        entries += _function_entry(node, module, "function") if isinstance(node, _Function) else _class(node, module)
    return entries


def _definitions(body: list[ast.stmt]) -> Iterator[_Function | ast.ClassDef]:
    """Public functions and classes at this level, those under `if` and `try` too."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not node.name.startswith("_"):
                yield node
        elif isinstance(node, ast.If | ast.Try):
            yield from _definitions([*node.body, *node.orelse])


def _class(node: ast.ClassDef, scope: str) -> list[Entry]:
    name = f"{scope}.{node.name}"
    members = list(_definitions(node.body))
    # Private by its name, but its parameters are those of the class.
    initializer = next((m for m in node.body if isinstance(m, _Function) and m.name == "__init__"), None)
    doc = _docstring(node)
    entries = []
    if doc:
        entries.append(Entry("class", name, _signature(initializer) if initializer else "", doc, node.lineno))
    for member in members:
        entries += _function_entry(member, name, "method") if isinstance(member, _Function) else _class(member, name)
    return entries


def _function_entry(node: _Function, scope: str, kind: Kind) -> list[Entry]:
    doc = _docstring(node)
    return [Entry(kind, f"{scope}.{node.name}", _signature(node), doc, node.lineno)] if doc else []


def _docstring(node: ast.Module | ast.ClassDef | _Function) -> str:
    """The docstring, cleaned; "" where there is none worth reading."""
    if not node.body or not isinstance(node.body[0], ast.Expr) or not isinstance(node.body[0].value, ast.Constant):
        return ""
    value = node.body[0].value.value
    return clean(value) if isinstance(value, str) and len(value) >= MIN_DOCSTRING_CHARACTERS else ""


def clean(doc: str) -> str:
    """Indentation removed, and Sphinx roles reduced to their text: ":class:`~numpy.ndarray`" -> "`ndarray`"."""
    return _MARKUP.sub(lambda match: f"`{match[1]}`", inspect.cleandoc(doc).strip())


def _signature(node: _Function) -> str:
    """The parameters as a reader wants them: names and defaults, no `self`, no annotations."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    # ast gives the defaults of the last parameters alone.
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    parts = [_parameter(argument.arg, default) for argument, default in zip(positional, defaults)]
    if parts and parts[0] in ("self", "cls"):
        parts = parts[1:]
    if arguments.vararg:
        parts.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        parts.append("*")
    parts += [_parameter(a.arg, default) for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults)]
    if arguments.kwarg:
        parts.append(f"**{arguments.kwarg.arg}")
    return f"({', '.join(parts)})"


def _parameter(name: str, default: ast.expr | None) -> str:
    if default is None:
        return name
    if isinstance(default, ast.Constant):
        return f"{name}={default.value!r}"
    return f"{name}={ast.unparse(default)}"


def _topics(tree: ast.Module) -> Iterator[Entry]:
    """The help topics: the one dictionary of `pydoc_data/topics.py`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            # literal_eval: nothing of the file is run.
            topics: Mapping[str, str] = ast.literal_eval(node.value)
            for name, text in topics.items():
                yield Entry("topic", name, "", clean(text), node.lineno)


def group_documents(entries: list[Entry]) -> Iterator[tuple[int, str]]:
    """(line of the first entry, text) of each document: whole top-level objects up to DOCUMENT_CHARACTERS."""
    parts: list[str] = []
    line = 0
    for entry in entries:
        starts_object = entry.kind != "method"
        # Never before a method: it stays with its class, however long that is.
        if parts and (entry.kind == "topic" or (starts_object and sum(map(len, parts)) >= DOCUMENT_CHARACTERS)):
            yield line, "\n\n".join(parts)
            parts = []
        line = line if parts else entry.line
        parts.append(entry.doc if entry.kind == "topic" else f"{entry.heading}\n\n{entry.doc}")
    if parts:
        yield line, "\n\n".join(parts)
