"""Edits: plain data, with original indices, and the only way a model's structure changes.

``config.json`` says what the network was, a list of edits what was done to it, ``model.safetensors`` the numbers.
A second edit of the same place replaces the first one, so the list never says the same thing twice. An edit knows
how to carry itself out on any model, dense or not yet filled with weights: rebuilding is the same code as compressing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

if TYPE_CHECKING:
    from edgecompress.model.network import Model

Matrix = Literal["q_proj", "k_proj", "v_proj", "out_proj", "up", "down"]


def _ascending(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if list(numbers) != sorted(set(numbers)):
        raise ValueError("numbers must ascend, each once")
    return numbers


Numbers = Annotated[tuple[int, ...], AfterValidator(_ascending)]


class _Edit(BaseModel, ABC):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    @abstractmethod
    def place(self) -> tuple[str, ...]:
        """What this edit is about: two edits of one place are one edit."""

    @abstractmethod
    def carry_out(self, model: Model) -> None:
        """Change the model's modules (not its list of edits)."""


class KeepLayers(_Edit):
    """Only these encoder layers are left, by original number, in order."""

    kind: Literal["keep_layers"] = "keep_layers"
    layers: Numbers

    @property
    def place(self) -> tuple[str, ...]:
        return ("layers",)

    def carry_out(self, model: Model) -> None:
        model.select_layers(self.layers)


class KeepHeads(_Edit):
    """Only these heads of a layer are left, by original number."""

    kind: Literal["keep_heads"] = "keep_heads"
    layer: int
    heads: Numbers

    @property
    def place(self) -> tuple[str, ...]:
        return ("heads", str(self.layer))

    def carry_out(self, model: Model) -> None:
        model.layer(self.layer).keep_heads(self.heads)


class KeepUnits(_Edit):
    """Only these units of a layer's feed-forward network are left, by original number."""

    kind: Literal["keep_units"] = "keep_units"
    layer: int
    units: Numbers

    @property
    def place(self) -> tuple[str, ...]:
        return ("units", str(self.layer))

    def carry_out(self, model: Model) -> None:
        model.layer(self.layer).select_units(self.units)


class Factor(_Edit):
    """A matrix of a layer is the product of two, of this rank."""

    kind: Literal["factor"] = "factor"
    layer: int
    matrix: Matrix
    rank: int = Field(ge=1)

    @property
    def place(self) -> tuple[str, ...]:
        return ("factor", str(self.layer), self.matrix)

    def carry_out(self, model: Model) -> None:
        model.layer(self.layer).factor(self.matrix, self.rank)


class KeepContext(_Edit):
    """Whisper's encoder sees only the first ``positions`` frames (20 ms each) of its 1,500."""

    kind: Literal["keep_context"] = "keep_context"
    positions: int = Field(ge=1)

    @property
    def place(self) -> tuple[str, ...]:
        return ("context",)

    def carry_out(self, model: Model) -> None:
        model.select_context(self.positions)


class KeepChannels(_Edit):
    """Only these output channels of a front-end convolution (from 0) are left, by original number."""

    kind: Literal["keep_channels"] = "keep_channels"
    conv: int
    channels: Numbers

    @property
    def place(self) -> tuple[str, ...]:
        return ("channels", str(self.conv))

    def carry_out(self, model: Model) -> None:
        model.front_end.conv(self.conv).keep_channels(self.channels)


Edit = Annotated[KeepLayers | KeepHeads | KeepUnits | Factor | KeepContext | KeepChannels, Field(discriminator="kind")]
EDITS: TypeAdapter[list[Edit]] = TypeAdapter(list[Edit])


def with_edit(edits: tuple[Edit, ...], new: Edit) -> tuple[Edit, ...]:
    """The list with ``new`` at its end, without an earlier edit of the same place."""
    return (*(edit for edit in edits if edit.place != new.place), new)
