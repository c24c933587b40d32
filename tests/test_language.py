"""Language of docstrings and docs: short sentences, no words that the field does not use."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MODULES = sorted((ROOT / "burnish").rglob("*.py"))
PAGES = sorted(
    p
    for p in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    # Results quote models; the command line quotes docstrings.
    if not {"cli.md", "results", "_build"} & set(p.parts)
)
LONGEST = 30
FOREIGN = re.compile(r"\b(whoever|nobody|told)\b", re.IGNORECASE)


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of prose; clauses after a semicolon and items of a list count as sentences."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for paragraph in re.split(r"\n\s*\n|\n\s*(?=[-*|#] ?)", text):
        yield from re.split(r"(?<=[.!?:;|])\s+", " ".join(paragraph.split()))


def n_words(sentence: str) -> int:
    """Count words of two letters or more; formulas, numbers and code have few."""
    return len(re.findall(r"[A-Za-z][A-Za-z'-]+", re.sub(r"`[^`]*`", "code", sentence)))


def docstrings(module: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield getattr(node, "name", "module"), ast.get_docstring(node) or ""


def test_long_sentences_are_found() -> None:
    words = " ".join(["word"] * 31)
    assert [n_words(s) for s in sentences(f"Short one. {words}; and `a b c d` x = 1.")] == [2, 31, 2]


@pytest.mark.parametrize("module", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_have_short_sentences(module: Path) -> None:
    found = [
        f"{name}: {s}" for name, text in docstrings(module) for s in sentences(text) if n_words(s) > LONGEST
    ]
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_have_short_sentences(page: Path) -> None:
    found = [s for s in sentences(page.read_text(encoding="utf-8")) if n_words(s) > LONGEST]
    assert found == []


def test_words_that_the_field_does_not_use() -> None:
    texts = [*MODULES, *PAGES, *(ROOT / "burnish").rglob("*.html"), *(ROOT / "burnish").rglob("*.js")]
    found = {p.name for p in texts if FOREIGN.search(p.read_text(encoding="utf-8"))}
    assert found <= {"label_audit.py"}, (
        "which quotes the question of a probe; its judgements are kept by its words"
    )
