"""The contract that travels inside every artifact with tokens in it: tokenizer, special ids, chat template, context."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from model.vocabulary.tokenizer import Tokenizer
from tasks.mechanism.identity import canonical_json

CONTRACT_FILE = "contract.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_REMEDY = "They were made for different tokenizers or models: rebuild the later one from the earlier one."


@dataclass(frozen=True)
class Contract:
    """What two artifacts must agree on before one is used with the other. `context_length` in tokens, 0 where it does
    not apply."""

    tokenizer_digest: str
    special_ids: dict[str, int]
    chat_template_digest: str
    context_length: int = 0


def contract_of_tokenizer(folder: Path) -> Contract:
    """The contract that the tokenizer files in `folder` themselves imply."""
    tokenizer = Tokenizer.load(folder)
    template = hashlib.sha256((folder / "chat_template.jinja").read_bytes()).hexdigest()
    # The digest of what decides ids: another layout of the same tokenizer.json is the same tokenizer.
    return Contract(tokenizer.digest, tokenizer.special_ids, template)


def write_contract(folder: Path, contract: Contract) -> None:
    """Write `contract.json`."""
    (folder / CONTRACT_FILE).write_bytes(canonical_json(asdict(contract)) + b"\n")


def read_contract(folder: Path) -> Contract:
    """Read `contract.json`.

    Raises:
        ValueError: there is none, or it is not one.
    """
    path = folder / CONTRACT_FILE
    try:
        return Contract(**json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no {CONTRACT_FILE}: it is not an artifact of this pipeline.") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a contract ({error}). Rebuild the artifact.") from error


def check_contract(expected_dir: Path, found_dir: Path) -> None:
    """Refuse to use two artifacts together that disagree; a context length counts only where both state one.

    Raises:
        ValueError: with the field and both values.
    """
    expected, found = asdict(read_contract(expected_dir)), asdict(read_contract(found_dir))
    for field, value in expected.items():
        if field == "context_length" and 0 in (value, found[field]):
            continue
        if value != found[field]:
            raise ValueError(
                f"Contract mismatch in {field}: {expected_dir} has {_short(value)}, {found_dir} has "
                f"{_short(found[field])}. {_REMEDY}"
            )


def copy_tokenizer(source_dir: Path, target_dir: Path) -> None:
    """Copy the tokenizer files, byte for byte, into another artifact."""
    for name in TOKENIZER_FILES:
        (target_dir / name).write_bytes((source_dir / name).read_bytes())


def _short(value: object) -> str:
    text = str(value)
    return text[:16] if isinstance(value, str) else text
