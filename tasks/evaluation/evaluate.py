"""Measure a model on held-out text, on pairs of answers and by its own answers; a quantized one runs as it is stored.

Bits per byte compare across tokenizers; they count the text alone, not the separators. Documents are drawn in the order
of their ids, which are hashes, so two evaluations of one corpus share their documents and can be compared in pairs.
"""

import json
import lzma
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tasks.mechanism.stage import Artifact, StageConfig, StageRun, stage
from tasks.text.source import Source

if TYPE_CHECKING:
    from model.network.transformer import Transformer
    from model.vocabulary.tokenizer import Tokenizer
    from tasks.models.chat import ChatModel
    from tasks.tokens.files import TokenDocument

NATS_DIGITS = 4
"""Decimals kept of nats in files: sums in another order (other threads) differ below that."""


CLEAN_SHARE = 0.2
"""A document is clean if less than this share of its tokens stands in the training text (Llama 2, appendix A.6)."""


class EvaluateConfig(StageConfig):
    """How much to measure on, and what to ask."""

    validation_tokens: int = Field(32_768, ge=256, description="Approximate number of validation tokens to score.")
    document_tokens: int = Field(512, ge=16, description="Maximum tokens per document; longer ones are truncated.")
    preference_pairs: int = Field(200, ge=0, description="Maximum number of validation pairs to score; 0: none.")
    question_format: str = Field(
        "Question: {question}\nAnswer:", description="Prompt of a benchmark question; braces name the record's fields."
    )
    questions: int = Field(1000, ge=0, description="Maximum number of questions to score per benchmark file; 0: none.")
    prompts: tuple[str, ...] = Field(
        (), description="Questions that each model answers; none: the prompts of the first validation pairs."
    )
    answers: int = Field(4, ge=0, le=1000, description="How many validation prompts to answer where prompts is empty.")
    answer_tokens: int = Field(96, ge=1, le=65536, description="Maximum new tokens of an answer.")


@dataclass(frozen=True)
class Setting:
    """What every measurement needs."""

    tokenizer: "Tokenizer"
    window: int  # tokens of a row
    tokens_at_once: int


def evaluation_label(form: str) -> str:
    """The label of the stage call that evaluates this form of the model, in records, summaries and MLflow."""
    return f"evaluate_{form}"


@stage("evaluate", version=1, figures=("val_bits_per_byte", "val_perplexity"))
def evaluate(
    run: StageRun,
    cfg: EvaluateConfig,
    model: Artifact,
    tokens: Artifact,
    preferences: Artifact,
    reference: Artifact,
    benchmarks: Source | None = None,
) -> None:
    """Write `documents.parquet`, `preferences.parquet`, `samples.jsonl`, `scores.json` and, for benchmark files with
    questions (tasks/evaluation/questions.py), `questions.parquet`.

    `reference` is the model that this one was made of: the full-precision one of a quantized model (then KL and
    agreement are measured), the SFT model of an aligned one (then rewards are), or, for none, the model itself.

    Raises:
        ValueError: the artifacts were made for different tokenizers, or there is no validation text.
    """
    import torch

    from model.vocabulary.tokenizer import Tokenizer
    from tasks.models.chat import ChatModel
    from tasks.models.folder import is_quantized, load_any_model, weights_bytes
    from tasks.tokens.contract import check_contract

    check_contract(model.path, tokens.path)
    check_contract(model.path, reference.path)
    # The number of threads changes the last bits of sums, hence the rounding to NATS_DIGITS below.
    torch.set_num_threads(run.execution.threads)
    device = _device(run.execution.device)
    subject = load_any_model(model.path).to(device).eval()
    same = reference.digest == model.digest
    original = subject if same else load_any_model(reference.path).to(device).eval()
    tokenizer = Tokenizer.load(model.path)
    setting = Setting(tokenizer, subject.config.context_length, run.execution.micro_batch_tokens)

    compared = is_quantized(model.path)
    scores = score_text(run, cfg, setting, subject, original if compared else None, tokens.path)
    if cfg.preference_pairs:
        # A reward is the gain over the model that DPO began with; a quantized model is held against its own original.
        rewarded = original if not same and not compared else None
        scores |= score_pairs(run, cfg, setting, subject, rewarded, preferences.path)
    if benchmarks and cfg.questions:
        scores |= score_questions(run, cfg, setting, subject, benchmarks)
    scores["size_bytes"] = float(weights_bytes(model.path))
    chat = ChatModel.of(subject, model.path)
    write_samples(run, chat, sample_prompts(cfg, preferences.path), cfg.answer_tokens)
    (run.out / "scores.json").write_text(json.dumps(scores, indent=1, sort_keys=True) + "\n")
    for name, value in scores.items():
        run.metric(name, value)


def _device(wanted: str) -> str:
    import torch

    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def score_text(
    run: StageRun,
    cfg: EvaluateConfig,
    setting: Setting,
    subject: "Transformer",
    reference: "Transformer | None",
    tokens_dir: Path,
) -> dict[str, float]:
    """Score validation documents into `documents.parquet`; the figures over all of them."""
    from model.scoring.text import compare_models, cut_windows, document_nats, sequence_scores
    from tasks.tokens.files import read_overlap, sample_documents

    documents = list(sample_documents(tokens_dir, "validation", cfg.validation_tokens, cfg.document_tokens))
    if not documents:
        raise ValueError(f"{tokens_dir} has no validation text to score. Raise pack.validation_share.")
    # Longer documents than the context go on in another window, and every token is a label once.
    windows = cut_windows([d.ids for d in documents], setting.tokenizer.endoftext_id, setting.window)
    total = sum(len(d.ids) for d in documents)
    figures: dict[str, float] = {}
    with run.progress("score text", total, "tokens") as bar:
        if reference is None:
            scores = sequence_scores(subject, windows.sequences, setting.window, setting.tokens_at_once, bar.advance)
        else:
            agreement = compare_models(
                subject, reference, windows.sequences, setting.window, setting.tokens_at_once, bar.advance
            )
            scores = agreement.scores
            # What tells formats apart: their change in perplexity is within its noise, and INT8 has a KL of 0.00003
            # (docs/LOG.md).
            figures |= {"kl": round(agreement.kl, 7), "top1_agreement": agreement.top1}
    nats = [round(float(n), NATS_DIGITS) for n in document_nats(windows, scores, len(documents))]
    # Of the tokens that were scored: a document cut at document_tokens has fewer bytes than its text.
    texts = [setting.tokenizer.decode_bytes(d.ids.tolist()) for d in documents]
    columns = {
        "doc_id": [d.doc_id for d in documents],
        "source": [d.source for d in documents],
        "nll_nats": nats,
        "tokens": [len(d.ids) for d in documents],
        "bytes": [len(text) for text in texts],
    }
    _write_columns(run.out / "documents.parquet", columns)
    clean = clean_figures(documents, nats, texts, read_overlap(tokens_dir))
    return text_figures(documents, nats, texts) | clean | figures


def text_figures(
    documents: Sequence["TokenDocument"], nats: Sequence[float], texts: Sequence[bytes]
) -> dict[str, float]:
    """Loss, perplexity and bits per byte, over all and by source, with xz of the same text as a yardstick."""
    from model.scoring.text import bits_per_byte
    from tasks.tokens.files import report_names

    tokens, total_bytes, total_nats = sum(len(d.ids) for d in documents), sum(map(len, texts)), sum(nats)
    figures = {
        "val_documents": float(len(documents)),
        "val_tokens": float(tokens),
        "val_bytes": float(total_bytes),
        "val_loss": total_nats / tokens,
        "val_perplexity": math.exp(min(total_nats / tokens, 700.0)),  # a double ends at e^709
        "val_bits_per_byte": bits_per_byte(total_nats, total_bytes),
        # The strongest preset, all texts as one: a compressor at its best, which a model should beat.
        "xz_bits_per_byte": 8 * len(lzma.compress(b"".join(texts), preset=9)) / total_bytes,
    }
    lengths: Counter[str] = Counter()
    for document in documents:
        lengths[document.source] += len(document.ids)
    reported = report_names(lengths)
    for source in sorted(set(reported.values())):
        rows = [i for i, d in enumerate(documents) if reported[d.source] == source]
        size = sum(len(texts[i]) for i in rows)
        figures[f"bits_per_byte/{source}"] = bits_per_byte(sum(nats[i] for i in rows), size)
    return figures


def clean_figures(
    documents: Sequence["TokenDocument"], nats: Sequence[float], texts: Sequence[bytes], overlap: Mapping[str, float]
) -> dict[str, float]:
    """How much of the scored text stands in the training text too, and bits per byte without the documents where that
    is much: what a score owes to memory."""
    from model.scoring.text import bits_per_byte

    shares = [overlap.get(document.doc_id, 0.0) for document in documents]
    rows = [i for i, share in enumerate(shares) if share < CLEAN_SHARE]
    figures = {"val_overlap": sum(share * len(d.ids) for share, d in zip(shares, documents))}
    figures["val_overlap"] /= sum(len(d.ids) for d in documents)
    size = sum(len(texts[i]) for i in rows)
    if size:
        figures["val_bits_per_byte_clean"] = bits_per_byte(sum(nats[i] for i in rows), size)
    return figures


def score_pairs(
    run: StageRun,
    cfg: EvaluateConfig,
    setting: Setting,
    subject: "Transformer",
    reference: "Transformer | None",
    preferences_dir: Path,
) -> dict[str, float]:
    """Score validation pairs into `preferences.parquet`; how often the better answer is the likelier.

    `preference_accuracy` compares log-probabilities per token (a longer answer is not a worse one);
    `reward_accuracy` compares the gain over the reference, which is what DPO trains.
    """
    import numpy as np

    from model.scoring.text import sequence_scores
    from tasks.chats.encode import encode_pairs, read_pairs

    rows = read_pairs(preferences_dir / "validation.parquet", cfg.preference_pairs)
    pairs = encode_pairs(setting.tokenizer, rows, setting.window)
    if not pairs.rows:
        run.say("no validation pair fits the context: preferences are not scored")
        return {}
    counts = pairs.sequences.label_counts()
    found = sequence_scores(subject, pairs.sequences, setting.window, setting.tokens_at_once)
    columns = {
        "preference_id": [str(rows[i]["preference_id"]) for i in pairs.rows],
        "chosen_tokens": counts[::2],
        "rejected_tokens": counts[1::2],
        "chosen_log_prob": found[::2].round(NATS_DIGITS),
        "rejected_log_prob": found[1::2].round(NATS_DIGITS),
    }
    per_token = found / np.maximum(counts, 1)  # (2P,): chosen and rejected by turns
    figures = {
        "preference_pairs": float(len(pairs.rows)),
        "preference_accuracy": float((per_token[::2] > per_token[1::2]).mean()),
    }
    if reference is not None:
        gain = found - sequence_scores(reference, pairs.sequences, setting.window, setting.tokens_at_once)
        # Rounded before it is compared with 0: what threads change must not flip a pair.
        margin = (gain[::2] - gain[1::2]).round(NATS_DIGITS)
        columns["margin_over_reference"] = margin
        figures |= {"reward_accuracy": float((margin > 0).mean()), "reward_margin_nats": float(margin.mean())}
    _write_columns(run.out / "preferences.parquet", columns)
    return figures


def score_questions(
    run: StageRun, cfg: EvaluateConfig, setting: Setting, subject: "Transformer", benchmarks: Source
) -> dict[str, float]:
    """Score benchmark questions into `questions.parquet`, a row for each choice; lm-eval's figures by benchmark."""
    from model.scoring.text import answer_scores
    from tasks.evaluation.questions import encode_questions, question_figures, read_questions

    questions = read_questions(benchmarks, cfg.question_format, cfg.questions)
    if not questions:
        run.say("no record of the benchmark files has choices: they are protected, but not scored")
        return {}
    sequences = encode_questions(setting.tokenizer, questions, setting.window)
    found = answer_scores(subject, sequences, setting.window, setting.tokens_at_once)
    rows = [(q, number) for q in questions for number in range(len(q.choices))]
    columns = {
        "benchmark": [q.benchmark for q, _ in rows],
        "item": [q.item for q, _ in rows],
        "choice": [number for _, number in rows],
        "right": [number == q.answer for q, number in rows],
        "log_prob": found.log_probs.round(NATS_DIGITS),
        "greedy": found.greedy,
    }
    _write_columns(run.out / "questions.parquet", columns)
    return question_figures(questions, found)


def _write_columns(path: Path, columns: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(dict(columns)), path, compression="zstd", row_group_size=65536)


def sample_prompts(cfg: EvaluateConfig, preferences_dir: Path) -> list[list[dict[str, str]]]:
    """The conversations to answer: the configured questions, or the prompts of the first validation pairs."""
    if cfg.prompts:
        return [[{"role": "user", "content": prompt}] for prompt in cfg.prompts]
    from tasks.chats.encode import read_pairs

    if not cfg.answers:
        return []
    prompts: list[list[dict[str, str]]] = []
    # Four times as many: several pairs of a file may have one prompt.
    for row in read_pairs(preferences_dir / "validation.parquet", 4 * cfg.answers):
        if row["prompt"] not in prompts:
            prompts.append(row["prompt"])
    return prompts[: cfg.answers]


def write_samples(
    run: StageRun, chat: "ChatModel", prompts: Sequence[Sequence[Mapping[str, str]]], answer_tokens: int
) -> None:
    """Answer greedily into `samples.jsonl`; `prompt` is the last message, `messages` the whole conversation."""
    with (run.out / "samples.jsonl").open("w", encoding="utf-8") as stream:
        for messages in prompts:
            answer = chat.answer(messages, answer_tokens)
            row = {"prompt": messages[-1]["content"], "answer": answer, "messages": list(messages)}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
