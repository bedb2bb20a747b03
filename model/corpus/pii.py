"""Find personal data and secrets: a compiled scan marks the few places worth a look, a strict pattern decides there.

Technical text is full of numbers, so each kind is held to what its numbering plan allows: public addresses only (RFC
6890), cards by issuer prefix and Luhn's sum (ISO/IEC 7812), telephone numbers as E.164 with `+` or as North American
ones, addresses under the common top-level domains and not under those reserved for examples (RFC 2606).
"""

import ipaddress
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.corpus.words import buffers_of
from model.kernels.jit import COMPILED, bare_helper, kernel

_EMAIL, _IPV4, _IPV6, _PHONE, _CARD, _KEY = range(6)
_KIND_NAMES = ("email", "ip", "ip", "phone", "card", "key")

_TOP_LEVEL = frozenset(
    b"com org net edu gov mil int info biz name pro dev app io ai co me tv cc xyz online site tech cloud museum "
    b"eu uk us ca au nz ie de at ch fr be nl lu it es pt gr se no dk fi is pl cz sk hu ro bg hr si rs ua ru by kz tr "
    b"il ae sa eg za ng ke in pk lk bd cn hk tw jp kr sg my th vn id ph br ar cl pe ve mx".split()
)
_RESERVED = re.compile(rb"(?:.+\.)?example\.(?:com|org|net|edu)\Z", re.IGNORECASE)
_LOCAL_PART = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}\Z")  # RFC 5321: 64 at most
_DOMAIN = re.compile(rb"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24})(?![A-Za-z0-9_])")
_IPV4_RUN = re.compile(rb"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![A-Za-z0-9_]|[.-][0-9])")  # not in 1.2.3.4.5
_IPV6_RUN = re.compile(rb"[0-9A-Fa-f:]{5,39}(?![A-Za-z0-9_:])")
_INTERNATIONAL = re.compile(
    rb"\+[1-9][0-9]{0,2}[ .-]?(?:\([0-9]{1,4}\)[ .-]?)?[0-9]{2,5}(?:[ .-]?[0-9]{2,5}){1,4}(?![0-9A-Za-z_])"
)
_NORTH_AMERICAN = re.compile(
    rb"(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[.-][0-9]{4}(?![0-9A-Za-z_]|[.-][0-9])"
)
_CARD_RUN = re.compile(rb"[0-9](?:[ -]?[0-9]){12,18}(?![0-9A-Za-z_]|[.-][0-9])")  # 13 to 19 digits, as cards have
_ISSUERS = re.compile(
    rb"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"
    rb"|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|35(?:2[89]|[3-8][0-9])[0-9]{12}"  # Amex, Diners, JCB
    rb"|6(?:011|5[0-9]{2}|4[4-9][0-9])[0-9]{12}"  # Discover
)
_SECRETS = re.compile(
    rb"A(?:KI|SI)A[0-9A-Z]{16}(?![0-9A-Za-z])"  # AWS access key
    rb"|gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9_]{22,255}"
    rb"|glpat-[A-Za-z0-9_-]{20,}|xox[abeprs]-[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{35}"
    rb"|sk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}|[rs]k_live_[A-Za-z0-9]{20,}|hf_[A-Za-z0-9]{34,}|npm_[A-Za-z0-9]{36}"
    rb"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"  # JSON web token
    rb"|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----(?s:.{0,8000}?)-----END (?:[A-Z]+ )?PRIVATE KEY-----"
)
_SECRET_STARTS = b"AKI ASI ghp gho ghu ghs ghr git glp xox AIz sk- sk_ rk_ hf_ npm eyJ".split()

# Traits of a byte in the scan.
_WORD, _DIGIT, _HEX, _LOCAL, _START = 1, 2, 4, 8, 16


@dataclass(frozen=True)
class Span:
    """Bytes [start, end) of a text's UTF-8 form that hold personal data of this kind."""

    start: int
    end: int
    kind: str


def find_personal_data(texts: pa.LargeStringArray) -> list[list[Span]]:
    """The spans of each text: ascending, disjoint."""
    buffers = buffers_of(texts)
    rows, places, kinds = _candidates(buffers.data, buffers.offsets)
    found: list[list[Span]] = [[] for _ in range(len(texts))]
    view = buffers.data.data
    for row, place, kind in zip(rows.tolist(), places.tolist(), kinds.tolist()):
        start, end = int(buffers.offsets[row]), int(buffers.offsets[row + 1])
        if found[row] and place < start + found[row][-1].end:
            continue
        span = _decide(view, place, start, end, kind)
        if span is not None and (not found[row] or span[0] >= start + found[row][-1].end):
            found[row].append(Span(span[0] - start, span[1] - start, _KIND_NAMES[kind]))
    return found


def _decide(view: memoryview, place: int, start: int, end: int, kind: int) -> tuple[int, int] | None:
    """The bytes that are personal data at this candidate, if they are."""
    if kind == _EMAIL:
        return _email(view, place, start, end)
    if kind == _CARD:
        found = _CARD_RUN.match(view, place, end)
        return found.span() if found and _is_card(found.group()) else None
    if kind == _PHONE:
        found = (_INTERNATIONAL if view[place] == ord("+") else _NORTH_AMERICAN).match(view, place, end)
        # E.164 allows 15 digits at most.
        return found.span() if found and 8 <= sum(48 <= byte <= 57 for byte in found.group()) <= 15 else None
    if kind == _KEY:
        found = _SECRETS.match(view, place, end)
        return found.span() if found else None
    found = (_IPV4_RUN if kind == _IPV4 else _IPV6_RUN).match(view, place, end)
    return found.span() if found and _is_public_address(found.group()) else None


def _email(view: memoryview, place: int, start: int, end: int) -> tuple[int, int] | None:
    local = _LOCAL_PART.search(bytes(view[max(start, place - 64) : place]))
    domain = _DOMAIN.match(view, place, min(end, place + 256))
    if not local or not domain:
        return None
    name = domain.group(1)
    while b"." in name and name.rpartition(b".")[2].lower() not in _TOP_LEVEL:
        name = name.rpartition(b".")[0]  # `ann@site.org.Then` at the end of a sentence
    if b"." not in name or _RESERVED.match(name):
        return None
    return place - len(local.group()), place + 1 + len(name)


def _is_public_address(text: bytes) -> bool:
    if b":" in text and len([group for group in text.split(b":") if group]) < 3:
        return False  # `343::` is rather a slice or a label than an address
    try:
        return ipaddress.ip_address(text.decode()).is_global
    except ValueError:
        return False


def _is_card(text: bytes) -> bool:
    digits = bytes(byte for byte in text if 48 <= byte <= 57)
    return bool(_ISSUERS.fullmatch(digits)) and luhn(digits)


def luhn(digits: bytes) -> bool:
    """Whether the last of these ASCII digits is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    total = 0
    for position, byte in enumerate(reversed(digits)):
        value = (byte - 48) * (1 + position % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


Candidates = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]


def _candidates(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Candidates:
    """Rows, byte positions in `data` and kinds of the places to look at, ascending."""
    if not COMPILED:
        return _candidates_plain(data, offsets)
    room = 1024 + len(data) // 128  # guessed; a second scan where there are more
    while True:
        rows, places, kinds = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.uint8)
        count = _scan_kernel(data, offsets, _byte_traits(), _secret_table(), rows, places, kinds)
        if count <= room:
            return rows[:count], places[:count], kinds[:count]
        room = count


def _byte_traits() -> NDArray[np.uint8]:
    traits = np.zeros(256, np.uint8)
    for byte in range(128):
        character = chr(byte)
        traits[byte] |= _WORD * (character.isalnum() or character == "_")
        traits[byte] |= _DIGIT * character.isdigit()
        traits[byte] |= _HEX * (character in "0123456789abcdefABCDEF")
        traits[byte] |= _LOCAL * (character.isalnum() or character in "._%+-")
        traits[byte] |= _START * (character.isdigit() or character in "+(-" or byte in {s[0] for s in _SECRET_STARTS})
    return traits


def _secret_table() -> NDArray[np.bool_]:
    table = np.zeros(1 << 16, np.bool_)
    for start in _SECRET_STARTS:
        table[_secret_slot(*start)] = True
    return table


@bare_helper
def _secret_slot(first: int, second: int, third: int) -> int:
    return (first * 0x9E37 + second * 0x85EB + third * 0xC2B2) & 0xFFFF


@bare_helper
def _digit_chain(text: NDArray[np.uint8], traits: NDArray[np.uint8], i: int) -> int:
    """Digits of the run at text[i] in which single spaces or hyphens may stand between digits."""
    digits = 0
    while i < len(text) and digits < 20:
        if traits[text[i]] & _DIGIT:
            digits += 1
        elif not ((text[i] == 32 or text[i] == 45) and i + 1 < len(text) and traits[text[i + 1]] & _DIGIT):
            break
        i += 1
    return digits


@bare_helper
def _dotted_quad(text: NDArray[np.uint8], traits: NDArray[np.uint8], i: int) -> bool:
    """Whether four groups of one to three digits with dots between start at text[i]."""
    for group in range(4):
        digits = 0
        while i < len(text) and traits[text[i]] & _DIGIT and digits < 4:
            digits += 1
            i += 1
        if digits == 0 or digits == 4:
            return False
        if group < 3:
            if i >= len(text) or text[i] != 46:
                return False
            i += 1
    return True


@bare_helper
def _colon_run(text: NDArray[np.uint8], traits: NDArray[np.uint8], colon: int) -> int:
    """Where the run of hexadecimal digits and colons around text[colon] starts, if it may be an IPv6 address; or -1.

    It has at least two colons, the first of them text[colon], a digit, and no other word character before it.
    """
    start = colon
    while start and traits[text[start - 1]] & _HEX:
        start -= 1
    if start and (traits[text[start - 1]] & _WORD or text[start - 1] == 58 or text[start - 1] == 46):
        return -1
    colons = digits = 0
    i = start
    while i < len(text) and (traits[text[i]] & _HEX or text[i] == 58):
        colons += int(text[i] == 58)
        digits += int(traits[text[i]] & _DIGIT != 0)
        i += 1
    return start if colons >= 2 and digits > 0 else -1


@bare_helper
def _candidate_kind(text: NDArray[np.uint8], traits: NDArray[np.uint8], secrets: NDArray[np.bool_], i: int) -> int:
    """What the text at i, a start in the sense of `_START` with no word character before it, may be; -1 for nothing."""
    size = len(text)
    byte = text[i]
    if byte == 45:
        return 5 if i + 10 < size and text[i + 5] == 66 and text[i + 9] == 78 else -1  # -----BEGIN
    if byte == 43:  # +
        return 3 if i + 1 < size and traits[text[i + 1]] & _DIGIT else -1
    if byte == 40:  # (, and below ) after three digits
        return 3 if i + 4 < size and traits[text[i + 1]] & _DIGIT and text[i + 4] == 41 else -1
    if not traits[byte] & _DIGIT:
        known = i + 2 < size and secrets[_secret_slot(int(byte), int(text[i + 1]), int(text[i + 2]))]
        return 5 if known else -1
    if _dotted_quad(text, traits, i):
        return 1
    digits = _digit_chain(text, traits, i)
    if digits >= 13:  # the shortest card number
        return 4
    return 3 if digits >= 3 and i + 3 < size and (text[i + 3] == 45 or text[i + 3] == 46) else -1


@kernel("u1[:]", "i8[:]", "u1[:]", "b1[:]", "out i8[:]", "out i8[:]", "out u1[:]")
def _scan_kernel(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    traits: NDArray[np.uint8],
    secrets: NDArray[np.bool_],
    rows: NDArray[np.int64],
    places: NDArray[np.int64],
    kinds: NDArray[np.uint8],
) -> int:
    """Write as many candidates as there is room for; returns how many there are."""
    count = 0
    for row in range(len(offsets) - 1):
        text = data[offsets[row] : offsets[row + 1]]
        before = byte = np.uint8(0)
        for i in range(len(text)):
            before = byte
            byte = text[i]
            # Both sides of `&` are always asked: a jump for each would be foreseen badly and cost more.
            starts = (traits[byte] & _START != 0) & (traits[before] & _WORD == 0)
            if not (starts | (byte == 58) | (byte == 64)):
                continue
            place = -1
            kind = 0
            if starts and before != byte and before != 46:
                kind = _candidate_kind(text, traits, secrets, i)
                place = i if kind >= 0 else -1
            elif byte == 58:  # :
                kind = 2
                place = _colon_run(text, traits, i)
            elif byte == 64 and i and traits[before] & _LOCAL and i + 1 < len(text) and traits[text[i + 1]] & _WORD:
                place = i
            if place < 0:
                continue
            if count < len(rows):
                rows[count] = row
                places[count] = offsets[row] + place
                kinds[count] = kind
            count += 1
    return count


def _candidates_plain(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Candidates:
    """The kernel's candidates, found by running it as Python: a slow stand-in, and exact."""
    room = max(int(offsets[-1] - offsets[0]), 1)
    rows, places, kinds = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.uint8)
    scan = getattr(_scan_kernel, "py_func", _scan_kernel)  # numba keeps the Python function it compiled
    count = scan(data, offsets, _byte_traits(), _secret_table(), rows, places, kinds)
    return rows[:count], places[:count], kinds[:count]
