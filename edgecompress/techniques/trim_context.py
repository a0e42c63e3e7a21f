"""Context trimming: Whisper's encoder need not see 30 seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgecompress.errors import TechniqueError

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.techniques import Context

POSITIONS_PER_SECOND = 50


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TrimContext:
    """Keep only the first ``seconds`` of the positions that Whisper's encoder sees; shorter audio is padded to that.

    Every pass costs the whole context however short the audio is, so this cuts time where audio is short. Audio
    longer than ``seconds`` is cut off: choose it above your longest clip.
    """

    kind: ClassVar[str] = "trim_context"
    needs_clips: ClassVar[bool] = False
    seconds: Annotated[float, Field(ge=0.1, le=30, description="audio that the encoder still sees, seconds")]

    def apply(self, model: Model, context: Context) -> None:
        if model.context_positions is None:
            takes = "audio of any length" if model.anatomy.takes == "audio" else model.anatomy.takes
            raise TechniqueError(
                f"{model.family} takes {takes}: it has no context to trim",
                hint="trim_context is for Whisper",
            )
        positions = round(self.seconds * POSITIONS_PER_SECOND)
        if positions >= model.context_positions:
            raise TechniqueError(
                f"the encoder sees {model.context_positions / POSITIONS_PER_SECOND:g} s; {self.seconds:g} s would not trim it",
                hint="ask for less",
            )
        model.keep_context(positions)
        context.notes.append(f"audio beyond {self.seconds:g} s is cut off")
