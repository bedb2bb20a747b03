"""A recipe: what to build, a section per stage in pipeline order; presets, one dial of size, and single-field edits."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from tasks.chats.conversations import ConversationsConfig
from tasks.chats.preferences import PreferencesConfig
from tasks.evaluation.evaluate import EvaluateConfig
from tasks.evaluation.gate import GateConfig
from tasks.mechanism.execution import Execution
from tasks.mechanism.sections import Sections, merge
from tasks.models.quantize import QuantizeConfig
from tasks.text.decontaminate import DecontaminateConfig
from tasks.text.dedup.dedup import DedupConfig
from tasks.text.filter import FilterConfig
from tasks.text.ingest import IngestConfig
from tasks.tokens.pack import PackConfig
from tasks.tokens.tokenizer import TokenizerConfig
from tasks.train.dpo import DpoConfig
from tasks.train.pretrain import PretrainConfig
from tasks.train.sft import SftConfig

PRESET_FOLDER = Path(__file__).resolve().parent / "recipes"
PYTHON_DOCS = "python-docs"
MAX_DEPTH = 128  # a width of 8,192
# What pydantic calls these, of a model and of a dataclass.
_UNKNOWN_FIELD = ("extra_forbidden", "unexpected_keyword_argument")
_NO_SECTION = ("model_type", "dataclass_type")


class FormLimits(Sections):
    """The most by which each form of the model may raise perplexity over the form that it is made from."""

    dpo: float = Field(0.5, ge=0, description="Of the aligned model over the SFT model, as a share (0.01 is 1 %).")
    # docs/LOG.md, 2026-11-26: the demo's INT8 raises perplexity by 0.07 %, its FP4 by 0.62 %.
    int8: float = Field(0.01, ge=0, description="Of the INT8 model over the aligned one, as a share.")
    fp4: float = Field(0.05, ge=0, description="Of the FP4 model over the aligned one, as a share.")


class Recipe(Sections):
    """What to build. Two runs of one recipe on the same content give the same models."""

    name: str = Field(
        "demo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the recipe and of its MLflow experiment."
    )
    corpus: str = Field(
        PYTHON_DOCS,
        min_length=1,
        description="Text to learn from: a folder, file, glob, dated folders, hub data set, or python-docs.",
    )
    sft_data: str = Field(
        PYTHON_DOCS, min_length=1, description="Conversations to learn to answer from: a file, folder or python-docs."
    )
    preference_data: str = Field(
        PYTHON_DOCS, min_length=1, description="Pairs of a better and a worse answer: a file, folder or python-docs."
    )
    benchmarks: str = Field(
        "", description="Benchmarks to decontaminate the text against: a file, folder or glob; empty: none."
    )
    start: Literal["scratch", "champion"] = Field(
        "scratch",
        description="Where pretraining starts: from random weights, or from the champion's base model and its "
        "tokenizer. Where there is no champion yet: from scratch.",
    )
    ingest: IngestConfig = Field(IngestConfig(), description="Read files into documents.")
    filter: FilterConfig = Field(FilterConfig(), description="Quality filters: drop text that is not worth learning.")
    dedup: DedupConfig = Field(DedupConfig(), description="Drop exact and near duplicates.")
    conversations: ConversationsConfig = Field(ConversationsConfig(), description="Read conversations.")
    preferences: PreferencesConfig = Field(PreferencesConfig(), description="Read preference pairs.")
    decontaminate: DecontaminateConfig = Field(DecontaminateConfig(), description="Drop text that overlaps with tests.")
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description="Learn a byte-level BPE vocabulary.")
    pack: PackConfig = Field(PackConfig(), description="Turn text into training and validation tokens.")
    pretrain: PretrainConfig = Field(PretrainConfig(), description="Pretrain to predict the next token.")
    sft: SftConfig = Field(SftConfig(), description="Fine-tune on conversations (SFT).")
    dpo: DpoConfig = Field(DpoConfig(), description="Align by direct preference optimisation (DPO).")
    int8: QuantizeConfig = Field(QuantizeConfig(format="int8"), description="Quantize weights to INT8.")
    fp4: QuantizeConfig = Field(QuantizeConfig(format="nvfp4"), description="Quantize weights to FP4 (NVFP4).")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="Measure each model.")
    limits: FormLimits = Field(FormLimits(), description="What a form of the model may lose against its parent.")
    gate: GateConfig = Field(GateConfig(), description="Decide whether the new model replaces the champion.")

    @model_validator(mode="after")
    def _rows_fit_the_model(self) -> "Recipe":
        context = self.pretrain.model.context_length
        for name, batches in (("sft", self.sft.batches), ("dpo", self.dpo.batches)):
            if batches.sequence_length > context:
                raise ValueError(
                    f"{name}.batches.sequence_length is {batches.sequence_length}, but the model reads at most "
                    f"{context} tokens (pretrain.model.context_length): use shorter rows, or pretrain with a longer "
                    "context"
                )
        return self


@dataclass(frozen=True)
class Plan:
    """A recipe and where to carry it out, as a preset and the command line gave them."""

    recipe: Recipe
    execution: Execution


def preset_names() -> list[str]:
    """The presets that come with Bessemer."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def scale_by_depth(depth: int) -> dict[str, Any]:
    """The dial: one number of layers sets width, heads, steps and learning rates; a preset may override each.

    Width 64 per layer and head size 64 keep the aspect ratio of nanochat's dial. Tokens are 20 per parameter of the
    blocks (Hoffmann et al. 2022, arXiv:2203.15556). The AdamW rates shrink with 1/sqrt(width) from the width of 256
    at which they were swept (docs/LOG.md); Muon's update is scaled per matrix and keeps its rate. Its momentum is 0.9
    near the 4,096 tokens a step at which that was found better, and the usual 0.95 for larger ones.
    """
    hidden_size = 64 * depth
    num_heads = hidden_size // 64
    width_scale = (256 / hidden_size) ** 0.5
    block_parameters = 12 * depth * hidden_size**2  # of a layer 4 h² are attention's, 3 · 8/3 h² SwiGLU's
    # At 30M and 4,096 tokens a step Muon takes 30 % of it (docs/LOG.md, 2026-11-22): depth 8 takes 16,384.
    batch_tokens = 4096 * 2 ** max(0, round(1.1 * (depth - 4) / 2)) if depth < 16 else 524_288
    return {
        "pretrain": {
            "model": {
                "num_layers": depth,
                "hidden_size": hidden_size,
                "num_heads": num_heads,
                # As many as heads: 0.95 of the speed for no better loss (docs/LOG.md, 2026-11-25).
                "num_kv_heads": num_heads // 2 if num_heads % 2 == 0 else num_heads,
                "intermediate_size": 64 * round(hidden_size * 8 / 3 / 64),
            },
            "batches": {"train_tokens": 20 * block_parameters, "batch_tokens": batch_tokens},
            "optimizer": {
                "embedding_learning_rate": 0.1 * width_scale,  # 0.05 and 0.2 were worse (docs/LOG.md, 2026-11-25)
                # docs/LOG.md, 2026-11-27: 1.4893 bits per byte after 3.9M tokens, 1.4950 at 0.004.
                "head_learning_rate": 0.008 * width_scale,
                # docs/LOG.md, 2026-11-27: at 4,096 tokens 0.009 to 0.012 bits per byte below 0.95, three seeds.
                "momentum": 0.9 if batch_tokens <= 8192 else 0.95,
            },
        }
    }


def load_plan(preset: str, settings: Sequence[str] = (), sections: Mapping[str, Any] | None = None) -> Plan:
    """The recipe and execution of a preset name or YAML file, with `--set` settings and whole sections on top.

    Raises:
        ValueError: unknown preset, section or field, or a value out of its bounds; names the nearest valid name.
    """
    raw = merge(_read_preset(preset), sections or {})
    for setting in settings:
        raw = merge(raw, _parse_setting(setting))
    depth = raw.pop("depth", 0)
    if not isinstance(depth, int) or not 0 <= depth <= MAX_DEPTH:
        raise ValueError(f"depth = {depth!r}: expected a whole number of layers from 1 to {MAX_DEPTH}.")
    values = merge(scale_by_depth(depth) if depth else {}, raw)
    execution = values.pop("execution", {})
    values.pop("description", None)
    return Plan(_validated(Recipe, values, preset), _validated(Execution, execution, preset))


def _read_preset(preset: str) -> dict[str, Any]:
    path = Path(preset) if preset.endswith((".yaml", ".yml")) else PRESET_FOLDER / f"{preset}.yaml"
    if not path.is_file():
        names = preset_names()
        raise ValueError(
            f"There is no recipe {preset!r}.{_did_you_mean(preset, names)} Presets are: {', '.join(names)}; "
            "or give the path of a YAML file."
        )
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"The recipe {path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"The recipe {path} holds {type(raw).__name__}, expected sections such as `pretrain:`.")
    return raw


def _parse_setting(setting: str) -> dict[str, Any]:
    """`dpo.beta=0.2` -> {"dpo": {"beta": 0.2}}."""
    name, equals, value = setting.partition("=")
    if not equals:
        raise ValueError(f"--set {setting}: expected a field and a value, such as dpo.beta=0.2.")
    parsed = yaml.safe_load(value) if value else ""  # YAML makes None of nothing, which no field takes
    nested: dict[str, Any] = {}
    section = nested
    *path, leaf = name.split(".")
    for part in path:
        section = section.setdefault(part, {})
    section[leaf] = parsed
    return nested


def _validated(kind: type[Any], values: Mapping[str, Any], preset: str) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(_explain(error, kind, preset)) from error


def _explain(error: ValidationError, kind: type[Any], preset: str) -> str:
    """One sentence per wrong field: its name, what was found, its bounds or the nearest valid name."""
    lines = []
    for issue in error.errors():
        name = ".".join(str(part) for part in issue["loc"])
        if issue["type"] in _UNKNOWN_FIELD:
            lines.append(f"{name} is not a field of the recipe.{_did_you_mean(name, field_names(kind))}")
        elif issue["type"] in _NO_SECTION:
            inside = [field for field in field_names(kind) if field.startswith(f"{name}.")]
            lines.append(f"{name} = {issue['input']!r}: it is a section; set its fields, such as {inside[0]}.")
        else:
            text = issue["msg"].removeprefix("Value error, ").rstrip(".")
            # A whole section does not fit together: the message names its fields.
            found = name if isinstance(issue["input"], Mapping) else f"{name} = {issue['input']!r}"
            lines.append(f"{found or kind.__name__.lower()}: {text[0].lower()}{text[1:]}. {_describe(kind, name)}")
    return f"The recipe {preset} cannot be used. " + " ".join(lines)


def field_names(kind: Any) -> list[str]:
    """Every field as it is written after --set: `name`, `dpo.beta`, `pretrain.model.num_layers`, ..."""
    names = []
    for name, info in _fields(kind).items():
        inner = _fields(info.annotation)
        names += [f"{name}.{leaf}" for leaf in field_names(info.annotation)] if inner else [name]
    return names


def _fields(kind: Any) -> dict[str, FieldInfo]:
    """The fields of a section; {} of what is none."""
    found: dict[str, FieldInfo] = getattr(kind, "__pydantic_fields__", {})
    return found


def _describe(kind: Any, name: str) -> str:
    """What the field is and what it may hold."""
    *sections, leaf = name.split(".")
    for section in sections:
        info = _fields(kind).get(section)
        if info is None or not info.annotation:
            return ""
        kind = info.annotation
    info = _fields(kind).get(leaf)
    if info is None:
        return ""
    words = {"Ge": "at least", "Gt": "more than", "Le": "at most", "Lt": "less than"}
    bounds = [
        f"{words[type(bound).__name__]} {next(iter(vars(bound).values()), '') if hasattr(bound, '__dict__') else ''}"
        for bound in info.metadata
        if type(bound).__name__ in words
    ]
    allowed = f" It must be {' and '.join(bounds)}." if bounds and all(b.strip()[-1].isdigit() for b in bounds) else ""
    return f"{info.description or ''}{allowed}"


def _did_you_mean(name: str, valid: Sequence[str]) -> str:
    """The nearest name: one that ends in the same field and begins in the same section before any other."""
    first, leaf = name.split(".")[0], name.split(".")[-1]
    alike = [v for v in valid if v.split(".")[-1] == leaf]
    inside = [v for v in alike if v.split(".")[0] == first]
    near = difflib.get_close_matches(name, inside, n=1, cutoff=0.5) or (inside or alike)[:1]
    near = near or difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""
