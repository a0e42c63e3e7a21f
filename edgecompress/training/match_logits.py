"""Distillation by logits: the teacher's probabilities, softened or not, of every frame or of hidden ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgecompress.errors import TechniqueError
from edgecompress.training import Batch, Loss
from edgecompress.training.masked_prediction import targets_for
from edgecompress.training.masking import spans
from edgecompress.training.parts import (
    Student,
    encoder_parts,
    frame_head,
    frame_logits,
    frame_mask,
    head_parts,
    held_fixed,
)
from edgecompress.training.settings import MaskedPrediction
from edgecompress.training.targets import NO_LABEL, frame_samples
from edgecompress.training.teacher import Teacher, teacher_of

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.inputs import Inputs
    from edgecompress.training.data import Corpus
    from edgecompress.training.settings import MatchLogits

HIDING = MaskedPrediction()  # spans as in pretraining, where ``masked`` asks for them: as long in milliseconds
HIDING_STEP = 320  # samples between the frames that its span counts


class LogitsObjective:
    """alpha KL(teacher || student) + (1 - alpha) cross-entropy, as Lin et al., 2022, have it (after Hinton et al., 2015).

    The KL is that of ``softmax(logits / temperature)``, summed over classes and averaged over the counted frames, and
    not multiplied by the temperature squared.
    """

    def __init__(self, settings: MatchLogits, model: Model, *, source: Model | None, corpus: Corpus, seed: int) -> None:
        need_logits(model, "the student")
        teacher = teacher_of(settings.teacher, model, source)
        need_logits(teacher, "the teacher")
        self.settings = settings
        self.student = Student(model)
        self.context_seconds = model.max_seconds
        limit_bytes = int(settings.kept_gib * 2**30)
        self.teacher = Teacher(teacher, corpus, lambda asked, inputs: [asked.logits(inputs)], limit_bytes=limit_bytes)
        self.step_samples = frame_samples(model)
        self.targets = None
        if settings.alpha < 1:
            need_frames(model, settings.clusters)
            self.targets = targets_for(settings, model, corpus, seed, self.step_samples)
        self._modules = encoder_parts(model, mask=settings.masked) | head_parts(model)

    def modules(self) -> Mapping[str, nn.Module]:
        """The student with its head."""
        return self._modules

    def loss(self, batch: Batch) -> Loss:
        """Mean over the counted frames (over clips where the model classifies whole clips)."""
        inputs = self.student.inputs(batch)
        hide = self._hide(inputs)
        with held_fixed(self.student.model, self._modules):
            logits = frame_logits(self.student.model, inputs, hide)
        student, teacher, hard = self._counted(logits, batch, inputs, hide)
        if student.shape[-1] != teacher.shape[-1]:
            raise TechniqueError(
                f"the student has {student.shape[-1]} classes, the teacher {teacher.shape[-1]}",
                hint="match hidden states instead",
            )
        temperature, alpha = self.settings.temperature, self.settings.alpha
        kl = nn.functional.kl_div(
            torch.log_softmax(student / temperature, -1),
            torch.log_softmax(teacher / temperature, -1),
            reduction="sum",
            log_target=True,
        ) / max(1, len(student))
        parts = {"kl": float(kl.detach())}
        value = alpha * kl
        if hard is not None:
            known = hard != NO_LABEL
            entropy = nn.functional.cross_entropy(student[known], hard[known], reduction="sum") / max(
                1, int(known.sum())
            )
            parts["cross_entropy"] = float(entropy.detach())
            value = value + (1 - alpha) * entropy
        return Loss(value, len(student), parts)

    def _hide(self, inputs: Inputs) -> torch.Tensor | None:
        if not self.settings.masked:
            return None
        span = HIDING.span * HIDING_STEP // self.step_samples
        return spans(inputs.frames, inputs.length, HIDING.mask_probability, span)

    def _counted(
        self, logits: torch.Tensor, batch: Batch, inputs: Inputs, hide: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Student, teacher (counted, classes) in float32, and the hard labels (counted,) where they are looked at."""
        device = logits.device
        if logits.dim() == 2:  # one answer a clip
            answers = self.teacher.answers(batch, device)
            return logits.float(), torch.cat([answer[0].float() for answer in answers]), None
        frames = logits.shape[1]
        mask = frame_mask(inputs.frames, frames)
        if hide is not None:  # the same frames are hidden from both, so the teacher answers this batch as it is
            mask = mask & hide
            self.teacher.model.to(device)
            with torch.no_grad():
                taught = frame_logits(self.teacher.model, inputs, hide)[mask]
        else:
            answers = self.teacher.answers(batch, device)
            lengths = torch.tensor([len(answer[0]) for answer in answers], device=device)
            counted = torch.minimum(inputs.frames, lengths)
            mask = frame_mask(counted, frames)
            taught = torch.cat([answer[0][:n].float() for answer, n in zip(answers, counted.tolist(), strict=True)])
        hard = None if self.targets is None else self.targets.of(batch, frames, self.step_samples).to(device)[mask]
        return logits[mask].float(), taught.float(), hard


def need_logits(model: Model, whose: str) -> None:
    """Raise a TechniqueError unless the model has a head whose answers can be compared, frame by frame or clip by clip."""
    if not model.has_logits:
        raise TechniqueError(
            f"{whose} ({model.architecture}) has no logits to match", hint='use the objective "states"'
        )


def need_frames(model: Model, clusters: int) -> None:
    """Raise a TechniqueError unless the model's head answers frame by frame, for as many clusters or more."""
    head = frame_head(model)
    if head is None:
        raise TechniqueError(
            f"{model.architecture} answers for whole clips: there are no frames to give clusters to",
            hint="set alpha = 1, which has no hard loss",
        )
    if head.out_features < clusters:
        raise TechniqueError(
            f"the model's head has {head.out_features} classes, the hard loss {clusters} clusters",
            hint=f"set clusters = {head.out_features} or fewer, or alpha = 1",
        )
