"""``report.md``: the page's words and tables for those who read text."""

from __future__ import annotations

from edgecompress.report.formats import clean, markdown
from edgecompress.report.page import Page
from edgecompress.report.tables import Cell, Table


def document(page: Page) -> str:
    """The whole document."""
    parts = [f"# {markdown(page.title)}", f"Source model: {markdown(page.source)}"]
    if page.random_weights:
        parts.append(
            "**Random weights:** this model was never trained. Times are real; scores say nothing about accuracy."
        )
    parts.append(f"**Is smaller really faster, and what does it cost in accuracy?** {markdown(page.lead)}")
    if page.details:
        parts.append("\n".join(f"- {markdown(text)}" for text in page.details))
    mark = " (random weights)" if page.random_weights else ""
    if page.correlations:
        parts += [f"## Does latency follow size?{mark}", table(page.correlations)]
    if page.proxies:
        parts += [f"## Which size tells the order?{mark}", table(page.proxies)]
    if page.checkpoints:
        parts += [f"## Scores of checkpoints{mark}", table(page.checkpoints.table)]
    if page.pairs:
        parts += [f"## Plain against activation-aware{mark}", table(page.pairs)]
    parts += [f"## What each model costs and scores{mark}", table(page.costs)]
    for section in page.devices:
        parts += [f"## On {markdown(section.device)}{mark}", table(section.table)]
        for column, values in section.conditions:
            told = "; ".join(f"{markdown(name)}: {markdown(value)}" for name, value in values)
            parts.append(f"Conditions{f' ({markdown(column)})' if column else ''}: {told}.")
    if page.failures:
        parts += ["## Failures", table(page.failures)]
    if page.warnings:
        parts.append("## Warnings")
        for title, invalid, lines in page.warnings:
            void = " (kept out of every comparison)" if invalid else ""
            parts.append("\n".join([f"**{markdown(title)}**{void}", "", *[f"- {markdown(line)}" for line in lines]]))
    return "\n\n".join(parts) + "\n"


def table(shown: Table) -> str:
    """A table with the small print of each cell beside its number."""
    names = [markdown(name) for name, _ in shown.columns]
    rule = ["---" if place < shown.text_columns else "---:" for place in range(len(names))]
    lines = [names, rule, *[[_cell(cell) for cell in row] for row in shown.rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell) -> str:
    return markdown(f"{cell.text} {cell.small}".strip()) if clean(cell.text) else " "
