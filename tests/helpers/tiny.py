"""The whole pipeline in a minute: the documentation of a few standard modules, a model of 60 thousand weights."""

import shutil
import sysconfig
from pathlib import Path

PACKAGES = (
    "asyncio",
    "concurrent",
    "ctypes",
    "email",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "unittest",
)
MODULES = (
    "argparse",
    "collections/__init__",
    "datetime",
    "decimal",
    "doctest",
    "inspect",
    "pathlib",
    "random",
    "typing",
)

MODEL = (
    "tokenizer.vocab_size=512",
    "pretrain.model.num_layers=2",
    "pretrain.model.hidden_size=32",
    "pretrain.model.num_heads=2",
    "pretrain.model.num_kv_heads=1",
    "pretrain.model.intermediate_size=64",
    "pretrain.model.context_length=128",
    "pretrain.batches.sequence_length=128",
    "pretrain.batches.batch_tokens=1024",
    "pretrain.batches.train_tokens=0",
    "sft.batches.sequence_length=128",
    "dpo.batches.sequence_length=128",
    "dpo.batches.batch_pairs=4",
)
"""60 thousand weights, trained for as many steps as somebody says."""
SETTINGS = (
    *MODEL,
    "pack.validation_share=0.1",
    "pretrain.batches.steps=40",
    "pretrain.loop.checkpoint_every=5",
    "pretrain.loop.evaluate_every=20",
    "sft.batches.batch_tokens=1024",
    "sft.batches.steps=20",
    "sft.loop.checkpoint_every=5",
    "dpo.batches.steps=20",
    "dpo.loop.checkpoint_every=5",
)


def make_corpus(folder: Path) -> Path:
    """Copy the source of some standard modules: their documentation is the text, and the source of the questions."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for package in PACKAGES:
        shutil.copytree(library / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "test*"))
    for module in MODULES:
        (folder / f"{module}.py").parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library / f"{module}.py", folder / f"{module}.py")
    return folder


def arguments(corpus: Path, home: Path, *more: str) -> list[str]:
    """`bessemer run demo` at this size."""
    sources = ["--corpus", str(corpus), "--sft", str(corpus), "--preferences", str(corpus)]
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["run", "demo", "--home", str(home), *sources, *settings, *more]
