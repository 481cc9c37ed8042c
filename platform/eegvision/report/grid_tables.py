"""A table of scores in which every number keeps its interval, its chance level and the published figure beside it.

Shares are stored in [0, 1] and shown in per cent. One table has five faces: JSON (`to_dict`), text for a terminal,
HTML for the page, CSV with one line per score, and LaTeX for a paper.
"""

from __future__ import annotations

import csv
import html
import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from eegvision.vocab import InputError

TEXT_COLUMNS = 120
NOT_REACHABLE = "none"  # of a significance line: even every query right would not be enough
# Wrapped beyond so many characters; with all the parts a column can have, one still fits beside the labels.
_LABEL_CHARS, _WORD_CHARS, _NAME_CHARS = 36, 22, 26
_GAP = "  "

Parts = list[tuple[str, list[str]]]  # of a column: heading, a text per row
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "→": r"$\rightarrow$", "−": "$-$", "±": r"$\pm$", "×": r"$\times$",
    "≥": r"$\geq$", "≤": r"$\leq$", "≈": r"$\approx$", "µ": r"$\mu$", "–": "--", "[": "{[}", "]": "{]}",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One score and what it must be read with; all shares (or differences of shares), None where unknown.

    Args:
        value: the score; None where there is none, and `text` says why.
        low, high: its 95 % interval.
        n_seeds, sd: seeds the score is the mean of, and their standard deviation.
        published: the same score in the paper.
        chance: what guessing scores.
        line: the least score that guessing rarely reaches; infinite where even 1 would be reached too often.
        is_struck: its audit says `unsupported`, or the order audit of its data set is red.
        text: shown in place of the number, such as a setting, a rank or a reason.
    Raises:
        InputError: a number is no share, or not a number.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n_seeds: int | None = None
    sd: float | None = None
    published: float | None = None
    chance: float | None = None
    line: float | None = None
    is_struck: bool = False
    text: str = ""

    def __post_init__(self) -> None:
        for name in ("value", "low", "high", "sd", "published", "chance", "line"):
            number = getattr(self, name)
            is_known = number is not None and not (name == "line" and number == math.inf)
            if is_known and not -1 - 1e-9 <= number <= 1 + 1e-9:
                raise InputError(
                    f"the {name} of a cell is {number!r}; tables hold shares (0.901, not 90.1), and other numbers "
                    "go into its text"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return what is known, as JSON takes it (an infinite line as text)."""
        known = {"value": self.value} | {
            entry.name: value for entry in fields(self)[1:] if (value := getattr(self, entry.name)) != entry.default
        }
        return {name: "inf" if value == math.inf else value for name, value in known.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the cell that `to_dict` described."""
        if not isinstance(values, Mapping):
            raise InputError(f"a cell is {values!r}; expected a value and its circumstances by name")
        if unknown := sorted(set(values) - {entry.name for entry in fields(cls)}):
            raise InputError(f"a cell has {', '.join(map(repr, unknown))}, which this version does not know")
        known: dict[str, Any] = {"value": None, **values} | ({"line": math.inf} if values.get("line") == "inf" else {})
        for name, value in known.items():
            kind = {"text": str, "is_struck": bool, "n_seeds": int}.get(name, int | float)
            if not (isinstance(value, kind) or (value is None and name not in ("text", "is_struck"))):
                raise InputError(f"the {name} of a cell is {value!r}, which is of the wrong kind")
        return cls(**known)

    @property
    def is_number(self) -> bool:
        """Whether a score, ours or a published one, is in it."""
        return self.value is not None or self.published is not None

    @property
    def shown(self) -> str:
        """The score in per cent, or the text in its place."""
        return self.text or percent(self.value)

    @property
    def interval(self) -> str:
        """The interval in per cent, or nothing."""
        return "" if self.low is None or self.high is None else f"[{percent(self.low)}, {percent(self.high)}]"

    @property
    def spread(self) -> str:
        """Standard deviation over seeds in points and, in brackets, their number; whichever is known."""
        seeds = "" if self.n_seeds is None else f"({self.n_seeds})"
        return f"{percent(self.sd)} {seeds}".strip()


@dataclass(frozen=True, kw_only=True)
class Table:
    """Scores by row and column, in the layout of the paper they are compared with.

    Args:
        title: such as `Table I. Encoder pairs`.
        caption: what was measured on what, in a sentence or two: split, selection rule, gallery, n.
        columns: heading of each.
        rows: a cell per column by the label of the row, in the order they are shown.
        notes: what a reader must know of single numbers, a sentence each.
        source: where the published figures are from.
    Raises:
        InputError: a row has more or fewer cells than there are columns, or there is no column.
    """

    title: str
    caption: str = ""
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]
    notes: Sequence[str] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if not self.columns:
            raise InputError(f"the table {self.title!r} has no columns")
        for label, cells in self.rows.items():
            if len(cells) != len(self.columns):
                raise InputError(
                    f"the table {self.title!r} has {len(self.columns)} columns, and {len(cells)} cells for {label!r}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, whole: `from_dict` makes the same table of them."""
        return {
            "title": self.title,
            "caption": self.caption,
            "columns": list(self.columns),
            "rows": {label: [cell.to_dict() for cell in cells] for label, cells in self.rows.items()},
            "notes": list(self.notes),
            "source": self.source,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the table that `to_dict` described.

        Raises:
            InputError: an entry is missing or of another kind; names it.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"a table is {values!r}; expected title, columns and rows by name")
        known: dict[str, Any] = {"caption": "", "notes": [], "source": "", **values}
        for name, kind in {"title": str, "caption": str, "columns": list, "rows": dict, "notes": list}.items():
            if not isinstance(known.get(name), kind):
                raise InputError(f"the {name} of a table is {known.get(name)!r}; expected a {kind.__name__}")
        for label, cells in known["rows"].items():
            if not isinstance(cells, list):
                raise InputError(f"the row {label!r} of the table {known['title']!r} is {cells!r}; expected its cells")
        return cls(
            title=known["title"],
            caption=known["caption"],
            columns=tuple(map(str, known["columns"])),
            rows={label: tuple(map(Cell.from_dict, cells)) for label, cells in known["rows"].items()},
            notes=tuple(map(str, known["notes"])),
            source=str(known["source"]),
        )

    def to_text(self) -> str:
        """Return the table as aligned text of at most 120 columns; what does not fit beside goes below.

        The published figure stands beside ours, the interval between them; chance and significance line are the last
        rows, or columns where they differ from row to row. A struck score begins with `x`.
        """
        labels = [*self.rows, *self._foot(0)]
        width = max((min(len(label), _LABEL_CHARS) for label in labels), default=0)
        blocks: list[list[_Group]] = [[]]
        for group in map(self._group, range(len(self.columns))):
            taken = width + sum(len(_GAP) + other.width for other in blocks[-1])
            if blocks[-1] and taken + len(_GAP) + group.width > TEXT_COLUMNS:
                blocks.append([])
            blocks[-1].append(group)
        lines = [*_wrapped(self.title), *_wrapped(self.caption), ""]
        for block in blocks:
            lines += [*_block(labels, len(self.rows), width, block), ""]
        for note in self._all_notes():
            lines += textwrap.wrap(note, TEXT_COLUMNS, subsequent_indent="  ")
        return "\n".join(lines).rstrip() + "\n"

    def to_html(self) -> str:
        """Return a figure with the table for a page in our style; narrow screens show a card per row."""
        columns = [self._columns_html(at) for at in range(len(self.columns))]
        kinds_of = ["words" if self._is_words(at) else "number" for at in range(len(self.columns))]
        top = "".join(
            f'<th class="{kind}" colspan="{len(column)}">{_html(name)}</th>'
            for name, column, kind in zip(self.columns, columns, kinds_of, strict=True)
        )
        below = "".join(
            f'<th class="number">{kind if _needs_heads(column) else ""}</th>'
            for column in columns
            for kind, _ in column
        )
        has_kinds = any(map(_needs_heads, columns))
        body = []
        for number, label in enumerate([*self.rows, *self._foot(0)]):
            cells = "".join(
                _cell_html(name, kind if _needs_heads(column) else "", style, texts[number])
                for name, column, style in zip(self.columns, columns, kinds_of, strict=True)
                for kind, texts in column
            )
            is_foot = number >= len(self.rows)
            body.append(f'<tr{" class=level" if is_foot else ""}><th scope="row">{_html(label)}</th>{cells}</tr>')
        notes = "".join(f"<li>{_html(note)}</li>" for note in self._all_notes())
        return (
            f'<figure class="grid"><h3>{_html(self.title)}</h3><p class="caption">{_html(self.caption)}</p>'
            f'<div class="wide"><table class="scores"><thead><tr><th rowspan="{1 + has_kinds}"></th>{top}</tr>'
            f"{f'<tr>{below}</tr>' if has_kinds else ''}</thead><tbody>{''.join(body)}</tbody></table></div>"
            f"{f'<figcaption><ul>{notes}</ul></figcaption>' if notes else ''}</figure>"
        )

    def to_csv(self) -> str:
        """Return one line per cell: table, row, column, then everything that is known of it; shares stay shares."""
        names = [entry.name for entry in fields(Cell)]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["table", "row", "column", *names])
        for label, cells in self.rows.items():
            for column, cell in zip(self.columns, cells, strict=True):
                writer.writerow([self.title, label, column, *(getattr(cell, name) for name in names)])
        return file.getvalue()

    def to_latex(self) -> str:
        r"""Return a `table` environment that needs the packages booktabs and ulem (with `normalem`, for \sout)."""
        columns = [self._columns_latex(at) for at in range(len(self.columns))]
        has_kinds = any(map(_needs_heads, columns))
        heads, rules, first = [], [], 2
        for name, column in zip(self.columns, columns, strict=True):
            heads.append(rf"\multicolumn{{{len(column)}}}{{c}}{{{latex(name)}}}")
            rules.append(rf"\cmidrule(lr){{{first}-{first + len(column) - 1}}}")
            first += len(column)
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex(f'{self.title}. {self.caption}'.strip())}}}"]
        places = "".join(("l" if self._is_words(at) else "r") * len(column) for at, column in enumerate(columns))
        lines += [rf"\begin{{tabular}}{{l{places}}}", r"\toprule", " & ".join(["", *heads]) + r" \\"]
        if has_kinds:
            kinds = [latex(kind) if _needs_heads(column) else "" for column in columns for kind, _ in column]
            lines += ["".join(rules), " & ".join(["", *kinds]) + r" \\"]
        lines.append(r"\midrule")
        for number, label in enumerate([*self.rows, *self._foot(0)]):
            if number == len(self.rows):
                lines.append(r"\midrule")
            cells = [texts[number] for column in columns for _, texts in column]
            lines.append(" & ".join([latex(label), *cells]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\smallskip{{\footnotesize {latex(note)}}}" for note in self._all_notes()]
        return "\n".join([*lines, r"\end{table}"]) + "\n"

    def _cells(self, at: int) -> list[Cell]:
        return [cells[at] for cells in self.rows.values()]

    @property
    def _seeds(self) -> int | None:
        """Number of seeds of every spread, None where it is not always the same."""
        numbers = {cell.n_seeds for cells in self.rows.values() for cell in cells if cell.sd is not None}
        return numbers.pop() if len(numbers) == 1 else None

    def _is_words(self, at: int) -> bool:
        """Tell whether a column holds no number, so that it reads from the left."""
        return bool(self.rows) and not any(cell.is_number for cell in self._cells(at))

    def _level(self, at: int, name: str) -> float | None:
        """Return the chance or line that all scores of a column share, or None."""
        levels = [(getattr(cell, name), cell.value) for cell in self._cells(at)]
        values = {level for level, value in levels if (level, value) != (None, None)}
        return values.pop() if len(values) == 1 else None

    def _foot(self, at: int) -> dict[str, str]:
        """Return the last rows' texts for a column, by label: levels that hold for a whole column."""
        titles = {"chance": "chance", "line": "significance line"}
        every = range(len(self.columns))
        shared = [name for name in titles if any(self._level(column, name) is not None for column in every)]
        return {titles[name]: "" if (level := self._level(at, name)) is None else percent(level) for name in shared}

    def _differing(self, at: int) -> Parts:
        """Return the levels of a column that are not the same for all of its scores, (heading, text by row)."""
        found = []
        for heading, name in (("chance", "chance"), ("line", "line")):
            texts = [percent(getattr(cell, name)) for cell in self._cells(at)]
            if self._level(at, name) is None and any(text != "" for text in texts):
                found.append((heading, texts))
        return found

    def _published(self, at: int) -> Parts:
        texts = [percent(cell.published) for cell in self._cells(at)]
        return [("paper", texts)] if any(texts) else []

    def _spreads(self, at: int) -> Parts:
        """Return what is known of the seeds of a column: their number in the heading where it is always the same."""
        cells = self._cells(at)
        numbers = {cell.n_seeds for cell in cells if cell.value is not None}
        if all(cell.sd is None for cell in cells):
            seeds = ["" if cell.n_seeds is None else str(cell.n_seeds) for cell in cells]
            return [("seeds", seeds)] if any(seeds) else []
        if len(numbers) == 1 and None not in numbers:
            return [(f"sd of {numbers.pop()}", [percent(cell.sd) for cell in cells])]
        return [("sd (seeds)", [cell.spread for cell in cells])]

    def _parts(self, at: int, ours: list[str], more: Parts, quote: Callable[[str], str]) -> Parts:
        """Return the parts of a column in the order they are shown, the levels below the first of them."""
        published = self._published(at)
        parts = [("ours" if published else "score", ours)] if any(ours) or not published else []
        parts += more + [(kind, list(map(quote, texts))) for kind, texts in published + self._differing(at)]
        foot = list(map(quote, self._foot(at).values()))
        return [
            (kind, texts + (foot if not number else [""] * len(foot))) for number, (kind, texts) in enumerate(parts)
        ]

    def _group(self, at: int) -> _Group:
        cells = self._cells(at)
        ours = [f"{'x ' if cell.is_struck else ''}{cell.shown}" for cell in cells]
        intervals = [cell.interval for cell in cells]
        more = ([("interval", intervals)] if any(intervals) else []) + self._spreads(at)
        return _Group(name=self.columns[at], parts=self._parts(at, ours, more, str), is_words=self._is_words(at))

    def _columns_html(self, at: int) -> Parts:
        ours = []
        for cell in self._cells(at):
            shown = f"<s>{_html(cell.shown)}</s>" if cell.is_struck else _html(cell.shown)
            ours.append(shown + "".join(f"<small>{_html(text)}</small>" for text in _small(cell, self._seeds)))
        return self._parts(at, ours, [], _html)

    def _columns_latex(self, at: int) -> Parts:
        ours = []
        for cell in self._cells(at):
            shown = rf"\sout{{{latex(cell.shown)}}}" if cell.is_struck else latex(cell.shown)
            small = " ".join(map(latex, _small(cell, self._seeds)))
            ours.append(rf"{shown} {{\scriptsize {small}}}" if small else shown)
        return self._parts(at, ours, [], latex)

    def _all_notes(self) -> list[str]:
        cells = [cell for cells in self.rows.values() for cell in cells]
        signs = []
        if any(cell.interval for cell in cells):
            signs.append("in square brackets: 95 % interval")
        if any(cell.sd is not None for cell in cells):
            over = f"{self._seeds} seeds" if self._seeds else "seeds"
            signs.append(f"sd: standard deviation over {over}, in points")
        if any(cell.published is not None for cell in cells):
            signs.append("paper: the published figure")
        if any(cell.line is not None for cell in cells):
            signs.append("significance line: the least score that guessing rarely reaches")
        if any(cell.is_struck for cell in cells):
            signs.append("struck through (x): the audit, or the order of the data, says that they do not support it")
        legend = [f"Per cent; {'; '.join(signs)}."] if signs else []
        return [*legend, *self.notes, *([f"Published figures: {self.source}"] if self.source else [])]


@dataclass(frozen=True, kw_only=True)
class _Group:
    """One column of a table as text: its name over parts (heading, a text per row)."""

    name: str
    parts: Parts
    is_words: bool

    def placed(self, text: str, width: int, is_centred: bool = False) -> str:
        """Return words at the left of their place, numbers at the right, headings over several parts in the middle."""
        return text.center(width) if is_centred else text.ljust(width) if self.is_words else text.rjust(width)

    @property
    def widths(self) -> list[int]:
        has_kinds = _needs_heads(self.parts)
        widths = [
            max([1, len(kind) * has_kinds, *(min(len(text), _WORD_CHARS) for text in texts)])
            for kind, texts in self.parts
        ]
        widths[-1] += max(0, min(len(self.name), _NAME_CHARS) - sum(widths) - len(_GAP) * (len(widths) - 1))
        return widths

    @property
    def width(self) -> int:
        return sum(self.widths) + len(_GAP) * (len(self.parts) - 1)


def percent(share: float | None) -> str:
    """Return a share in per cent: one decimal, or two digits where that would hide a small one; nothing for None."""
    if share is None:
        return ""
    if share == math.inf:
        return NOT_REACHABLE
    value = 100 * share
    is_plain = abs(value) >= 1 or abs(value - round(value, 1)) < 1e-9
    return f"{value + 0.0:.1f}" if is_plain else f"{value:.2g}"


def latex(text: object) -> str:
    """Return text in which LaTeX finds no command."""
    return "".join(_LATEX.get(letter, letter) for letter in str(text))


def _needs_heads(parts: Parts) -> bool:
    """Tell whether the parts of a column must be named: one score by itself needs the column's name alone."""
    return len(parts) > 1 or parts[0][0] == "paper"


def _small(cell: Cell, seeds: int | None) -> list[str]:
    """Return what stands in small print below or behind a score; `seeds` is their number where it is always one."""
    number = "" if cell.n_seeds in (None, seeds) else f"{cell.n_seeds} {'seed' if cell.n_seeds == 1 else 'seeds'}"
    spread = ", ".join(text for text in (f"sd {percent(cell.sd)}" if cell.sd is not None else "", number) if text)
    return [text for text in (cell.interval, spread) if text]


def _cell_html(column: str, kind: str, style: str, inner: str) -> str:
    """Return one place of a table; its name is shown where the columns have no heads, on narrow screens."""
    name = f"{column}, {kind}" if kind else column
    style = f"{style} paper" if kind == "paper" else style
    return f'<td class="{style}" data-name="{_html(name)}">{f"<span>{inner}</span>" if inner else ""}</td>'


def _html(text: object) -> str:
    return html.escape(str(text))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, TEXT_COLUMNS)


def _block(labels: Sequence[str], n_rows: int, width: int, groups: Sequence[_Group]) -> list[str]:
    """Return the lines of a table of groups beside each other; `labels` from `n_rows` on are levels."""
    heads = [textwrap.wrap(group.name, group.width) or [""] for group in groups]
    lines = []
    for at in range(max(map(len, heads))):
        names = [head[at] if at < len(head) else "" for head in heads]
        cells = [
            group.placed(name, group.width, len(group.parts) > 1) for name, group in zip(names, groups, strict=True)
        ]
        lines.append(_GAP.join([" " * width, *cells]).rstrip())
    if any(_needs_heads(group.parts) for group in groups):
        kinds = [
            kind.rjust(part_width) if _needs_heads(group.parts) else " " * part_width
            for group in groups
            for (kind, _), part_width in zip(group.parts, group.widths, strict=True)
        ]
        lines.append(_GAP.join([" " * width, *kinds]).rstrip())
    rule = "-" * (width + sum(len(_GAP) + group.width for group in groups))
    lines.append(rule)
    owners = [group for group in groups for _ in group.parts]
    for number, label in enumerate(labels):
        if number == n_rows:
            lines.append(rule)
        wrapped = [textwrap.wrap(label, width) or [""] if width else [""]]
        widths = [width]
        for group in groups:
            widths += group.widths
            wrapped += [
                textwrap.wrap(texts[number], part_width) or [""]
                for (_, texts), part_width in zip(group.parts, group.widths, strict=True)
            ]
        for at in range(max(map(len, wrapped))):
            first, *rest = [cell[at] if at < len(cell) else "" for cell in wrapped]
            placed = [owner.placed(text, w) for owner, text, w in zip(owners, rest, widths[1:], strict=True)]
            lines.append(_GAP.join([first.ljust(width), *placed]).rstrip())
    return lines
