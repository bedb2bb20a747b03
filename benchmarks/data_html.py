"""How well both extractors find the main content of web pages: token F1 against content marked by hand."""

import gzip
import re
import time
from collections import Counter
from pathlib import Path
from statistics import mean

from benchmarks.report import Figure
from tasks.text.readers.html import main_content
from tasks.text.readers.records import HtmlExtractor

# Below what other pages gave (181 of the scrapinghub benchmark: .916 and .962), as annotators differ over captions.
GOALS: dict[HtmlExtractor, float] = {"fast": 0.85, "precise": 0.88}
_WORD = re.compile(r"\w+")


def token_f1(found: str, expected: str) -> float:
    """Harmonic mean of precision and recall over lower-cased words, counted as often as they occur."""
    ours, theirs = (Counter(_WORD.findall(text.lower())) for text in (found, expected))
    shared = (ours & theirs).total()
    return 2 * shared / max(ours.total() + theirs.total(), 1)


def marked_pages(folder: Path) -> list[tuple[bytes, str]]:
    """(page, text of its main content) of each folder with `source.html.gz` and `expected.html.gz`."""
    from resiliparse.extract.html2text import extract_plain_text

    pages = []
    for source in sorted(folder.glob("*/source.html.gz")):
        expected = gzip.decompress(source.with_name("expected.html.gz").read_bytes()).decode("utf-8", "replace")
        text = str(extract_plain_text(expected, main_content=False, alt_texts=False))
        pages.append((gzip.decompress(source.read_bytes()), text))
    return pages


def html_quality(folder: Path) -> list[Figure]:
    """Token F1 of each extractor over the pages, and pages per CPU-second."""
    pages = marked_pages(folder)
    if not pages:
        print(f"no marked pages in {folder}: not measured")
        return []
    figures = []
    for extractor, goal in GOALS.items():
        started = time.process_time()
        found = [main_content(page, extractor) for page, _ in pages]
        rate = len(pages) / (time.process_time() - started)
        scores = [token_f1(text, expected) for text, (_, expected) in zip(found, pages)]
        print(f"html {extractor}: {len(pages)} pages, {rate:,.0f} pages per CPU-second, F1 mean {mean(scores):.3f}, "
              f"worst {min(scores):.3f}, empty {sum(not text for text in found)}")  # fmt: skip
        figures.append(Figure(f"token F1 of main content, {extractor}", mean(scores), goal))
    return figures
