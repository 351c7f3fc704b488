"""Tables that fit the terminal: numbers are never cut, names keep their width, long titles give way."""

import dataclasses
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

NAME = 24  # a name up to so many characters stands on one line, at 60 columns and more
METRICS = {"trace": "trace ↑", "latent_mse": "latent MSE ↓", "foscttm": "FOSCTTM ↓"}


@dataclasses.dataclass(frozen=True)
class Column:
    """A title and what stands below it."""

    title: str
    cells: list[str]

    @property
    def width(self) -> int:
        """Of the widest cell."""
        return max(map(cell_len, self.cells), default=1)

    @property
    def words(self) -> int:
        """Of the longest word of the cells."""
        return max((cell_len(word) for cell in self.cells for word in cell.split()), default=1)


def metrics_table(rows: dict[str, dict[str, float | None]], width: int) -> Table:
    """A row for each way of matching, a column for each figure that any row has."""
    known = {name: title for name, title in METRICS.items() if any(row.get(name) is not None for row in rows.values())}
    numbers = [Column(title, [number(row.get(name), 4) for row in rows.values()]) for name, title in known.items()]
    return table(Column("match", list(rows)), numbers, None, width)


def treatments_table(rows: list[dict[str, Any]], names: tuple[str, str], width: int) -> Table:
    """A row for each treatment: sizes, what became of it, and trace against chance where pairs are known."""
    numbers = [
        Column(names[0], [str(row["size_a"]) for row in rows]),
        Column(names[1], [str(row["size_b"]) for row in rows]),
        Column("steps", [number(row["num_iters"], 0) for row in rows]),
        Column("marginal error", [scientific(row["marginal_error"]) for row in rows]),
    ]
    if any(row["trace"] is not None for row in rows):
        numbers += [Column(title, [number(row[title], 3) for row in rows]) for title in ("trace", "chance")]
    status = Column("status", [row["status"] for row in rows])
    return table(Column("treatment", [row["name"] for row in rows]), numbers, status, width)


def table(first: Column, numbers: list[Column], status: Column | None, width: int) -> Table:
    """Lays out names, numbers and perhaps a status each, as wide as there is room for.

    Where there is not enough, the titles of numbers are wrapped between words and names after `NAME` characters, then
    the status goes below the name, then titles are wrapped anywhere. What needs more than that is wider than `width`.
    """
    whole, words = ([f(column.title) for column in numbers] for f in (cell_len, _longest_word))
    anywhere = [1] * len(numbers)
    for aside, titles, most, gap in (
        (True, whole, first.width, 2),
        (True, words, NAME, 2),
        (False, words, NAME, 2),
        (False, anywhere, NAME, 1),
    ):
        widths = [max(column.width, title) for column, title in zip(numbers, titles, strict=True)]
        left = max(min(first.width, most), cell_len(first.title))
        if status is not None and aside:
            widths.append(max(status.width, cell_len(status.title)))
        elif status is not None:
            left = max(left, status.words)
        room = width - sum(widths) - gap * len(widths)
        if room >= left:
            left = min(max(first.width, left), room)
            break
    total = left + sum(widths) + gap * len(widths)
    result = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0), width=total)
    result.add_column(Text(first.title), width=left, overflow="fold", vertical="bottom")
    for column, wide in zip(numbers, widths, strict=False):
        result.add_column(Text(column.title), width=wide, justify="right", overflow="fold", vertical="bottom")
    if status is not None and aside:
        result.add_column(Text(status.title), width=widths[-1], vertical="bottom")
    for place, name in enumerate(first.cells):
        cells = [Text(name), *(Text(column.cells[place]) for column in numbers)]
        if status is not None:
            state = Text(status.cells[place], style="" if status.cells[place] == "matched" else "yellow")
            cells = [*cells, state] if aside else [Text("\n").join([cells[0], state]), *cells[1:]]
        result.add_row(*cells)
    return result


def number(value: float | None, digits: int) -> str:
    """The number with so many decimals, a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def scientific(value: float | None) -> str:
    """The order of magnitude, a dash for None."""
    return "–" if value is None else f"{value:.0e}"


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=1)
