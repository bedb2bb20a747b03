"""Contracts: artifacts made for each other pass, any difference is refused with both values."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.vocabulary.tokenizer import SPECIAL_TOKENS
from tasks.tokens.contract import Contract, check_contract, read_contract, write_contract

CONTRACT = Contract("a" * 64, {token: 508 + i for i, token in enumerate(SPECIAL_TOKENS)}, "b" * 64, 512)


def folder(tmp_path: Path, name: str, contract: Contract) -> Path:
    path = tmp_path / name
    path.mkdir()
    write_contract(path, contract)
    return path


def test_round_trip(tmp_path: Path) -> None:
    assert read_contract(folder(tmp_path, "x", CONTRACT)) == CONTRACT


def test_equal_contracts_pass_and_a_missing_context_length_too(tmp_path: Path) -> None:
    model = folder(tmp_path, "model", CONTRACT)
    check_contract(model, folder(tmp_path, "twin", CONTRACT))
    check_contract(folder(tmp_path, "tokens", replace(CONTRACT, context_length=0)), model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer_digest": "c" * 64}, ["tokenizer_digest", "aaaaaaaa", "cccccccc"]),
        ({"chat_template_digest": "c" * 64}, ["chat_template_digest", "bbbbbbbb", "cccccccc"]),
        ({"special_ids": {SPECIAL_TOKENS[0]: 7}}, ["special_ids", "508", "7"]),
        ({"context_length": 1024}, ["context_length", "512", "1024"]),
    ],
)
def test_a_difference_is_refused_with_both_values(tmp_path: Path, change: dict[str, object], words: list[str]) -> None:
    expected = folder(tmp_path, "expected", CONTRACT)
    found = folder(tmp_path, "found", replace(CONTRACT, **change))  # type: ignore[arg-type]
    with pytest.raises(ValueError) as caught:
        check_contract(expected, found)
    assert all(word in str(caught.value) for word in words)


def test_no_contract_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no contract\.json"):
        read_contract(tmp_path)
    (tmp_path / "contract.json").write_text('{"tokenizer_digest": 1')
    with pytest.raises(ValueError, match="not a contract"):
        read_contract(tmp_path)
