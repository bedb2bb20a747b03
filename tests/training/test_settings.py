"""The sections that a recipe hands to the model: frozen, bounded, described, and free of torch."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from model.network.shape import Architecture, ModelConfig, RopeScaling
from model.training.settings import (
    LoopSettings,
    OptimizerSettings,
    PackedSettings,
    PairSettings,
    ScheduleSettings,
    WindowSettings,
)

SECTIONS: list[Any] = [
    Architecture,
    RopeScaling,
    WindowSettings,
    PackedSettings,
    PairSettings,
    OptimizerSettings,
    ScheduleSettings,
    LoopSettings,
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_a_section_is_frozen_and_each_field_bounded_and_described(section: Any) -> None:
    fields = TypeAdapter(section).json_schema()["properties"]
    for position, (name, field) in enumerate(fields.items()):
        assert field["position"] == position and field["title"] == name
        assert field["description"].endswith("."), name
        if field.get("type") in ("integer", "number"):
            assert {"minimum", "exclusiveMinimum"} & set(field), f"{name} has no lower bound"
        with pytest.raises(FrozenInstanceError):
            setattr(section(), name, None)
    with pytest.raises(ValidationError, match="nope"):
        section(nope=1)


def test_an_architecture_with_a_vocabulary_leaves_nothing_to_derive() -> None:
    architecture = Architecture(num_heads=8, context_length=1024, rope_scaling=RopeScaling("yarn", 4.0))
    shape = architecture.shape(vocab_size=512)
    assert (shape.vocab_size, shape.head_dim, shape.rope_scaling.original_context_length) == (512, 32, 256)
    assert replace(architecture, head_dim=64).shape(512).head_dim == 64
    assert isinstance(shape, ModelConfig) and shape.num_layers == architecture.num_layers
    with pytest.raises(ValidationError, match="vocab_size"):
        architecture.shape(vocab_size=0)


def test_forms_and_plans_need_no_torch() -> None:
    code = "import sys, model.network.shape, model.training.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
