"""Distillation: a student with fewer or thinner layers learns what the uncompressed model says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgecompress.errors import TechniqueError
from edgecompress.training.settings import Training

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.techniques import Context

Size = Annotated[int, Field(ge=1)]
Numbers = Annotated[tuple[int, ...], Field(min_length=1)]


def with_objective(**default: object) -> BeforeValidator:
    """A ``training`` table without an objective gets this one."""

    def complete(given: Any) -> Any:
        return _as_tuples({"objective": default, **given}) if isinstance(given, dict) else given

    return BeforeValidator(complete)


StatesTraining = Annotated[Training | None, with_objective(kind="states", layers="even")]


def _as_tuples(given: Any) -> Any:
    """Arrays of TOML as tuples: past a validator written in Python, strict tuples refuse lists."""
    if isinstance(given, dict):
        return {key: _as_tuples(value) for key, value in given.items()}
    return tuple(map(_as_tuples, given)) if isinstance(given, list) else given


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Distill:
    """Make a student of the model, and let it learn from the uncompressed one.

    ``layers``: how many of the first ones (Lin et al., 2022), or which (original numbers). ``heads`` and ``units``, of
    each layer, are those with the largest weights (of new weights, the first). ``width`` makes a thinner model of the
    same family (FitHuBERT, Lee et al., 2022): channels with the largest weights, heads as wide as before unless
    ``heads`` says how many.
    ``init = "teacher"`` starts from the model's own weights (DistilHuBERT, Chang et al., 2022), ``"random"`` from new ones
    (Whisper's decoder stays). Without ``training`` the student is only made: what a training must beat.

    The objective, unless given: hidden states, all of the student's spread evenly over the teacher's. Another teacher,
    also of another family, is ``objective.teacher``.
    """

    kind: ClassVar[str] = "distill"
    needs_clips: ClassVar[bool] = False
    layers: Size | Numbers | None = None
    width: Size | None = None
    heads: Size | None = None
    units: Size | None = None
    init: Literal["teacher", "random"] = "teacher"
    training: StatesTraining = None

    @property
    def needs_corpus(self) -> bool:
        """Whether it trains."""
        return self.training is not None and self.training.steps > 0

    def apply(self, model: Model, context: Context) -> None:
        from edgecompress.techniques.input_statistics import learn_input_statistics
        from edgecompress.techniques.recovery import recover

        _keep_layers(model, self.layers)
        if self.width is not None:
            _become_thinner(model, self.width, self.heads, self.units, self.init, context.seed)
        else:
            _keep_parts(model, self.heads, self.units, largest=self.init == "teacher")
            if self.init == "random":
                _start_anew(model, context.seed)
        if not self.needs_corpus:
            context.notes.append(f"the student has its first weights ({self.init}): it was not trained")
            return
        learn_input_statistics(model, context, self.kind)
        recover(model, context, self.training, self.kind)


def _keep_layers(model: Model, layers: int | tuple[int, ...] | None) -> None:
    there = [layer.number for layer in model.layers]
    if layers is None:
        return
    if isinstance(layers, int):
        if layers > len(there):
            raise TechniqueError(f"{layers} layers of {len(there)} cannot be kept", hint="ask for fewer")
        layers = tuple(there[:layers])
    strange = sorted(set(layers) - set(there))
    if strange:
        raise TechniqueError(f"there is no layer {strange[0]}", hint=f"layers left: {', '.join(map(str, there))}")
    model.keep_layers(sorted(set(layers)))


def _keep_parts(model: Model, heads: int | None, units: int | None, *, largest: bool) -> None:
    """As many heads and units in each layer, those with the largest weights or the first; who has fewer keeps them."""
    from edgecompress.techniques.thinner import best, head_sizes, unit_sizes

    for layer in model.layers:
        if heads is not None and heads < len(layer.heads):
            places = best(head_sizes(layer)[None], heads).tolist() if largest else range(heads)
            model.keep_heads(layer.number, [layer.heads[place] for place in places])
        if units is not None and units < len(layer.units):
            places = best(unit_sizes(layer)[None], units).tolist() if largest else range(units)
            model.keep_units(layer.number, [layer.units[place] for place in places])


def _become_thinner(model: Model, width: int, heads: int | None, units: int | None, init: str, seed: int) -> None:
    from edgecompress.model import from_config_values
    from edgecompress.techniques.thinner import fill_with_slices, thinner_config

    values = thinner_config(model, width, heads, units)
    student = from_config_values(values, seed=seed, source=model.origin.source).to(model.device)
    if init == "teacher":
        fill_with_slices(student, model)
        student.origin = replace(student.origin, config=values)  # without the mark of random weights
    model.become(student)


def _start_anew(model: Model, seed: int) -> None:
    """New weights for what is trained, in the structure that is there: encoder and head, not Whisper's decoder."""
    from edgecompress.model import from_config_values
    from edgecompress.training.parts import encoder_parts, head_parts

    values = {**model.origin.config, "architectures": [model.architecture]}
    fresh = from_config_values(values, seed=seed, source=model.origin.source)
    for edit in model.edits:
        fresh.change(edit)
    new, old = encoder_parts(fresh, mask=True), encoder_parts(model, mask=True)
    if model.has_logits:
        new, old = new | head_parts(fresh), old | head_parts(model)
    for name, part in old.items():
        part.load_state_dict(new[name].state_dict())
