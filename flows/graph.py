"""THE pipeline: one line per stage, in order, whoever carries it out. Read this first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flows.recipe import Recipe
from tasks.chats.conversations import conversations
from tasks.chats.preferences import preferences
from tasks.evaluation.evaluate import evaluate
from tasks.evaluation.gate import gate
from tasks.mechanism.stage import Artifact, Input, Runner
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
from tasks.train.sft import sft


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
class Products:
    """What a run ends with: five forms of one model, their evaluations, and the verdict on the candidate."""

    models: dict[str, Artifact]
    evaluations: dict[str, Artifact]
    verdict: Artifact


Incumbent = Callable[[Artifact], Mapping[str, Artifact]]
"""Given the candidate's evaluation, the evaluation to beat under the name `incumbent`; empty where there is none."""


@dataclass(frozen=True)
class Prepared:
    """What models are trained on."""

    tokenizer: Artifact
    tokens: Artifact
    conversations: Artifact
    preferences: Artifact
    benchmarks: Mapping[str, Source]  # by the name of the input; empty where there are none
    start: Mapping[str, Artifact]  # the model that pretraining goes on from, as `start`; empty: from scratch


def prepare(recipe: Recipe, sources: Sources, run: Runner) -> Prepared:
    """Raw text in, tokens, conversations and pairs out: the first half of the pipeline."""
    documents = run(ingest, recipe.ingest, corpus=sources.corpus)
    judged: dict[str, Artifact] = {}  # each judge is one line, and sees what those before it have dropped
    judged["filter"] = run(filter, recipe.filter, documents=documents)
    judged["dedup"] = run(dedup, recipe.dedup, documents=documents, **judged)
    chats = run(conversations, recipe.conversations, sft=sources.sft)
    pairs = run(preferences, recipe.preferences, pairs=sources.preferences)
    tests: dict[str, Input] = {"conversations": chats, "preferences": pairs, **sources.benchmark_input}
    judged["decontaminate"] = run(decontaminate, recipe.decontaminate, documents=documents, **judged, **tests)
    corpus = {"documents": documents, **judged}
    bpe = sources.start.tokenizer if sources.start else run(tokenizer, recipe.tokenizer, **corpus)
    tokens = run(pack, recipe.pack, **corpus, tokenizer=bpe)
    start = {"start": sources.start.model(tokens)} if sources.start else {}
    return Prepared(bpe, tokens, chats, pairs, sources.benchmark_input, start)


def train(recipe: Recipe, data: Prepared, incumbent: Incumbent, run: Runner) -> Products:
    """Tokens, conversations and pairs in, five models and a verdict out: the second half."""
    tokens, chats, pairs = data.tokens, data.conversations, data.preferences
    base = run(pretrain, recipe.pretrain, tokens=tokens, tokenizer=data.tokenizer, **data.start)
    chat = run(sft, recipe.sft, base=base, conversations=chats)
    aligned = run(dpo, recipe.dpo, policy=chat, preferences=pairs)
    int8 = run(quantize, recipe.int8, "int8", model=aligned, calibration=tokens)
    fp4 = run(quantize, recipe.fp4, "fp4", model=aligned, calibration=tokens)

    models = {"base": base, "sft": chat, "dpo": aligned, "int8": int8, "fp4": fp4}
    references = {"base": base, "sft": chat, "dpo": chat, "int8": aligned, "fp4": aligned}
    evaluations = {
        name: run(
            evaluate,
            recipe.evaluate,
            f"evaluate_{name}",
            model=model,
            tokens=tokens,
            preferences=pairs,
            reference=references[name],
            **data.benchmarks,
        )
        for name, model in models.items()
    }
    verdict = run(gate, recipe.gate, **evaluations, **incumbent(evaluations["dpo"]))
    return Products(models, evaluations, verdict)


def pipeline(recipe: Recipe, sources: Sources, incumbent: Incumbent, run: Runner) -> Products:
    """Raw text in, five models and a verdict out.

    Args:
        recipe: every stage's config.
        sources: corpus, conversations and preference pairs, and perhaps a model to go on from.
        incumbent: finds the champion's evaluation, which the gate compares the candidate with.
        run: who carries out each stage call.
    """
    return train(recipe, prepare(recipe, sources, run), incumbent, run)
