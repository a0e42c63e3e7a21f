"""Distillation by hidden states: L1 plus one minus cosine, over the frames that audio fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from edgecompress.errors import TechniqueError
from edgecompress.training import Batch, Loss
from edgecompress.training.parts import Student, encoder_parts, frame_mask, held_fixed
from edgecompress.training.teacher import Teacher, teacher_of

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.training.data import Corpus
    from edgecompress.training.settings import MatchStates

Pairs = list[tuple[int, int]]


class StatesObjective:
    """The student's hidden states shall be the teacher's (DPHuBERT, Peng et al., 2023).

    Both run at 50 frames a second and more or less agree on where a frame lies (Whisper's centre is 12.5 ms before
    HuBERT's), so frame i goes with frame i and the longer answer loses its end: a frame, as a rule.
    """

    def __init__(
        self,
        settings: MatchStates,
        model: Model,
        *,
        source: Model | None,
        corpus: Corpus,
        seed: int,
    ) -> None:
        if settings.padding and model.context_positions is None:
            raise TechniqueError(
                f"{model.family} is never used on padding: there are no frames beyond the audio to count",
                hint="padding = true is for Whisper, whose decoder hears its whole context",
            )
        teacher = teacher_of(settings.teacher, model, source)
        if settings.padding and teacher.context_positions is None:
            raise TechniqueError("the teacher has no frames beyond the audio", hint="leave padding out")
        self.settings = settings
        self.student = Student(model)
        self.context_seconds = model.max_seconds
        self.pairs = pairs_of(settings.layers, model, teacher)
        wanted = [place for _, place in self.pairs]
        self.teacher = Teacher(
            teacher,
            corpus,
            lambda asked, inputs: _at(asked.states(inputs), wanted),
            padding=settings.padding,
            limit_bytes=int(settings.kept_gib * 2**30),
            silence_s=settings.teacher_silence_s if model.context_positions is None else None,
        )
        self.scales = self.teacher.scales(corpus, seed) if settings.standardize else None
        self.projections = _projections(settings.project, model, teacher, len(self.pairs), seed)
        self._modules = encoder_parts(model, up_to=max(place for place, _ in self.pairs))
        if self.projections is not None:
            self._modules["projections"] = self.projections

    def modules(self) -> Mapping[str, nn.Module]:
        """The student's encoder as far as it is matched, and the projections."""
        return self._modules

    def loss(self, batch: Batch) -> Loss:
        """Mean over the matched layers, frames and (L1) channels; the parts are before their weights."""
        model = self.student.model
        inputs = self.student.inputs(batch)
        answers = self.teacher.answers(batch, inputs.values.device)
        with held_fixed(model, self._modules):
            states = model.states(inputs)
        frames = states[0].shape[1]
        lengths = torch.full_like(inputs.frames, frames) if self.settings.padding else inputs.frames
        said_by_teacher = torch.tensor([len(answer[0]) for answer in answers], device=lengths.device)
        counted = torch.minimum(lengths, said_by_teacher).clamp(max=frames)
        mask = frame_mask(counted, frames)
        l1 = cosine = states[0].new_zeros(())
        for number, (place, _) in enumerate(self.pairs):
            student = states[place][mask]
            if self.projections is not None:
                student = self.projections[number](student)
            teacher = torch.cat(
                [answer[number][:n].float() for answer, n in zip(answers, counted.tolist(), strict=True)]
            )
            student = student.float()
            if self.scales is not None:
                mean, deviation = (one.to(teacher.device) for one in self.scales[number])
                teacher = (teacher - mean) / deviation
                if self.projections is None:  # a projection learns to speak in these units
                    student = (student - mean) / deviation
            l1 = l1 + (student - teacher).abs().mean() / len(self.pairs)
            cosine = cosine + (1 - nn.functional.cosine_similarity(student, teacher, dim=-1)).mean() / len(self.pairs)
        value = self.settings.l1 * l1 + self.settings.cosine * cosine
        return Loss(value, int(counted.sum()), {"l1": float(l1.detach()), "cosine": float(cosine.detach())})


def _at(states: Sequence[torch.Tensor], places: Sequence[int]) -> list[torch.Tensor]:
    return [states[place] for place in places]


def pairs_of(
    layers: Literal["last", "same", "even"] | Sequence[tuple[int, int]], student: Model, teacher: Model
) -> Pairs:
    """(student's state, teacher's state) for each match; state 0 is the input of the first layer.

    Raises:
        TechniqueError: a state, or a layer of the same original number, that is not there.
    """
    here, there = len(student.layers), len(teacher.layers)
    if layers == "last":
        return [(here, there)]
    if layers == "even":
        return [(place, round(place * there / here)) for place in range(here + 1)]
    if layers == "same":
        places = {layer.number: place for place, layer in enumerate(teacher.layers, start=1)}
        lost = [layer.number for layer in student.layers if layer.number not in places]
        if lost:
            raise TechniqueError(f"the teacher has no layer {lost[0]}", hint='use layers = "even" or pairs of states')
        return [(0, 0)] + [(place, places[layer.number]) for place, layer in enumerate(student.layers, start=1)]
    pairs: Sequence[tuple[int, int]] = layers
    return [(_state(mine, here, "student"), _state(its, there, "teacher")) for mine, its in pairs]


def _state(number: int, layers: int, whose: str) -> int:
    if not -layers - 1 <= number <= layers:
        raise TechniqueError(f"the {whose} has no state {number}", hint=f"it has states 0 to {layers}; -1 is the last")
    return number % (layers + 1)


def _projections(project: bool | None, student: Model, teacher: Model, count: int, seed: int) -> nn.ModuleList | None:
    """One linear map a matched state: the identity where widths are the same, random where they are not."""
    mine, its = student.hidden_size, teacher.hidden_size
    if not (mine != its if project is None else project):
        if mine != its:
            raise TechniqueError(
                f"the student is {mine} wide and the teacher {its}: only a projection can match them",
                hint="leave project out, or set it to true",
            )
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        maps = [nn.Linear(mine, its) for _ in range(count)]
    if mine == its:
        for one in maps:
            nn.init.eye_(one.weight)
            nn.init.zeros_(one.bias)
    return nn.ModuleList(maps)
