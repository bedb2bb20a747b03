"""Nothing that is read may run: no loader that executes what it loads, no shell, no code from settings, anywhere."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("flows", "tasks", "model") for path in (ROOT / folder).rglob("*.py"))
EXECUTING_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "shelve"}
EXECUTING_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
PICKLE_ALLOWED = {"UnpicklingError"}  # to recognise a damaged file, not to read one
FORBIDDEN_KEYWORDS = {"allow_pickle", "trust_remote_code", "shell"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression, "" of any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def is_constant(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def unsafe(source: str) -> list[str]:
    """What in a Python file could execute what it reads, with its line."""
    return [f"line {line}: {what}" for node in ast.walk(ast.parse(source)) for line, what in _findings(node)]


def _findings(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names]
        modules = names if isinstance(node, ast.Import) else [node.module or ""]
        yield from ((node.lineno, name) for name in modules if name.split(".")[0] in EXECUTING_MODULES)
        if modules == ["pickle"] and isinstance(node, ast.ImportFrom) and not set(names) <= PICKLE_ALLOWED:
            yield node.lineno, f"pickle: {names}"
    if isinstance(node, ast.Attribute) and dotted(node.value) == "pickle" and node.attr not in PICKLE_ALLOWED:
        yield node.lineno, f"pickle.{node.attr}"
    if isinstance(node, ast.Call):
        yield from ((node.lineno, what) for what in _unsafe_call(node))


def _unsafe_call(call: ast.Call) -> Iterator[str]:
    name = dotted(call.func)
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in EXECUTING_CALLS:
        yield name
    if name == "torch.load" and not is_constant(keywords.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    for keyword in FORBIDDEN_KEYWORDS & keywords.keys():
        if not is_constant(keywords[keyword], False):
            yield f"{name}({keyword}=...)"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_loads_nothing_that_can_run(path: Path) -> None:
    assert unsafe(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=choice)",
        "import pickle\npickle.loads(data)",
        "from pickle import load",
        "import joblib",
        "from cloudpickle import loads",
        "yaml.load(text, Loader=yaml.FullLoader)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(folder, trust_remote_code=True)",
        "datasets.load_dataset(name, trust_remote_code=flag)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_each_way_to_run_what_is_read_is_seen(source: str) -> None:
    assert unsafe(source) != []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=True, mmap=True)",
        "try:\n    read()\nexcept pickle.UnpicklingError:\n    pass",
        "np.load(path, mmap_mode='r')",
        "yaml.safe_load(text)",
        "model.eval()",
        "ast.literal_eval(text)",
    ],
)
def test_what_only_reads_is_let_pass(source: str) -> None:
    assert unsafe(source) == []
