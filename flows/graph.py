"""THE pipeline: one line per stage, in order, whoever carries it out. Read this first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flows.recipe import Recipe
from tasks.chats.conversations import conversations
from tasks.chats.preferences import preferences
from tasks.evaluation.evaluate import evaluate, evaluation_label
from tasks.evaluation.gate import GateTerms, Limit, gate
from tasks.mechanism.stage import Artifact, Input, Runner, Stage, StageConfig
from tasks.models.quantize import quantize
from tasks.text.decontaminate import decontaminate
from tasks.text.dedup.dedup import dedup
from tasks.text.filter import filter
from tasks.text.ingest import ingest
from tasks.text.source import Source
from tasks.tokens.pack import pack
from tasks.tokens.tokenizer import tokenizer
from tasks.train.dpo import dpo
from tasks.train.pretrain import pretrain
from tasks.train.sft import SftConfig, sft


@dataclass(frozen=True)
class Start:
    """A model that pretraining goes on from. Its tokenizer goes with it; `model` is asked once the tokens are known."""

    tokenizer: Artifact
    model: Callable[[Artifact], Artifact]


@dataclass(frozen=True)
class Sources:
    """What a run starts from, identified by content; without a `start`, from random weights."""

    corpus: Source
    sft: Source
    preferences: Source
    benchmarks: Source | None = None
    start: Start | None = None

    @property
    def benchmark_input(self) -> dict[str, Source]:
        """The benchmark files as an input, where there are any."""
        return {"benchmarks": self.benchmarks} if self.benchmarks else {}


@dataclass(frozen=True)
class Prepared:
    """What models are trained on."""

    tokenizer: Artifact
    tokens: Artifact
    conversations: Artifact
    preferences: Artifact
    benchmarks: Mapping[str, Source]  # by the name of the input; empty where there are none
    start: Mapping[str, Artifact]  # the model that pretraining goes on from, as `start`; empty: from scratch


@dataclass(frozen=True)
class Form:
    """One of the models that a run ends with.

    name: what people, MLflow's aliases and the label of its evaluation call it
    stage, config: what makes it, and its section of the recipe
    parent: the form that it is made from, as the stage's input `model`; "" for the first
    limit: the most by which it may raise perplexity over its parent, as a share; None: it is not held against it
    inputs: what its stage takes besides
    """

    name: str
    stage: Stage[Any]
    config: StageConfig
    parent: str
    limit: float | None
    inputs: Callable[[Prepared], Mapping[str, Input]]

    @property
    def label(self) -> str:
        """The label of its stage call: its own name where one stage makes several forms, else the stage's."""
        return self.name if self.stage is quantize else self.stage.name


def forms(recipe: Recipe) -> tuple[Form, ...]:
    """The models that a run of this recipe ends with, each after its parent. Whatever walks over models walks these."""
    r, limits = recipe, recipe.limits
    return (
        Form(
            "base", pretrain, r.pretrain, "", None, lambda d: {"tokens": d.tokens, "tokenizer": d.tokenizer, **d.start}
        ),
        Form("sft", sft, r.sft, "base", None, lambda d: {"conversations": d.conversations, **_replayed(r.sft, d)}),
        Form("dpo", dpo, r.dpo, "sft", limits.dpo, lambda d: {"preferences": d.preferences}),
        Form("int8", quantize, r.int8, "dpo", limits.int8, lambda d: {"calibration": d.tokens}),
        Form("fp4", quantize, r.fp4, "dpo", limits.fp4, lambda d: {"calibration": d.tokens}),
    )


def _replayed(cfg: SftConfig, data: Prepared) -> dict[str, Artifact]:
    return {"tokens": data.tokens} if cfg.replay_share else {}


# int8 answers people: it decodes 5,300 tokens per CPU-s, fp32 3,000 and FP4 3,600 (docs/LOG.md, 2026-11-22).
ROLES = {"start": "base", "candidate": "dpo", "served": "int8"}
"""By role a form: what a later run goes on from, what the gate holds against the champion, and what answers people."""


@dataclass(frozen=True)
class Products:
    """What a run ends with: its models and their evaluations by form, and the verdict on the candidate."""

    models: dict[str, Artifact]
    evaluations: dict[str, Artifact]
    verdict: Artifact

    @property
    def candidate(self) -> Artifact:
        """The model that the gate judged."""
        return self.models[ROLES["candidate"]]

    @property
    def candidate_evaluation(self) -> Artifact:
        """What the gate judged it by."""
        return self.evaluations[ROLES["candidate"]]


Incumbent = Callable[[Artifact], Mapping[str, Artifact]]
"""Given the candidate's evaluation, the evaluation to beat under the name `incumbent`; empty where there is none."""


def prepare(recipe: Recipe, sources: Sources, run: Runner) -> Prepared:
    """Raw text in, tokens, conversations and pairs out: the first half of the pipeline."""
    documents = run(ingest, recipe.ingest, corpus=sources.corpus)
    judged: dict[str, Artifact] = {}  # each judge is one line, and sees what those before it have dropped
    judged["filter"] = run(filter, recipe.filter, documents=documents)
    # After the filter: what it dropped need not be signed, and is nobody's witness.
    judged["dedup"] = run(dedup, recipe.dedup, documents=documents, **judged)
    chats = run(conversations, recipe.conversations, sft=sources.sft)
    pairs = run(preferences, recipe.preferences, pairs=sources.preferences)
    # Also what chats and pairs hold out: models are scored on it, so no document may give it away.
    tests: dict[str, Input] = {"conversations": chats, "preferences": pairs, **sources.benchmark_input}
    judged["decontaminate"] = run(decontaminate, recipe.decontaminate, documents=documents, **judged, **tests)
    corpus = {"documents": documents, **judged}
    bpe = sources.start.tokenizer if sources.start else run(tokenizer, recipe.tokenizer, **corpus)
    tokens = run(pack, recipe.pack, **corpus, tokenizer=bpe)
    start = {"start": sources.start.model(tokens)} if sources.start else {}
    return Prepared(bpe, tokens, chats, pairs, sources.benchmark_input, start)


def train(recipe: Recipe, data: Prepared, incumbent: Incumbent, run: Runner) -> Products:
    """Tokens, conversations and pairs in, every form of the model and a verdict out: the second half."""
    models: dict[str, Artifact] = {}
    for form in forms(recipe):
        parent = {"model": models[form.parent]} if form.parent else {}
        models[form.name] = run(form.stage, form.config, form.label, **parent, **form.inputs(data))
    evaluations = {
        form.name: run(
            evaluate,
            recipe.evaluate,
            evaluation_label(form.name),
            model=models[form.name],
            tokens=data.tokens,
            preferences=data.preferences,
            reference=models[form.name if form.limit is None else form.parent],
            **data.benchmarks,
        )
        for form in forms(recipe)
    }
    terms = gate_terms(recipe)
    verdict = run(gate, terms, **evaluations, **incumbent(evaluations[terms.candidate]))
    return Products(models, evaluations, verdict)


def gate_terms(recipe: Recipe) -> GateTerms:
    """The recipe's section of the gate, with the form that it judges and what each is held against."""
    held = [
        Limit(form=form.name, parent=form.parent, max_increase=form.limit)
        for form in forms(recipe)
        if form.limit is not None
    ]
    return GateTerms(**dict(recipe.gate), candidate=ROLES["candidate"], held=tuple(held))


def pipeline(recipe: Recipe, sources: Sources, incumbent: Incumbent, run: Runner) -> Products:
    """Raw text in, every form of the model and a verdict out.

    Args:
        recipe: every stage's config.
        sources: corpus, conversations and preference pairs, and perhaps a model to go on from.
        incumbent: finds the champion's evaluation, which the gate compares the candidate with.
        run: who carries out each stage call.
    """
    return train(recipe, prepare(recipe, sources, run), incumbent, run)
