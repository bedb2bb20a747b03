"""The layers point one way, each dependency has its one home, and files stay readable."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {"model": 0, "tasks": 1, "flows": 2}
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
# dependency -> where it may be imported (a file, or a folder)
HOMES = {
    "prefect": ("flows/",),
    "mlflow": ("tasks/track/",),
    "datasketch": ("model/",),
    "tokenizers": ("model/vocabulary/tokenizer.py", "model/vocabulary/other_tokenizers.py"),
    "tiktoken": ("model/vocabulary/tokenizer.py", "model/vocabulary/other_tokenizers.py"),
    "datasets": ("tasks/text/readers/hub.py",),
    "transformers": ("tasks/models/export.py",),
    "accelerate": ("model/training/parallel.py",),
    "deepspeed": ("model/training/zero.py",),
    "gguf": ("tasks/models/export.py",),
    "distributed": ("tasks/mechanism/engines.py",),
    "ray": ("tasks/mechanism/engines.py", "tasks/mechanism/launch/ray_cluster.py"),
    "fsspec": ("tasks/",),
    "matplotlib": ("tasks/evaluation/plots.py",),
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports(path: Path) -> set[str]:
    """Every module that the file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def stage_modules() -> set[str]:
    """Modules that declare a stage."""
    found = set()
    for path in (ROOT / "tasks").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                names = {getattr(getattr(d, "func", None), "id", "") for d in node.decorator_list}
                found |= {module_name(path)} if "stage" in names else set()
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_layers_point_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    upwards = [m for m in imports(path) if LAYERS.get(m.split(".")[0], -1) > LAYERS[layer]]
    assert not upwards, f"{path.relative_to(ROOT)} imports upwards: {upwards}"


def test_stages_never_import_each_other() -> None:
    stages = stage_modules()
    assert {"tasks.text.filter", "tasks.text.dedup.dedup", "tasks.train.pretrain"} <= stages
    for name in stages:
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        others = {m for m in imports(path) if m in stages - {name}}
        assert not others, f"{name} imports the stage {others}"


@pytest.mark.parametrize("dependency", sorted(HOMES))
def test_each_dependency_has_its_home(dependency: str) -> None:
    strangers = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if dependency in {m.split(".")[0] for m in imports(path)}
        and not str(path.relative_to(ROOT)).startswith(HOMES[dependency])
    ]
    assert not strangers, f"{dependency} belongs to {HOMES[dependency]}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_every_file_opens_with_its_idea(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, "the file has no docstring"
    assert docstring.split("\n\n")[0].rstrip().endswith("."), f"its idea is not a sentence: {docstring!r}"


def test_no_file_is_a_drawer() -> None:
    assert not [p for p in SOURCES if p.stem in ("utils", "helpers", "common", "misc")]
