"""``edgecompress list`` and ``edgecompress doctor``: what is here, and whether it works."""

from __future__ import annotations

import inspect
from enum import StrEnum
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Kind(StrEnum):
    """What can be listed."""

    techniques = "techniques"
    exporters = "exporters"
    runtimes = "runtimes"
    devices = "devices"
    families = "families"
    tasks = "tasks"


def list_plugins(kind: Annotated[Kind, typer.Argument(help="What to list.")], json: Json = False) -> None:
    """List what can be named in a recipe, a job or on the command line, with what each says of itself."""
    from edgecompress.cli import say

    if kind is Kind.devices:
        _devices(json)
        return
    rows = _families() if kind is Kind.families else _plugins(kind.value)
    if json:
        say.as_json(rows)
        return
    for row in rows:
        print(row["name"])
        for line in row["help"].splitlines():
            print(f"    {line}".rstrip())
        for field in row.get("fields", []):
            print(
                f"      {field['name']}: {field['type']}{'' if field['default'] is None else ' = ' + field['default']}"
            )


def _plugins(kind: str) -> list[dict[str, Any]]:
    from edgecompress import plugins

    rows = []
    for name in plugins.names(kind):
        found = plugins.find(kind, name)
        text = inspect.getdoc(found) or ""
        row: dict[str, Any] = {"name": name, "help": text if kind in ("techniques", "tasks") else _first_line(text)}
        if kind in ("techniques", "tasks"):
            row["fields"] = _fields(found)
        rows.append(row)
    return rows


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0]


def _fields(kind: type) -> list[dict[str, Any]]:
    """The keys that a recipe or job may give, as they are spelt in the source."""
    import dataclasses

    rows = []
    for field in dataclasses.fields(kind):
        default: Any = field.default
        if hasattr(default, "default"):  # pydantic's Field(...) as a default
            default = default.default
        missing = default is dataclasses.MISSING or type(default).__name__ == "PydanticUndefinedType"
        rows.append({"name": field.name, "type": _spelt(field.type), "default": None if missing else repr(default)})
    return rows


def _spelt(annotation: object) -> str:
    """An annotation without what is for pydantic: ``Annotated[float, Field(...)]`` is ``float``."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    while (start := text.find("Annotated[")) >= 0:
        at = first = start + len("Annotated[")
        comma, depth = 0, 1
        while at < len(text) and depth:
            depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(text[at], 0)
            comma = comma or (at if text[at] == "," and depth == 1 else 0)
            at += 1
        text = text[:start] + text[first : comma or at - 1] + text[at:]
    return text


def _families() -> list[dict[str, Any]]:
    from edgecompress.model import FAMILIES

    return [
        {"name": name, "help": ", ".join(anatomy.prefix + head for head in anatomy.architectures)}
        for name, anatomy in sorted(FAMILIES.items())
    ]


def _devices(json: bool) -> None:
    from edgecompress import devices
    from edgecompress.cli import say
    from edgecompress.cli.devices import as_data

    boards, own = devices.profiles(), devices.survey()
    if json:
        say.as_json(
            {
                "devices": {name: as_data(one) for name, one in own.items()},
                "profiles": {name: board.title for name, board in boards.items()},
            }
        )
        return
    print("your devices (edgecompress device add makes one known):")
    for name, one in own.items():
        told = f"broken: {one}" if isinstance(one, Exception) else f"{one.transport}  {one.host}"
        print(say.printable(f"  {name}  {told}").rstrip())
    print("board profiles:")
    for name, board in boards.items():
        print(f"  {name}  {board.title}")


def doctor(json: Json = False) -> None:
    """Check this installation: Python, packages, extras, ssh, devices, data folders.

    Exit status 0: all that is needed works (what is optional may be absent); 1: something that is needed is broken.
    """
    from edgecompress import doctor as room
    from edgecompress.cli import say

    findings = room.examine()
    if json:
        say.as_json([finding.as_dict() for finding in findings])
    else:
        say.table(("state", "what", "found"), [(one.state, one.what, one.found) for one in findings])
        for one in findings:
            if one.hint:
                say.note(f"hint:  {one.what}: {one.hint}")
    if any(one.state == "broken" for one in findings):
        raise typer.Exit(1)
