"""Tokenizers that others trained, read from a file to compare how many bytes a token of theirs holds."""

from collections.abc import Callable
from pathlib import Path

import tiktoken
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Tokenizer as HuggingFaceTokenizer

CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
"""How cl100k_base cuts text; a `.tiktoken` file holds the merges alone."""

CountTokens = Callable[[str], int]


def load_counter(path: Path) -> CountTokens:
    """How many tokens a text has, by a `tokenizer.json` (such as GPT-2's) or a `.tiktoken` file (cl100k's).

    Raises:
        ValueError: there is no such file, or it is neither.
    """
    if not path.is_file():
        raise ValueError(f"The tokenizer {path} to compare with does not exist (tokenizer.compare_with).")
    try:
        if path.suffix == ".tiktoken":
            ranks = load_tiktoken_bpe(str(path))
            # Without special tokens: text is only counted, and none in it is special.
            encoding = tiktoken.Encoding(path.stem, pat_str=CL100K_PATTERN, mergeable_ranks=ranks, special_tokens={})
            return lambda text: len(encoding.encode_ordinary(text))
        loaded = HuggingFaceTokenizer.from_file(str(path))
    except Exception as error:  # both libraries raise bare Exceptions
        raise ValueError(
            f"{path} cannot be read as a tokenizer: {error}. Expected a tokenizer.json or a .tiktoken file "
            "(tokenizer.compare_with)."
        ) from error
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)
