"""A result for people, as Markdown and as HTML: the tables, the one page, the one escaping."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path

from bts_lightning.files import write_whole

# Names of rows with more letters than this may go on in the next line.
_LONG = 32


@dataclass(frozen=True)
class Sheet:
    """A table of texts under a title; the first column names the rows.

    Attributes:
        notes: stand below it.
        sums: so many rows at the end stand out.
        figures: SVG that a page shows in place of the table.
        is_prose: the last column holds sentences.
    """

    title: str
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    sums: int = 0
    figures: Sequence[str] = ()
    is_prose: bool = False


@dataclass(frozen=True)
class Document:
    """A title, what was found in sentences, and tables.

    Attributes:
        beside: other results, each a name and a path without suffix.
        lead: the first sentence, which a page shows larger.
    """

    title: str
    said: Sequence[str]
    sheets: Sequence[Sheet]
    beside: Mapping[str, str] = field(default_factory=dict)
    lead: str = ""

    def write(self, file: Path) -> Path:
        """Write Markdown and, with the suffix .html, the page; give the page."""
        write_whole(file.with_suffix(".md"), self.markdown())
        return write_whole(file.with_suffix(".html"), self.html())

    def markdown(self) -> str:
        """Write what was found as a list, then the tables that have rows."""
        said = [self.lead, *self.said] if self.lead else self.said
        lines = [f"# {plain(self.title)}", "", *map(item, said)]
        lines += [f"- {name}: [{path}.md]({path}.md)" for name, path in self.beside.items()]
        for sheet in self.sheets:
            if not sheet.rows:
                continue
            rows = [list(row) for row in sheet.rows]
            for row in rows[len(rows) - sheet.sums :]:
                row[0] = f"**{row[0]}**"
            right = len(sheet.heads) - 1 - sheet.is_prose
            aligned = ["---", *["---:"] * right, *["---"] * sheet.is_prose]
            lines += ["", f"## {plain(sheet.title)}", "", *table(sheet.heads, rows, aligned)]
            lines += [f"\n{plain(note)}" for note in sheet.notes]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """Write a page that needs no other file and no network."""
        links = (
            f'<li>{escape(name)}: <a href="{escape(path)}.html">{escape(path)}.html</a></li>'
            for name, path in self.beside.items()
        )
        found = f"<section>{findings(self.said, ''.join(links))}</section>"
        return page(self.title, found + "".join(map(_section, self.sheets)), self.lead)


def page(title: str, main: str, lead: str = "", *, with_pictures: bool = False) -> str:
    """Put sections under a title."""
    below = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    header = f"<header><h1>{escape(title)}</h1>{below}</header>"
    return shell(title, f"{header}<main>{main}</main>", with_pictures=with_pictures)


def shell(title: str, body: str, *, with_scripts: bool = False, with_pictures: bool = False) -> str:
    """Make a page of a body; it may load nothing, and run what it holds only `with_scripts`."""
    allowed = "default-src 'none'; style-src 'unsafe-inline'"
    allowed += "; script-src 'unsafe-inline'" if with_scripts else ""
    allowed += "; img-src data:" if with_scripts or with_pictures else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{asset('report.css')}</style></head><body>{body}</body></html>\n"
    )


def asset(name: str) -> str:
    """Read a file that pages are made of."""
    return files("bts_lightning.report").joinpath(name).read_text(encoding="utf-8")


def findings(said: Iterable[str], more: str = "") -> str:
    """List sentences; `more` holds items that are HTML."""
    items = "".join(f"<li>{escape(text)}</li>" for text in said)
    return f'<ul class="findings">{items}{more}</ul>'


def grid(heads: str, rows: Iterable[str], caption: str = "") -> str:
    """Make a table of cells that are HTML."""
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def columns(names: Iterable[str]) -> str:
    """Head the columns of a grid."""
    return "".join(f'<th scope="col">{_breakable(name)}</th>' for name in names)


def _breakable(name: str) -> str:
    """Let `rfnet+phantom+net.width=4` go on in the next line: no column pushes the others out."""
    return re.sub(r"\+(?=\S)", "+<wbr>", escape(name))


def heat(text: str, small: str, share: float, is_bad: bool = False) -> str:
    """Make a cell of a grid, coloured by a share of 0 to 1."""
    return (
        f'<td class="heat{" down" if is_bad else ""}" style="--share:{share:.2f}">{escape(text)}'
        f"<small>{escape(small)}</small></td>"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], aligned: Sequence[str]) -> list[str]:
    """Write a Markdown table, `aligned` by `---`, `---:` or `:-:` for each column."""
    cells = (" | ".join(map(plain, row)) for row in rows)
    start = [f"| {' | '.join(map(plain, heads))} |", f"|{'|'.join(aligned)}|"]
    return [*start, *(f"| {row} |" for row in cells)]


def item(text: str) -> str:
    """Write an item of a Markdown list; after a plus a list would begin inside the list."""
    shown = plain(text)
    return f"- \\{shown}" if shown.startswith(("+ ", "- ", "* ")) else f"- {shown}"


def plain(text: object) -> str:
    """Keep a text from breaking a line, a table or a tag of Markdown."""
    return re.sub("<(?=[A-Za-z/!?])", "&lt;", " ".join(str(text).split()).replace("|", r"\|"))


def _section(sheet: Sheet) -> str:
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in sheet.notes)
    figures = "".join(f"<figure>{figure}</figure>" for figure in sheet.figures)
    shown = f'<div class="panels">{figures}</div>' if figures else _table(sheet)
    return f"<section><h2>{escape(sheet.title)}</h2>{shown}{notes}</section>"


def _table(sheet: Sheet) -> str:
    rows = []
    for number, (name, *others) in enumerate(sheet.rows):
        cells = [f"<td>{escape(cell)}</td>" for cell in others]
        if sheet.is_prose:
            cells[-1] = f'<td class="prose">{escape(others[-1])}</td>'
        kind = " class=sum" if number >= len(sheet.rows) - sheet.sums else ""
        long = " class=long" if len(name) > _LONG else ""
        head = f'<th scope="row"{long}>{_breakable(name)}</th>'
        rows.append(f"<tr{kind}>{head}{''.join(cells)}</tr>")
    return f'<div class="scroll">{grid(columns(sheet.heads), rows)}</div>'
