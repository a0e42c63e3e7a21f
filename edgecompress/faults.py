"""All faults of a file at once: values are checked table by table, what is wrong is noted, and raised as one error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError

from edgecompress import plugins
from edgecompress.errors import PluginNotFound, RecipeError

T = TypeVar("T")
FORBIDDEN = ("extra_forbidden", "unexpected_keyword_argument")  # what pydantic says of a key that is no field


class Faults:
    """What is wrong with one file, in the order in which it was found."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._found: list[tuple[str, str]] = []

    def add(self, where: str, what: str, hint: str = "") -> None:
        """Note a fault: ``where`` in the file ("" for its top level), ``what`` is wrong, and what to do."""
        self._found.append((": ".join(part for part in (self.file, where, what) if part), hint))

    def tables(self, data: Mapping[str, Any], key: str, where: str = "") -> list[dict[str, Any]]:
        """The ``[[key]]`` tables of ``data``; a value of another kind is a fault."""
        value = data.get(key, [])
        if isinstance(value, list) and all(isinstance(table, dict) for table in value):
            return value
        self.add(where, f"{key!r} is not a list of tables", f"write [[{key}]] above each")
        return []

    def raise_if_any(self) -> None:
        """Raise what was noted as one RecipeError: a fault a line, and all hints in one."""
        if not self._found:
            return
        hints = list(dict.fromkeys(hint for _, hint in self._found if hint))
        raise RecipeError("\n".join(fault for fault, _ in self._found), hint="; ".join(hints))


def build(faults: Faults, kind: type[T], table: Any, where: str, *, also: Collection[str] = ()) -> T | None:
    """A value of ``kind`` (pydantic model or dataclass) from a TOML table, or None with its faults noted.

    Types are strict (``"0.5"`` is no number). ``also`` are keys of the table that are read elsewhere: spellings to
    offer for a wrong key.
    """
    if not isinstance(table, dict):
        faults.add(where, f"not a table but {table!r}", "write its keys below a [table] heading")
        return None
    fields = field_names(kind)
    unknown = [key for key in table if key not in fields]
    for key in unknown:
        faults.add(where, f"no field {key!r}", plugins.nearest(key, sorted({*fields, *also})))
    known = {key: value for key, value in table.items() if key in fields}
    try:
        value = TypeAdapter(kind).validate_json(json.dumps(known, default=str), strict=True)
    except ValidationError as cause:
        errors = cause.errors(include_url=False, include_context=False)
        misspelt = bool(unknown) or any(error["type"] in FORBIDDEN for error in errors)
        for error in errors:
            _note(faults, where, error, _fields_at(kind, error["loc"]), misspelt)
        return None
    return None if unknown else value


def step_of(
    faults: Faults, group: str, table: dict[str, Any], where: str, *, key: str, also: Collection[str] = ()
) -> Any:
    """The technique or task (``group`` of plug-ins) that a table names by ``key``, or None with its faults noted.

    ``also`` are keys that are read elsewhere, as in ``build``.
    """
    name = table.get(key)
    if not isinstance(name, str):
        faults.add(where, f"no {key!r}", f"{key} is one of {', '.join(plugins.names(group))}")
        return None
    try:
        kind = plugins.find(group, name)
    except PluginNotFound as unknown:
        faults.add(where, unknown.message, unknown.hint)
        return None
    given = {k: v for k, v in table.items() if k != key and k not in also}
    return build(faults, kind, given, f"{where} ({name})".strip(), also=also)


def field_names(kind: Any) -> list[str]:
    """The keys a table of this kind may have."""
    if issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return [field.name for field in dataclasses.fields(kind) if field.init]


def _fields_at(kind: Any, place: tuple[int | str, ...]) -> list[str]:
    """The fields of the table in a table that an error's place lies in; none where its kind is one of several."""
    for step in place[:-1]:
        try:
            told = get_type_hints(kind).get(str(step))
        except (NameError, TypeError):
            return []
        kinds = [one for one in (told, *get_args(told)) if isinstance(one, type) and _is_table(one)]
        if len(kinds) != 1:
            return []
        kind = kinds[0]
    return field_names(kind)


def _is_table(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel)


def _note(faults: Faults, where: str, error: Any, fields: list[str], misspelt: bool) -> None:
    key = ".".join(str(step) for step in error["loc"])
    if error["type"] in ("missing", "missing_argument"):
        # With a misspelt key beside it the missing one is most likely the same fault, told already.
        if not misspelt:
            faults.add(where, f"no {key!r}", f"fields are {', '.join(fields)}" if fields else f"add {key!r}")
        return
    if error["type"] == "value_error" and not key and misspelt:
        return  # "give one of": without the misspelt key the table as a whole is not what was meant
    if error["type"] in FORBIDDEN:
        last = str(error["loc"][-1])
        faults.add(where, f"no field {key!r}", plugins.nearest(last, fields) if fields else f"leave {key!r} out")
        return
    if error["type"] == "union_tag_not_found":
        faults.add(where, f"no '{key}.kind'", f"say which kind of {key.rpartition('.')[2]} it is: kind = ...")
        return
    given = f" (it is {error['input']!r})" if key and not isinstance(error["input"], dict) else ""
    if error["type"] == "string_pattern_mismatch":
        faults.add(
            where,
            f"{key}: not a name{given}",
            "a name has lower-case letters, digits, '.', '_' and '-', and begins with a letter or digit",
        )
        return
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    faults.add(
        where, f"{key}: {message}{given}" if key else message, f"change {key!r}" if key else "change one of the two"
    )
