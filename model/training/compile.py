"""torch.compile for the layers, where it pays: on a GPU, whose layers are torch's plain functions.

On a CPU the fused kernels (model/kernels/autograd.py) are as fast at once; compiled layers do without them.
"""

import os
import shutil

import torch

from model.network.transformer import Transformer

CPP_COMPILERS = ("g++", "clang++")


def compile_layers(transformer: Transformer, device: torch.device) -> None:
    """Have torch.compile translate each layer when it first runs; names, weights and state stay as they are.

    All layers share their code, so it is translated once for each kind of call (first layer or later, training or
    evaluation, and again when the length of rows grows).

    Raises:
        ValueError: there is no compiler for the code that torch writes.
    """
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else list(CPP_COMPILERS)  # as inductor asks
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise ValueError(
            f"execution.compile is 'layers', for which torch needs a C++ compiler on a CPU; looked for "
            f"{', '.join(compilers)}. Install one, or set execution.compile to 'no'."
        )
    for layer in transformer.model.layers:
        layer.compile()
