"""The rules as data: which precision pays on which instruction set, each with who says so (``rules.toml``)."""

from __future__ import annotations

import tomllib
from collections.abc import Set
from functools import cache
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Word = Literal["pays", "does not pay", "undecided"]


class Rule(BaseModel):
    """What holds of a precision on cores of some kind; ``low`` and ``high`` are times as fast as fp32."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: str
    name: str
    arch: list[str] = Field(min_length=1)
    needs: list[str] = []
    lacks: list[str] = []
    verdict: Word
    low: float | None = None
    high: float | None = None
    reason: str = Field(min_length=1)
    sources: list[str] = Field(min_length=1)

    def fits(self, arch: str, present: Set[str], absent: Set[str]) -> bool | None:
        """Whether a core is of this kind; None where a flag that decides it is not known."""
        if arch not in self.arch or absent & set(self.needs) or present & set(self.lacks):
            return False
        return True if set(self.needs) <= present and set(self.lacks) <= absent else None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal["edgecompress.advice-rules/1"] = Field(alias="schema")
    rule: list[Rule]


@cache
def rules() -> tuple[Rule, ...]:
    """All rules, in the order in which they are asked."""
    text = files("edgecompress.advice").joinpath("rules.toml").read_text(encoding="utf-8")
    return tuple(_File.model_validate(tomllib.loads(text)).rule)


def precisions() -> list[str]:
    """The precisions that there are rules for."""
    return list(dict.fromkeys(rule.precision for rule in rules()))
