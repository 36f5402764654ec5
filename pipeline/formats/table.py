"""Tables of results as lines of text: in Markdown, which is readable in a terminal, and in LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Characters with a meaning in LaTeX. A row must not begin with [ or *, which would belong to the \\ before it.
LATEX: dict[str, str | int | None] = {character: f"\\{character}" for character in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "*": "{*}"}


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table; the first column is aligned to the left, all others to the right.

    Every row has as many cells as the header. The caller formats numbers.
    """
    cells = [[str(cell).replace("|", r"\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = []
    for first, *others in cells:
        aligned = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append(f"| {' | '.join([first.ljust(widths[0]), *aligned])} |")
    return lines


def latex_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a LaTeX table with the rules of booktabs; columns are aligned and formatted as in `table`."""
    head, *others = [" & ".join(str(cell).translate(str.maketrans(LATEX)) for cell in row) for row in (header, *rows)]
    return [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        *(r"\toprule", rf"{head} \\", r"\midrule"),
        *(rf"{row} \\" for row in others),
        *(r"\bottomrule", r"\end{tabular}"),
    ]
