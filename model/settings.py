"""What every group of settings is: frozen, checked field by field, and a section of a form in the order declared."""

from inspect import get_annotations
from typing import Any

from pydantic import ConfigDict, ValidationError


def arrange_form(schema: dict[str, Any], kind: type) -> None:
    """Number and label the fields of a JSON schema; a form would sort them by name and write `IngestConfig`, `Sft`.

    The label is the name that `--set`, recipes and MLflow use. What the class declares itself comes before what it
    inherits: the fields that all stages of a kind share are the ones that are changed least.
    """
    fields = schema.get("properties", {})
    own = [name for name in get_annotations(kind) if name in fields]
    for position, name in enumerate([*own, *(name for name in fields if name not in own)]):
        fields[name].update(position=position, title=name)


# Forbidden, since a misspelt field would otherwise pass for its default.
SETTINGS = ConfigDict(extra="forbid", json_schema_extra=arrange_form)


def reasons(error: ValidationError) -> str:
    """What is wrong with some settings, field by field, as the end of a sentence."""
    found = []
    for issue in error.errors():
        name = ".".join(str(part) for part in issue["loc"])
        text = issue["msg"].removeprefix("Value error, ").rstrip(".")
        found.append(f"{name} is {issue['input']!r}: {text[0].lower()}{text[1:]}" if name else text)
    return "; ".join(found)
