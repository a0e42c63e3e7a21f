"""What every record is: frozen values in a JSON file that names its schema and version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgecompress.disk import write_text
from edgecompress.errors import RecordError

RecordT = TypeVar("RecordT", bound="Record")
AGAIN = "remove it; the next run writes it again"


class Part(BaseModel):
    """A piece of a record: frozen, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Record(Part):
    """A JSON file with a schema name and version; the base of everything below."""

    schema_: str = Field(alias="schema")
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), populate_by_name=True)

    def json_text(self) -> str:
        """Readable JSON with sorted keys and a newline at the end."""
        values = self.model_dump(by_alias=True, mode="json")
        return json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the record whole or not at all."""
        write_text(path, self.json_text())

    @classmethod
    def read(cls: type[RecordT], path: Path) -> RecordT:
        """Read and check a record.

        Raises:
            RecordError: missing file, broken JSON, another schema, or a field that does not fit.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as cause:
            raise RecordError(f"{path}: no such file", hint="is this a folder that edgecompress wrote?") from cause
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as cause:
            raise RecordError(f"{path}: not readable as JSON ({cause})", hint=AGAIN) from cause
        wanted = cls.model_fields["schema_"].default
        found = data.get("schema") if isinstance(data, dict) else None
        if found != wanted:
            raise RecordError(
                f"{path}: schema {found!r}, wanted {wanted!r}", hint="written by another version of edgecompress?"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as cause:
            first = cause.errors()[0]
            where = ".".join(str(step) for step in first["loc"])
            raise RecordError(f"{path}: {where}: {first['msg']}", hint=AGAIN) from cause
