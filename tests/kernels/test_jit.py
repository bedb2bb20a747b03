"""Compiled kernels give the same bits in the process that compiles them as in those that find them on the disk."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.kernels.jit import COMPILED, MODEL_FOLDER

pytestmark = pytest.mark.skipif(not COMPILED, reason="kernels need numba")

BITS_OF_STEPS = """
import hashlib, json
import numpy as np, torch
from model.decoding.engine import Engine
from model.training.objectives import NextToken
from model.training.parallel import Placement
from model.training.place import place
from model.training.settings import OptimizerSettings
from model.network.shape import ModelConfig
from model.network.transformer import Transformer
from tests.decoding.test_engine import FORMATS, ids_of, model_in

def digest(values):
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]

transformer = Transformer(ModelConfig(
    vocab_size=512, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=64,
    context_length=128,
))
transformer.initialize(0)
parallel = place(NextToken(transformer), OptimizerSettings(), "bf16", Placement("cpu"))
ids = torch.randint(0, 512, (8, 129), generator=torch.Generator().manual_seed(0))
batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:], "label_bytes": torch.ones(8), "document_ids": ids[:, :-1] // 9}
found = {}
for step in range(3):
    parallel.accumulate(batch, 1 / 1024, last=True)
    for name, parameter in transformer.named_parameters():
        found[f"step {step}, gradient of {name}"] = digest(parameter.grad)
    parallel.step()
for weight_format in FORMATS:
    found[f"logits, {weight_format}"] = digest(Engine(model_in(weight_format)).append(ids_of(20)))
print(json.dumps(found))
"""


def bits_of_steps(cache: Path) -> dict[str, str]:
    """Digests of gradients over three steps and of the engine's logits, from a process of its own."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", BITS_OF_STEPS]
    done = subprocess.run(command, check=True, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_the_process_that_compiles_computes_the_same_bits(tmp_path: Path) -> None:
    compiled = bits_of_steps(tmp_path)
    kept = {path.name for path in tmp_path.rglob("*.nbc")}
    assert any(name.startswith("rows.rotate_heads_backward") for name in kept)
    loaded = bits_of_steps(tmp_path)
    assert {path.name for path in tmp_path.rglob("*.nbc")} == kept, "the second process compiled too"
    assert [name for name in compiled if compiled[name] != loaded[name]] == []


def fast_kernels() -> Iterator[Any]:
    """Every compiled function whose sums may be reordered, also the helpers."""
    for path in sorted(MODEL_FOLDER.rglob("*.py")):
        if "fast_kernel" not in path.read_text() and "fast_helper" not in path.read_text():
            continue
        module = ".".join(path.relative_to(MODEL_FOLDER.parent).with_suffix("").parts)
        for value in vars(importlib.import_module(module)).values():
            if hasattr(value, "targetoptions") and value.targetoptions.get("fastmath"):
                yield value


def test_fast_kernels_call_only_what_becomes_part_of_them() -> None:
    found = list(fast_kernels())
    assert len(found) > 20
    for caller in found:
        named = (caller.py_func.__globals__.get(name) for name in caller.py_func.__code__.co_names)
        for called in (value for value in named if hasattr(value, "targetoptions")):
            assert called.targetoptions.get("forceinline"), (
                f"{caller.__name__} calls {called.__name__}: make that a fast_helper"
            )


def cache_folder(tree: Path) -> str:
    """Where the kernels of the model/ in `tree` are kept, as a process that imports it says."""
    script = "import numba; import model.kernels.jit; print(numba.config.CACHE_DIR)"
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, "-c", script], check=True, cwd=tree, env=environment, stdout=subprocess.PIPE)
    return done.stdout.decode()


def test_a_kernel_edited_in_any_folder_is_compiled_anew(tmp_path: Path) -> None:
    """numba looks at the file of a kernel alone, not at those that it calls: all of model/ decides on the folder."""
    shutil.copytree(MODEL_FOLDER, tmp_path / "model", ignore=shutil.ignore_patterns("__pycache__"))
    seen = [cache_folder(tmp_path)]
    for name in ("corpus/features/words.py", "decoding/step.py"):
        with (tmp_path / "model" / name).open("a") as stream:
            stream.write("# edited\n")
        seen.append(cache_folder(tmp_path))
    assert len(set(seen)) == len(seen)
    with (tmp_path / "model" / "network" / "hf.py").open("a") as stream:
        stream.write("# no kernels here\n")
    assert cache_folder(tmp_path) == seen[-1]
