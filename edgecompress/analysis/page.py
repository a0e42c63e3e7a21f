"""The page and the table of an analysis; it looks like the report, and like it needs no network."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from edgecompress.analysis import figures, relations
from edgecompress.analysis.record import Analysis
from edgecompress.analysis.relations import Relation
from edgecompress.report.figures import Figure
from edgecompress.report.tables import NOTHING, Cell, Table
from edgecompress.stats import Estimate

COLUMNS = ("entropy", "globalness", "verticality", "diagonality", "cumulative_diagonality", "padding")


@dataclass(frozen=True)
class Page:
    """All that the page says."""

    title: str
    source: str
    tool: str
    random_weights: bool
    lead: str
    details: list[str]
    cautions: list[str]
    looked_at: str
    relations: Table
    heads: list[Figure]
    survival: list[Figure]
    layers: list[Figure]
    table: Table


def page(found: Analysis) -> Page:
    """The page of an analysis."""
    related = relations.relations(found)
    return Page(
        title=f"Heads and layers of {found.source.name}",
        source=f"{found.source.name} (sha256 {found.source.sha256[:12]})",
        tool=found.tool,
        random_weights=found.source.random_weights,
        lead=relations.answer(found, related),
        details=relations.details(found, related),
        cautions=relations.cautions(found),
        looked_at=f"{found.clips} clips, {found.seconds:.1f} s, {found.frames:,} frames of audio",
        relations=_relation_table(related),
        heads=figures.of_heads(found),
        survival=figures.of_survival(found),
        layers=figures.of_layers(found),
        table=_head_table(found),
    )


def html(found: Analysis) -> str:
    """The page as one HTML document."""
    from edgecompress.report.page import render

    shown = page(found)
    drawn = [*shown.heads, *shown.survival, *shown.layers]  # in the order of their places on the page
    return render("analysis.html.jinja", shown, drawn, "edgecompress.analysis")


def csv_table(found: Analysis) -> str:
    """``heads.csv``: a row a head."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "head", "category", *COLUMNS, *(f"round_{order}" for order in found.rounds)])
    for head, kind in zip(found.heads, relations.categories(found.heads), strict=True):
        values = [f"{getattr(head, name):.6g}" for name in COLUMNS]
        writer.writerow([head.layer, head.head, kind, *values, *(head.survival[order] for order in found.rounds)])
    return text.getvalue()


def _relation_table(related: Sequence[Relation]) -> Table:
    """A row an order; for each measure the correlation over all heads and that within layers."""
    measures = list(relations.CATEGORIES.values())
    columns = [("pruning order", "")]
    for name in measures:
        columns += [(name, "over all heads"), (f"{name}, within layers", "over ranks within layers")]
    rows = []
    for order in dict.fromkeys(one.order for one in related):
        mine = {one.measure: one for one in related if one.order == order}
        cells = [cell for name in measures for cell in (_cell(mine[name].pooled), _cell(mine[name].within))]
        rows.append([Cell(relations.order_name(order)), *cells])
    return Table(columns, rows, 1)


def _cell(estimate: Estimate | None) -> Cell:
    from edgecompress.report import formats

    if estimate is None:
        return NOTHING
    sure = estimate.low is not None and estimate.high is not None and (estimate.low > 0 or estimate.high < 0)
    tone = ("good" if estimate.value > 0 else "bad") if sure else "muted"
    small = f"{formats.interval(estimate, 2)} n = {estimate.n}"
    return Cell(formats.fixed(estimate.value, 2), small.strip(), estimate.value, tone)


def _head_table(found: Analysis) -> Table:
    from edgecompress.report import formats

    orders = [(relations.order_name(order), "round of removal") for order in found.rounds]
    names = [(name.replace("_", " "), "") for name in COLUMNS]
    rows = []
    for head, kind in zip(found.heads, relations.categories(found.heads), strict=True):
        values = [float(getattr(head, name)) for name in COLUMNS]
        label = Cell(f"layer {head.layer}, head {head.head}", sort=1000.0 * head.layer + head.head)
        rounds = [Cell(str(head.survival[order]), sort=head.survival[order]) for order in found.rounds]
        rows.append([label, Cell(kind), *(Cell(formats.fixed(one, 3), sort=one) for one in values), *rounds])
    return Table([("head", "original numbers"), ("category", ""), *names, *orders], rows, 2)
