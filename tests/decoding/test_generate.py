"""Generation against transformers: the cache, greedy answers, the filtered distributions; then our own promises."""

import collections
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.decoding.generate import Generation, TorchDecoder, generate, stream_text
from model.decoding.sampling import Sampler, Sampling, penalise, probabilities
from model.network.transformer import Transformer
from model.vocabulary.tokenizer import Tokenizer
from tests.helpers.inference import make_model, random_model
from tests.helpers.training import make_tokenizer


def prompt_of(length: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, 500, length).tolist()
    return found


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t").path)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_greedy_equals_transformers(tmp_path: Path, qk_norm: bool) -> None:
    model = random_model(qk_norm=qk_norm, context_length=512)
    folder = make_model(tmp_path / "model", model, make_tokenizer(tmp_path / "tokenizer")).path
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    decoder = TorchDecoder(model)
    for seed in range(4):
        prompt = prompt_of(20, seed)
        expected = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=300, eos_token_id=None)
        assert generate(decoder, prompt, set(), 300) == expected[0, 20:].tolist()  # past the first capacity of 256


def test_cache_gives_the_logits_of_a_whole_forward() -> None:
    model, ids = random_model(), prompt_of(60)
    decoder = TorchDecoder(model)
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0].numpy()
    found = [decoder.append(ids[:7]), decoder.append(ids[7:8]), decoder.append(ids[8:60])]
    np.testing.assert_allclose(found, expected[[6, 7, 59]], atol=1e-4)
    decoder.truncate(10)
    np.testing.assert_allclose(decoder.append(ids[10:20]), expected[19], atol=1e-4)


def test_an_interrupted_read_leaves_the_past_as_it_was() -> None:
    model, ids = random_model(), prompt_of(40)
    decoder = TorchDecoder(model)
    decoder.append(ids[:20])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hook = model.model.layers[1].register_forward_pre_hook(interrupt)  # the first layer has read, the second has not
    with pytest.raises(KeyboardInterrupt):
        decoder.append(ids[20:27])
    hook.remove()
    np.testing.assert_array_equal(decoder.append(ids[20:]), continued(model, ids[:20], ids[20:]))


def continued(model: Transformer, first: list[int], then: list[int]) -> NDArray[np.float32]:
    decoder = TorchDecoder(model)
    decoder.append(first)
    return decoder.append(then)


class CountingDecoder(TorchDecoder):
    """Remembers how many tokens it was given."""

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        self.read = 0

    def append(self, ids):  # type: ignore[no-untyped-def]
        self.read += len(ids)
        return super().append(ids)


def test_a_second_turn_reads_only_what_is_new() -> None:
    model, prompt = random_model(), prompt_of(30)
    decoder = CountingDecoder(model)
    first = generate(decoder, prompt, set(), 5)
    second = [*prompt, *first, *prompt_of(4, seed=1)]
    read_before = decoder.read
    answer = generate(decoder, second, set(), 5)
    assert decoder.read - read_before <= 5 + 5
    assert answer == generate(TorchDecoder(model), second, set(), 5)
    assert generate(decoder, prompt, set(), 5) == first  # and back again


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.floats(0.2, 3),
    st.one_of(st.just(0), st.integers(1, 60)),
    st.floats(0.05, 1.0),
    st.floats(0, 0.9),
)
def test_distribution_equals_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = np.random.default_rng(seed).standard_normal(50).astype(np.float32) * 3
    scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits)[None].double())
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(None, scores)
    expected = scores.softmax(-1)[0].numpy()
    found = probabilities(logits, Sampling(temperature, top_k, top_p, min_p=min_p))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.5, 3), st.lists(st.integers(0, 49), min_size=1, max_size=20))
def test_repetition_penalty_equals_transformers(seed: int, penalty: float, text: list[int]) -> None:
    logits = np.random.default_rng(seed).standard_normal(50).astype(np.float32) * 3
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([text]), torch.from_numpy(logits)[None])[0]
    np.testing.assert_allclose(penalise(logits, np.unique(text), penalty), expected.numpy(), rtol=1e-6)
    assert Sampler(Sampling(repetition_penalty=penalty)).pick(logits, text) == int(expected.argmax())


def test_a_penalty_counts_the_prompt_and_what_was_said() -> None:
    model = random_model()
    prompt = prompt_of(6)
    found = generate(TorchDecoder(model), prompt, set(), 10, Sampling(repetition_penalty=50.0))
    assert len({*prompt, *found}) == len(set(prompt)) + 10  # as good as forbidden: no token comes twice


def test_samples_follow_the_distribution_and_the_seed() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=7))
    drawn = [sampler.pick(logits) for _ in range(20_000)]
    counts = collections.Counter(drawn)
    # The standard error of 0.5 over 20,000 draws is 0.0035.
    np.testing.assert_allclose([counts[i] / 20_000 for i in range(4)], [0.5, 0.3, 0.15, 0.05], atol=0.02)
    again, other = Sampler(Sampling(temperature=1.0, seed=7)), Sampler(Sampling(temperature=1.0, seed=8))
    assert [again.pick(logits) for _ in range(50)] == drawn[:50]
    assert [other.pick(logits) for _ in range(50)] != drawn[:50]


def test_temperature_zero_is_greedy_whatever_the_rest() -> None:
    logits = np.array([1.0, 3.0, 2.0], dtype=np.float32)
    assert Sampler(Sampling(0.0, top_k=1, top_p=0.5)).pick(logits) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 2.0}, {"repetition_penalty": 0.0}],
)
def test_impossible_sampling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Sampling needs"):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_generation_stops_at_stop_tokens_and_says_why() -> None:
    decoder, prompt = TorchDecoder(random_model()), prompt_of(10)
    free = generate(decoder, prompt, set(), 12)
    stop = free[6]
    generation = Generation(decoder, prompt, {stop}, 12)
    assert list(generation) == free[: free.index(stop)]
    assert generation.finish_reason == "stop"
    short = Generation(decoder, prompt, set(), 3)
    assert list(short) == free[:3]
    assert short.finish_reason == "length"
    assert generate(decoder, prompt, set(), 0) == []


def test_generation_ends_at_the_end_of_the_context() -> None:
    decoder, prompt = TorchDecoder(random_model(context_length=32)), prompt_of(30)
    generation = Generation(decoder, prompt, set(), 100)
    assert len(list(generation)) == 3  # two more are read, and the token after them is known
    assert generation.finish_reason == "length"
    with pytest.raises(ValueError, match="has 33 tokens, but the model reads at most 32"):
        generate(decoder, prompt_of(33), set(), 5)
    with pytest.raises(ValueError, match="prompt is empty"):
        generate(decoder, [], set(), 5)


@settings(deadline=None)
@given(text=st.text(max_size=40))
def test_streamed_pieces_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    pieces = list(stream_text(tokenizer, ids))
    assert "".join(pieces) == text == tokenizer.decode(ids)
    assert "" not in pieces


def test_a_character_appears_when_it_is_complete(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🙂")
    assert len(ids) > 1  # a tokenizer of 512 spells it in bytes
    assert list(stream_text(tokenizer, ids)) == ["🙂"]
    assert "".join(stream_text(tokenizer, ids[:-1])) == "\ufffd"
