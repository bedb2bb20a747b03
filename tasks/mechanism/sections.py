"""Settings in sections: a section that is given in part takes the rest from the default of its place."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from model.settings import arrange_form


class Sections(BaseModel):
    """Frozen and complete. Stages share the types of their sections, but not what stands in them by default.

    So `SftConfig(optimizer={"momentum": 0.8})` has the learning rates of fine-tuning, whoever makes it: a recipe, the
    form of an orchestrator, a manifest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=arrange_form)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values  # a section made already, or something that pydantic refuses in words of its own
        defaults = {name: _as_mapping(field.default) for name, field in cls.model_fields.items()}
        given = {name: value for name, value in values.items() if isinstance(value, Mapping) and defaults.get(name)}
        return {**values, **{name: merge(defaults[name], value) for name, value in given.items()}}


def _as_mapping(section: Any) -> dict[str, Any]:
    """The fields of a section at any depth; {} of what is none."""
    if isinstance(section, BaseModel):
        return section.model_dump()
    return asdict(section) if is_dataclass(section) and not isinstance(section, type) else {}


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `top` in their place, section by section."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
