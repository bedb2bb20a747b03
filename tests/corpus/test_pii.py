"""Personal data: each kind found where it is one, and not where a number only looks like one."""

from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.corpus import pii
from model.corpus.pii import find_personal_data, luhn
from tasks.text.documents import redact

KEY_BLOCK = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAK==\n-----END RSA PRIVATE KEY-----"


def found(text: str) -> list[tuple[str, str]]:
    raw = text.encode()
    spans = find_personal_data(pa.array(["", text], pa.large_string()))
    assert spans[0] == []
    return [(raw[span.start : span.end].decode(), span.kind) for span in spans[1]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to ann.lee+x@mail.site.org.", [("ann.lee+x@mail.site.org", "email")]),
        ("é<bob_1@uni-bonn.de>, x", [("bob_1@uni-bonn.de", "email")]),
        ("ann@site.org.Then", [("ann@site.org", "email")]),
        ("server 8.8.4.4, port 53", [("8.8.4.4", "ip")]),
        ("2606:4700:4700::1111 answers", [("2606:4700:4700::1111", "ip")]),
        ("call +49 30 1234567 now", [("+49 30 1234567", "phone")]),
        ("call (415) 555-2671 or 415.555.2671", [("(415) 555-2671", "phone"), ("415.555.2671", "phone")]),
        ("card 4111 1111 1111 1111 ok", [("4111 1111 1111 1111", "card")]),
        ("amex 378282246310005", [("378282246310005", "card")]),
        ("AKIAIOSFODNN7EXAMPLE", [("AKIAIOSFODNN7EXAMPLE", "key")]),
        (f"token=ghp_{'a1' * 18}", [(f"ghp_{'a1' * 18}", "key")]),
        (f"see\n{KEY_BLOCK}\nend", [(KEY_BLOCK, "key")]),
    ],
)
def test_found(text: str, expected: list[tuple[str, str]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com and a@test.example.org",  # reserved for examples
        "@property.setter",
        "y = a@b.T + x@w.conj",  # matrix products
        "foo@bar",
        "127.0.0.1 192.168.1.7 10.0.0.1 0.0.0.0",  # not public
        "numpy 1.2.3 and 1.2.3.4.5 and v2.0",
        "999.1.1.1",
        "at 12:30:45 or std::vector, a[1::2], 343::",
        "::1 and fe80::1:2:3",
        "2020-10-12 and 1234-5678",
        "array([ 1.234567890123456, 4111.1111111111111])",
        "4111 1111 1111 1112",  # Luhn's sum is wrong
        "0000 0000 0000 0000",  # no issuer
        "x41111111111111111111x",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14",
        "a +1 2 3, 1e+10, +12345",
        "sk-learn and sk-image, hf_hub, eyJ",
        "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----",
        "========\n--------\n+------+------+",
    ],
)
def test_not_found(text: str) -> None:
    assert found(text) == []


def test_spans_are_ascending_disjoint_and_apply() -> None:
    text = "ü a@b.org a@b.org +1 415 555 2671 4111111111111111 8.8.8.8\n" + KEY_BLOCK
    spans = find_personal_data(pa.array([text], pa.large_string()))[0]
    assert all(left.end <= right.start for left, right in pairwise(spans))
    assert redact(text, [vars(span) for span in spans]) == "ü [EMAIL] [EMAIL] [PHONE] [CARD] [IP]\n[KEY]"


PIECES = ["a@b.org", "8.8.8.8", "1.2", "+1", " ", "415-555-2671", "4111111111111111", "AKIA", "-----BEGIN", ":", "::",
          "é", "0", "12", "(415)", "-", ".", "x", "_", "\n", "2001:db8::1", "ghp_"]  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
def test_the_compiled_scan_finds_the_plain_candidates(text: str) -> None:
    buffers = pii.buffers_of(pa.array(["x", text], pa.large_string()))
    compiled = pii._candidates(buffers.data, buffers.offsets)
    plain = pii._candidates_plain(buffers.data, buffers.offsets)
    assert [part.tolist() for part in compiled] == [part.tolist() for part in plain]


@given(st.text("0123456789", min_size=1, max_size=20))
def test_luhn_knows_exactly_one_check_digit(digits: str) -> None:
    assert sum(luhn(f"{digits}{check}".encode()) for check in range(10)) == 1
