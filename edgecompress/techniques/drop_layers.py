"""Layer dropping: whole encoder layers are left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgecompress.errors import TechniqueError
from edgecompress.techniques import count_of
from edgecompress.techniques.rounds import InRounds, aim, carry_out, check_ascending

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.techniques import Context

Scores = Callable[["Model"], dict[int, float]]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DropLayers(InRounds):
    """Leave out encoder layers: those named, or those that do least on calibration audio.

    ``by = "position"``: ``layers``, by their original numbers (0 is the first). ``by = "similarity"``: as many as asked
    for (``count``, ``ratio``, ``target`` or a list of ``rounds``), the layer whose output is most like its input first
    (cosine frame by frame: Dorszewski et al., 2024; the block influence of Men et al., 2024). ``by = "effect"``: first
    the layer without which the encoder's output stays nearest to the uncompressed model's. Both are measured anew after
    each layer that goes. WavLM's position bias, which belongs to layer 0, moves to the first layer that is left.
    """

    kind: ClassVar[str] = "drop_layers"
    layers: Annotated[
        tuple[int, ...] | None, Field(min_length=1, description="original numbers of the layers to drop")
    ] = None
    by: Literal["position", "similarity", "effect"] = "position"
    count: Annotated[int | None, Field(ge=1, description="how many layers are dropped")] = None

    @model_validator(mode="after")
    def _one_amount(self) -> DropLayers:
        amounts = [self.ratio, self.target, self.count, self.rounds if isinstance(self.rounds, tuple) else None]
        asked = sum(amount is not None for amount in amounts)
        if self.by == "position":
            if self.layers is None or asked:
                raise ValueError('by = "position" takes layers, and no ratio, target, count or list of rounds')
        elif self.layers is not None or asked != 1:
            raise ValueError(f'by = "{self.by}" takes one of ratio, target, count or a list of rounds, and no layers')
        check_ascending(self)
        return self

    @property
    def needs_clips(self) -> bool:
        """Whether calibration audio is looked at."""
        return self.by != "position"

    def apply(self, model: Model, context: Context) -> None:
        there = [layer.number for layer in model.layers]
        if self.layers is not None:
            _refuse_strange(self.layers, there)
            carry_out(self, model, context, lambda share: _drop_named(model, self.layers or (), share))
            return
        scores = _scores(self.by, model, context)
        aimed = aim(self, model, context)

        def enough(share: float) -> Callable[[], bool]:
            if aimed is not None:
                goal = aimed[0].on_the_way(aimed[1], share)
                return lambda: goal.measure(model) <= goal.value
            gone = count_of(share, len(there) if self.count is None else self.count)
            if gone >= len(there):
                raise TechniqueError("dropping every layer leaves no encoder", hint="keep at least one")
            return lambda: len(model.layers) <= len(there) - gone

        carry_out(self, model, context, lambda share: _drop_measured(model, context, scores, enough(share)))
        if aimed is not None:
            context.notes.append(aimed[0].told(aimed[0].measure(model)))


def _refuse_strange(layers: tuple[int, ...], there: list[int]) -> None:
    strange = sorted(set(layers) - set(there))
    if strange:
        raise TechniqueError(f"there is no layer {strange[0]}", hint=f"layers left: {', '.join(map(str, there))}")
    if not set(there) - set(layers):
        raise TechniqueError("dropping every layer leaves no encoder", hint="keep at least one")


def _drop_named(model: Model, layers: tuple[int, ...], share: float) -> dict[str, Any]:
    """Drop the first ``share`` of the layers named; those of earlier rounds are gone already."""
    due = set(layers[: count_of(share, len(layers))])
    there = [layer.number for layer in model.layers]
    model.keep_layers([number for number in there if number not in due])
    return {"layers": [number for number in there if number in due]}


def _drop_measured(model: Model, context: Context, scores: Scores, enough: Callable[[], bool]) -> dict[str, Any]:
    """Drop the layer of lowest score, and again, until it is enough."""
    gone = {}
    while not enough():
        left = [layer.number for layer in model.layers]
        if len(left) == 1:
            raise TechniqueError("the target cannot be reached: one layer is left", hint="ask for more, or prune first")
        measured = scores(model)
        least = min(left, key=lambda number: measured[number])
        gone[str(least)] = round(measured[least], 6)
        context.say(f"layer {least} goes: {measured[least]:.4f}")
        model.keep_layers([number for number in left if number != least])
    if gone:
        context.notes.append("dropped " + ", ".join(f"layer {number} ({score:.4f})" for number, score in gone.items()))
    return {"layers": gone}


def _scores(by: str, model: Model, context: Context) -> Scores:
    """How much each layer does: one minus the cosine of input and output, or the relative error without it."""
    from edgecompress.techniques.skipping import effects, final_states, influences

    clips = context.need_clips(DropLayers.kind)
    if by == "similarity":
        return lambda now: influences(now, clips)
    source = context.source
    comparable = source is not None and source.hidden_size == model.hidden_size
    wanted = final_states(source if source is not None and comparable else model, clips)
    return lambda now: effects(now, clips, wanted)
