"""Layer dropping: whole encoder layers are left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgecompress.errors import TechniqueError

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.techniques import Context


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DropLayers:
    """Leave out these encoder layers, by their original numbers (0 is the first).

    WavLM's position bias, which belongs to layer 0, moves to the first layer that is left.
    """

    kind: ClassVar[str] = "drop_layers"
    needs_clips: ClassVar[bool] = False
    layers: Annotated[tuple[int, ...], Field(min_length=1, description="original numbers of the layers to drop")]

    def apply(self, model: Model, context: Context) -> None:
        there = [layer.number for layer in model.layers]
        strange = sorted(set(self.layers) - set(there))
        if strange:
            raise TechniqueError(f"there is no layer {strange[0]}", hint=f"layers left: {', '.join(map(str, there))}")
        left = [number for number in there if number not in self.layers]
        if not left:
            raise TechniqueError("dropping every layer leaves no encoder", hint="keep at least one")
        model.keep_layers(left)
