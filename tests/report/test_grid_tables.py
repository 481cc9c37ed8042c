"""eegvision.report.grid_tables: whole through JSON, at most 120 columns, nothing from outside becomes markup."""

import csv
import html
import io
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eegvision.report.grid_tables import Cell, Table, latex, percent
from eegvision.vocab import InputError

SHARES = st.none() | st.floats(0, 1)
WORDS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=60)
CELLS = st.builds(
    Cell, value=SHARES, low=SHARES, high=SHARES, n_seeds=st.none() | st.integers(1, 99), sd=SHARES, published=SHARES,
    chance=SHARES, line=SHARES | st.just(math.inf), is_struck=st.booleans(), text=WORDS,
)  # fmt: skip


@st.composite
def tables(draw):
    n = draw(st.integers(1, 5))
    rows = draw(st.dictionaries(WORDS, st.lists(CELLS, min_size=n, max_size=n).map(tuple), max_size=4))
    columns = tuple(draw(st.lists(WORDS, min_size=n, max_size=n)))
    return Table(title=draw(WORDS), caption=draw(WORDS), columns=columns, rows=rows, notes=(draw(WORDS),))


def cell(value, published=None, **more):
    return Cell(value=value, low=value - 0.02, high=value + 0.02, published=published, chance=0.025, line=0.05, **more)


TABLE = Table(
    title="Table I",
    caption="On test pictures.",
    columns=("EEG", "image"),
    rows={
        "AlexNet + GRU": (cell(0.712, 0.772, n_seeds=3, sd=0.008), cell(0.7, 0.699, is_struck=True)),
        "ResNet + GRU": (cell(0.9, 0.923, n_seeds=3, sd=0.011), Cell(value=None, published=0.915, text="failed")),
    },
    notes=("A note.",),
    source="Palazzo et al.",
)


@settings(max_examples=60, deadline=None)
@given(tables())
def test_a_table_is_whole_after_json(table):
    assert Table.from_dict(json.loads(json.dumps(table.to_dict(), allow_nan=False))) == table


@settings(max_examples=60, deadline=None)
@given(tables())
def test_text_is_never_wider_than_120_columns(table):
    assert max(map(len, table.to_text().splitlines())) <= 120


@settings(max_examples=60, deadline=None)
@given(tables())
def test_what_comes_from_outside_is_no_markup_in_html(table):
    text = table.to_html()
    kinds = set(re.findall(r"<(/?[a-z0-9]+)", text))
    assert {kind.removeprefix("/") for kind in kinds} <= {
        "figure", "h3", "p", "div", "table", "thead", "tbody", "tr", "th", "td", "span", "small", "s", "figcaption",
        "ul", "li",
    }  # fmt: skip
    assert f"<h3>{html.escape(table.title)}</h3>" in text


@settings(max_examples=100, deadline=None)
@given(WORDS)
def test_latex_has_no_bare_special_character(words):
    plain = re.sub(r"\\text\w+\{\}|\\[&%$#_{}]|\$\\?[a-z-]+\$|\{\[\}|\{\]\}", "", latex(words))
    assert not set(plain) & set("&%$#_{}~^\\<>|[]")


@settings(max_examples=60, deadline=None)
@given(tables())
def test_csv_has_a_line_per_cell_with_the_shares_as_they_are(table):
    rows = list(csv.DictReader(io.StringIO(table.to_csv(), newline="")))
    cells = [own for row in table.rows.values() for own in row]
    assert [row["value"] for row in rows] == ["" if own.value is None else str(own.value) for own in cells]


def test_a_table_by_hand():
    lines = TABLE.to_text().splitlines()
    assert lines[:11] == [
        "Table I",
        "On test pictures.",
        "",
        "                                  EEG                             image",
        "                   ours      interval  sd of 3  paper    ours      interval  paper",
        "----------------------------------------------------------------------------------",
        "AlexNet + GRU      71.2  [69.2, 73.2]      0.8   77.2  x 70.0  [68.0, 72.0]   69.9",
        "ResNet + GRU       90.0  [88.0, 92.0]      1.1   92.3  failed                 91.5",
        "----------------------------------------------------------------------------------",
        "chance              2.5                                   2.5",
        "significance line   5.0                                   5.0",
    ]
    assert "A note." in lines
    assert "Published figures: Palazzo et al." in lines


def test_a_struck_score_is_marked_in_every_face():
    assert "x 70.0" in TABLE.to_text()
    assert "<s>70.0</s>" in TABLE.to_html()
    assert r"\sout{70.0}" in TABLE.to_latex()
    assert "struck through" in TABLE.to_text()
    assert TABLE.to_csv().count(",True,") == 1


def test_chance_that_differs_from_row_to_row_is_a_column():
    rows = {name: (Cell(value=0.5, chance=chance),) for name, chance in (("a", 0.1), ("b", 0.2))}
    lines = Table(title="t", columns=("score",), rows=rows).to_text().splitlines()
    assert lines[2].split() == ["score"]
    assert [line.split() for line in lines[5:7]] == [["a", "50.0", "10.0"], ["b", "50.0", "20.0"]]


def test_published_figures_alone_have_no_column_of_ours():
    table = Table(title="t", columns=("EEG",), rows={"a": (Cell(value=None, published=0.9, chance=0.025),)})
    assert "ours" not in table.to_text() + table.to_html() + table.to_latex()
    assert table.to_text().splitlines()[2:5] == ["          EEG", "        paper", "-------------"]
    assert "chance    2.5" in table.to_text()


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "0.0"), (0.0005, "0.05"), (0.005, "0.5"), (1 / 30, "3.3"), (1.0, "100.0"), (-0.012, "-1.2"),
     (1 / 1654, "0.06"), (math.inf, "none"), (None, "")],
)  # fmt: skip
def test_shares_are_shown_in_per_cent_and_small_ones_are_not_lost(share, shown):
    assert percent(share) == shown


@pytest.mark.parametrize("wrong", [{"value": 90.1}, {"value": float("nan")}, {"value": 0.1, "published": 12}])
def test_per_cent_in_place_of_shares_are_refused(wrong):
    with pytest.raises(InputError, match="hold shares"):
        Cell(**wrong)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows": {"a": [{"value": 0.1}]}}, "2 columns, and 1 cells for 'a'"),
        ({"rows": {"a": 3}}, "the row 'a'"),
        ({"rows": {"a": [{"value": "0.1"}, {}]}}, "the value of a cell is '0.1'"),
        ({"rows": {"a": [{"worth": 0.1}, {}]}}, "'worth'"),
        ({"title": None}, "the title of a table"),
        ({"columns": []}, "has no columns"),
    ],
)
def test_a_damaged_table_is_refused_by_name(change, named):
    with pytest.raises(InputError, match=named):
        Table.from_dict(TABLE.to_dict() | change)
