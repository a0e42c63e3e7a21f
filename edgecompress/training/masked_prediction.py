"""Masked prediction: hidden frames say which cluster they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgecompress.errors import TechniqueError
from edgecompress.training import Batch, Loss
from edgecompress.training.masking import spans
from edgecompress.training.parts import Student, collate, encoder_parts, frame_logits, head_parts, held_fixed
from edgecompress.training.targets import LOG_MEL_HOP, NO_LABEL, Targets, frame_samples, hidden_frames, log_mel

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.inputs import Inputs
    from edgecompress.training.data import Corpus
    from edgecompress.training.settings import MaskedPrediction, MatchLogits

Example = tuple[np.ndarray, np.ndarray]  # a clip, and the label of each of its target frames


class MaskedObjective:
    """Cross-entropy of the cluster of each hidden frame, over hidden frames only (MelHuBERT, Lin et al., 2023).

    A model that has a head for clusters (MelHuBERT's pretraining head) trains its own; any other gets a linear one,
    which is gone when the training is over.
    """

    def __init__(self, settings: MaskedPrediction, model: Model, *, corpus: Corpus, seed: int) -> None:
        self.settings = settings
        self.student = Student(model)
        self.context_seconds = model.max_seconds
        self.step_samples = frame_samples(model)
        self.targets = targets_for(settings, model, corpus, seed, self.step_samples)
        self.head = None if has_cluster_head(model) else _linear(model.hidden_size, settings.clusters, seed)
        self._modules = encoder_parts(model, mask=True)
        if self.head is not None:
            self._modules["clusters"] = self.head
        else:
            need_clusters(model, settings.clusters)
            self._modules |= head_parts(model)

    def modules(self) -> Mapping[str, nn.Module]:
        """The encoder, the learned vector that hides a frame where the family has one, and the head."""
        return self._modules

    def loss(self, batch: Batch) -> Loss:
        """Mean over the hidden frames; ``accuracy`` is the share of them whose cluster was named right."""
        inputs = self.student.inputs(batch)
        labels = self.targets.of(batch, inputs.length, self.step_samples).to(inputs.values.device)
        return self._loss(inputs, labels)

    def _loss(self, inputs: Inputs, labels: torch.Tensor) -> Loss:
        hide = spans(inputs.frames, inputs.length, self.settings.mask_probability, self.settings.span)
        counted = hide & (labels != NO_LABEL)
        with held_fixed(self.student.model, self._modules):
            if self.head is None:
                logits = frame_logits(self.student.model, inputs, hide)[counted]
            else:
                logits = self.head(self.student.model.states(inputs, hide)[-1][counted])
        wanted = labels[counted]
        value = nn.functional.cross_entropy(logits.float(), wanted, reduction="sum") / max(1, len(wanted))
        right = float((logits.detach().argmax(-1) == wanted).sum())
        return Loss(value, len(wanted), {"accuracy": right / max(1, len(wanted))})

    def examples(self, clips: Sequence[np.ndarray]) -> list[Example]:
        """Clips with their labels, for :meth:`accuracy`; hidden-state targets are those of the model as it is now."""
        return [(clip, self.targets.label(clip)) for clip in clips]

    @torch.no_grad()
    def accuracy(self, examples: Sequence[Example], seed: int) -> tuple[float, float]:
        """Share of hidden frames named right, and what naming the commonest cluster would have got; no dropout."""
        right = counted = 0.0
        seen = torch.zeros(self.settings.clusters)
        with torch.random.fork_rng(devices=[]), self.student.model.evaluating():
            torch.manual_seed(seed)
            if self.head is not None:
                self.head.to(self.student.device)
            for clip, known in examples:
                inputs = collate(self.student.model, [clip]).to(self.student.device)
                labels = torch.full((1, inputs.length), NO_LABEL)
                self.targets.put(known, 0, self.step_samples, labels[0])
                loss = self._loss(inputs, labels.to(inputs.values.device))
                right += loss.parts["accuracy"] * loss.count
                counted += loss.count
                seen += torch.bincount(labels[labels != NO_LABEL], minlength=len(seen))
        return right / max(1.0, counted), float(seen.max() / seen.sum().clamp(min=1))


def has_cluster_head(model: Model) -> bool:
    """Whether the network has a pretraining head of its own, a score for each cluster."""
    return hasattr(model.network, "cluster_head")


def need_clusters(model: Model, clusters: int) -> None:
    """Raise a TechniqueError unless the model's own head has this many clusters."""
    has = int(model.network.cluster_head.out_features)
    if has != clusters:
        raise TechniqueError(
            f"the model's head has {has} clusters, the objective asks for {clusters}", hint=f"set clusters = {has}"
        )


def targets_for(
    settings: MaskedPrediction | MatchLogits, model: Model, corpus: Corpus, seed: int, step_samples: int
) -> Targets:
    """Clusters of log-mel frames, or of a hidden state of the model as it is now (default: two thirds up)."""
    fit_frames = getattr(settings, "fit_frames", 100_000)
    if getattr(settings, "targets", "log_mel") == "log_mel":
        return Targets(corpus, log_mel, LOG_MEL_HOP, settings.clusters, fit_frames, seed)
    layers = len(model.layers)
    asked = getattr(settings, "layer", None)
    state = round(2 * layers / 3) if asked is None else int(asked)
    if not -layers - 1 <= state <= layers:
        raise TechniqueError(f"there is no hidden state {state}", hint=f"there are 0 to {layers}")
    return Targets(corpus, hidden_frames(model, state), step_samples, settings.clusters, fit_frames, seed)


def _linear(width: int, clusters: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(width, clusters)
