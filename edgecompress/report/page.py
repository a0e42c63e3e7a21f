"""The page: everything a report says as one value, and the HTML made of it.

``index.html`` is one file without any reference to a network: plotly.js is in it, and its content security policy
forbids loading anything and running any script but its own two (named by hash), whatever the run folder's texts hold.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from edgecompress.report import facts
from edgecompress.report.checkpoints import CheckpointSection, section
from edgecompress.report.figures import Figure, colours, figures, symbol
from edgecompress.report.findings import correlations, grouped, run_caveats
from edgecompress.report.folder import RunFolder
from edgecompress.report.headline import details, lead
from edgecompress.report.join import metrics
from edgecompress.report.pairs import pairs
from edgecompress.report.proxy_table import proxy_table
from edgecompress.report.row import PRECISIONS, Row
from edgecompress.report.tables import Table, correlation_table, cost_table, device_table, failure_table, pair_table


@dataclass(frozen=True)
class DeviceSection:
    """One device: its figures, its table, and the conditions: (which measurements, (what, value) pairs)."""

    device: str
    figures: list[Figure]
    table: Table
    conditions: list[tuple[str, list[tuple[str, str]]]]


@dataclass(frozen=True)
class Page:
    """All that a report says."""

    title: str
    source: str
    tool: str
    random_weights: bool
    lead: str
    details: list[str]
    correlations: Table | None
    proxies: Table | None
    pairs: Table | None
    costs: Table
    checkpoints: CheckpointSection | None
    devices: list[DeviceSection]
    failures: Table | None
    warnings: list[tuple[str, bool, list[str]]]
    techniques: dict[str, str]
    precisions: dict[str, str]


def page(folder: RunFolder, rows: list[Row]) -> Page:
    """The page of a run."""
    known = metrics(folder)
    main = known[0] if known else None
    paired = pairs(folder, rows, known)
    related = correlations(rows)
    measured = [row for row in rows if row.timing]
    checkpoints = section(folder)
    used = sorted({row.precision for row in measured if row.precision}, key=lambda name: (name not in PRECISIONS, name))
    return Page(
        title=folder.title,
        source=f"{folder.run.source.name} (sha256 {folder.run.source.sha256[:12]})" if folder.run else "not told",
        tool=folder.run.tool if folder.run else next((row.measurement.tool for row in rows if row.measurement), ""),
        random_weights=folder.random_weights,
        lead=lead(rows, main, folder.random_weights),
        details=details(rows, main, folder.random_weights),
        correlations=correlation_table(related) if related else None,
        proxies=proxy_table(rows),
        pairs=pair_table(paired) if paired else None,
        costs=cost_table(rows, known),
        checkpoints=checkpoints,
        devices=[
            DeviceSection(
                device, figures(rows, device, known), device_table(rows, device, main), _conditions(rows, device)
            )
            for device in dict.fromkeys(sorted(row.device for row in rows if row.device))
        ],
        failures=failure_table(folder) if folder.failures else None,
        warnings=grouped(run_caveats(folder, rows)),
        techniques=colours(measured),
        precisions={name: symbol(name) for name in used},
    )


def _conditions(rows: list[Row], device: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """The conditions that all measurements of a device share, told once, and what differed, with its values."""
    told = [facts.conditions(row.measurement) for row in rows if row.device == device and row.measurement]
    merged = []
    for place, (name, _) in enumerate(told[0]):
        values = list(dict.fromkeys(one[place][1] for one in told))
        shown = values if len(values) <= 4 else [values[0], "…", values[-1]]
        merged.append((name, "; ".join(shown)))
    return [("", merged)]


def html(shown: Page) -> str:
    """The page as one HTML document."""
    sections = [shown.checkpoints, *shown.devices]  # in the order of their places on the page
    return render("page.html.jinja", shown, [figure for one in sections if one for figure in one.figures])


def render(template: str, shown: Any, figures: list[Figure], package: str = "edgecompress.report") -> str:
    """A template of ``package``, filled with a page and its figures (in the order of their places on it).

    ``shown`` says whether the model has ``random_weights``: every figure and table then does.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name, ".") for name in (package, "edgecompress.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    here = files("edgecompress.report")
    drawn: list[dict[str, Any]] = [asdict(figure) for figure in figures]
    scripts = [_plotly() if drawn else "", (here / "page.js").read_text(encoding="utf-8")]
    return environment.get_template(template).render(
        page=shown,
        figures=drawn,
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts if script],
        policy=_policy(scripts),
    )


def _plotly() -> str:
    return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def _policy(scripts: list[str]) -> str:
    """Nothing from anywhere; the scripts of the page by their hashes; styles, since plotly writes some."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts if script]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"
