"""Layers and rooms point one way, each dependency has its one home, and files stay readable."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from flows.graph import forms
from flows.recipe import Recipe
from model.quantization.formats import FORMATS
from tasks.evaluation.evaluate import evaluation_label

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {"model": 0, "tasks": 1, "flows": 2}
# THE order of the rooms, from the top: each imports only what stands below it. A room is a folder, or a file of the
# layer's own folder.
ROOMS = {
    "flows": (
        *("cli", "servers", "backfill", "watch", "pipeline", "observers", "show", "gc", "verify", "plan"),
        *("backfill_plan", "watched", "run", "champion", "graph", "recipe", "fields", "addresses"),
    ),
    "tasks": ("track", "evaluation", "train", "models", "tokens", "chats", "text", "mechanism"),
    "model": (
        "scoring",
        "decoding",
        "quantization",
        "training",
        "network",
        "vocabulary",
        "corpus",
        "kernels",
        "settings",
    ),
}
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
# dependency -> where it may be imported (a file, or a folder)
HOMES = {
    "prefect": (("flows/pipeline.py", "flows/watch.py", "flows/backfill.py", "flows/observers.py", "flows/servers/")),
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


MODULES = {module_name(path): path for path in SOURCES}
MOST_FILES_OF_A_ROOM = 16  # with its __init__.py


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


def room(module: str) -> str:
    """The room of a module: `tasks.text.filter` -> `text`; "" for the layer itself."""
    return [*module.split("."), ""][1]


def modules_imported(path: Path) -> set[str]:
    """The first-party modules that the file imports."""
    return {m for m in imports(path) if m in MODULES} - {module_name(path)}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_rooms_point_one_way(path: Path) -> None:
    layer, *_ = module_name(path).split(".")
    order, own = ROOMS[layer], room(module_name(path))
    assert not own or own in order, f"the order of the rooms says nothing of {own}"
    for module in modules_imported(path):
        if module.split(".")[0] == layer and own and room(module) not in ("", own):
            assert order.index(room(module)) > order.index(own), f"{own} imports {module}, which stands above it"


def test_no_imports_form_a_circle() -> None:
    edges = {name: modules_imported(path) for name, path in MODULES.items()}
    for name in edges:
        assert name not in reached_from(edges, name), f"{name} imports itself through others"


def reached_from(edges: dict[str, set[str]], start: str) -> set[str]:
    """Everything that `start` imports, and what that imports."""
    found: set[str] = set()
    queue = list(edges[start])
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue += edges[name]
    return found


def test_rooms_can_be_surveyed() -> None:
    folders = {path.parent for path in SOURCES}
    full = {str(f.relative_to(ROOT)): n for f in folders if (n := len(list(f.glob("*.py")))) > MOST_FILES_OF_A_ROOM}
    assert not full, "more files than a reader can survey: make a room of some"


def strings_outside_stage_declarations(path: Path) -> Iterator[tuple[int, str]]:
    """(line, string) of every literal of the file but the names that `@stage(...)` declares."""
    tree = ast.parse(path.read_text())
    declared = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "stage"
        for argument in node.args
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in declared:
            yield node.lineno, node.value


@pytest.mark.parametrize(
    "path", sorted({*SOURCES} - {MODULES["flows.graph"], MODULES["flows.recipe"]}), ids=module_name
)
def test_the_forms_of_a_model_are_named_in_the_graph_alone(path: Path) -> None:
    names = {form.name for form in forms(Recipe())} | {evaluation_label(form.name) for form in forms(Recipe())}
    layer = module_name(path).split(".")[0]
    # `int8` is also a number format, which the mathematics and the stages of training and quantization speak of.
    if layer == "model" or room(module_name(path)) in ("train", "models"):
        names -= set(FORMATS)
    found = [f"line {line}: {text!r}" for line, text in strings_outside_stage_declarations(path) if text in names]
    assert not found, f"walk over flows.graph.forms, or over a run's record, instead of naming a form: {found}"


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
