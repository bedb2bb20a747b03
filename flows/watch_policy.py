"""What to do about new text: a section of the form, and whether it calls for training; needs no Prefect."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from flows.run import Promotion
from tasks.mechanism.execution import arrange_form


class WatchConfig(BaseModel):
    """What to do about new text."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=arrange_form)

    retrain: Literal["never", "when grown", "always"] = Field(
        "when grown", description="Train never, when new tokens exceed the share below, or on any new text."
    )
    new_share: float = Field(
        0.05, ge=0, le=100, description="Share of new tokens, against those last trained on, that calls for training."
    )
    promote: Promotion = Field(
        "by the gate",
        description="Whether the gate's verdict makes a new model the champion; never: it stays a challenger until "
        "somebody says `bessemer promote`.",
    )


def wants_training(watch: WatchConfig, trained_tokens: float, tokens: float) -> bool:
    """Whether the policy calls for training. Text that shrank, a takedown, counts as change too."""
    if watch.retrain == "when grown":
        return trained_tokens == 0 or abs(tokens - trained_tokens) > watch.new_share * trained_tokens
    return watch.retrain == "always"
