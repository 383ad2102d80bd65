"""Tables in Markdown, and the places in a file where they stand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

__all__ = ["DOCS", "markdown", "put", "taken"]

DOCS = Path(__file__).parents[2] / "docs/kernels.md"


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put(path: Path, name: str, text: str) -> None:
    """Put a text between the marks of a name in a file; at its end where there are none."""
    begin, end = _marks(name)
    before = path.read_text() if path.exists() else ""
    if begin not in before:
        before += f"{begin}\n{end}\n"
    head, _, rest = before.partition(begin)
    path.write_text(f"{head}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def taken(path: Path, name: str) -> list[list[str]]:
    """Rows of the table between the marks of a name, without its head."""
    begin, end = _marks(name)
    text = path.read_text() if path.exists() else ""
    rows = text.partition(begin)[2].partition(end)[0].splitlines()
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows if row[:1] == "|"][2:]


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
