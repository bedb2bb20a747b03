"""The chat format (ChatML): how messages become tokens, and which of those tokens the model is to learn."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.vocabulary.tokenizer import IM_END, IM_START, Tokenizer

CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    f"{{{{- '{IM_START}' + message['role'] + '\\n' -}}}}\n"
    "{%- if message['role'] == 'assistant' -%}\n"
    f"{{%- generation -%}}{{{{- message['content'] + '{IM_END}' -}}}}{{%- endgeneration -%}}\n"
    "{%- else -%}\n"
    f"{{{{- message['content'] + '{IM_END}' -}}}}\n"
    "{%- endif -%}\n"
    "{{- '\\n' -}}\n"
    "{%- endfor -%}\n"
    f"{{%- if add_generation_prompt -%}}{{{{- '{IM_START}assistant\\n' -}}}}{{%- endif -%}}\n"
)
"""Jinja template for transformers and servers; `generation` marks what counts as the assistant's own words."""

_GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")

Message = Mapping[str, str]


def serving_template(template: str) -> str:
    """The template without what only training reads: engines with plain Jinja refuse the tag `generation`."""
    return _GENERATION_TAG.sub("", template)


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens: `ids` and, of the same length, whether a token is the assistant's (closing
    `<|im_end|>` included, the newline after it not)."""

    ids: list[int]
    loss_mask: list[bool]


def render_conversation(tokenizer: Tokenizer, messages: Sequence[Message]) -> Rendered:
    """The tokens that transformers' `apply_chat_template(messages, return_assistant_tokens_mask=True)` gives.

    One difference on purpose: a special token spelt out inside a message stays plain text, so that no content can end
    its own message (transformers calls this `sanitize_control_tokens`).
    """
    ids: list[int] = []
    loss_mask: list[bool] = []
    newline = tokenizer.encode("\n")
    for message in messages:
        header = f"{message['role']}\n"
        # Together, as the template renders them: a newline and what follows it may be one piece.
        body = tokenizer.encode(header + message["content"])
        is_assistant = message["role"] == "assistant"
        first = _token_at_byte(tokenizer, body, len(header.encode())) if is_assistant else len(body) + 1
        ids += [tokenizer.im_start_id, *body, tokenizer.im_end_id, *newline]
        own = [index >= first for index in range(len(body))]
        loss_mask += [False, *own, is_assistant, *[False] * len(newline)]
    return Rendered(ids, loss_mask)


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The tokens of `messages` and of the opening of the assistant's next one."""
    opening = [tokenizer.im_start_id, *tokenizer.encode("assistant\n")]
    return render_conversation(tokenizer, messages).ids + opening


def _token_at_byte(tokenizer: Tokenizer, ids: Sequence[int], position: int) -> int:
    """The index of the token that holds byte `position` of the text; len(ids) if the text ends before it."""
    end = 0
    for index, token in enumerate(ids):
        end += len(tokenizer.decode_bytes([token]))
        if end > position:
            return index
    return len(ids)
