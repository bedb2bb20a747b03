"""With the format added: a model of it is a form of a run, lies packed on disk, and computes what its codes mean."""

from pathlib import Path

import numpy as np
import torch

from flows.graph import forms, gate_terms
from flows.recipe import load_plan
from model.quantization.formats import FORMATS
from model.quantization.packed import packed_layers
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import build
from tasks.models.folder import load_model, load_quantized
from tests.helpers.inference import make_model, random_model
from tests.helpers.training import make_inputs


def test_the_format_is_a_form_of_the_model(tmp_path: Path, execution: Execution) -> None:
    recipe = load_plan("demo", ["int4.method=nearest", "limits.int4=0.3"]).recipe
    (form,) = [form for form in forms(recipe) if form.name == "int4"]
    assert ("int4", "dpo", 0.3) in [(held.form, held.parent, held.max_increase) for held in gate_terms(recipe).held]
    inputs = make_inputs(tmp_path / "inputs")
    model = make_model(tmp_path / "model", random_model(), inputs["tokenizer"])
    found = build(form.stage, form.config, {"model": model, "calibration": inputs["tokens"]}, execution, form.label)

    layer = packed_layers(load_quantized(found.path))["model.layers.1.mlp.up_proj"].quantized
    weight = load_model(model.path).model.layers[1].mlp.up_proj.weight.detach()
    assert layer.format is FORMATS["int4"] and layer.tensors["codes"].numel() == weight.numel() // 2
    steps = weight.abs().amax(1, keepdim=True) / 7
    assert bool(((layer.dequantize() - weight).abs() <= 0.51 * steps).all())  # half a step, and scales of 11 bits
    matrix = layer.format.step_matrix(layer.tensors)
    stacked = type(matrix)(*(array[None] for array in matrix))
    x, y = np.ones(weight.shape[1], np.float32), np.empty(len(weight), np.float32)
    stacked.multiply(stacked, 0, x, y)
    torch.testing.assert_close(torch.from_numpy(y), layer.dequantize().sum(1))
