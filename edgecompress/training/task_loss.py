"""The model's own task as a loss: CTC, a class for each clip, or Whisper's next token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from edgecompress.errors import TechniqueError
from edgecompress.training import Batch, Loss
from edgecompress.training.parts import Student, encoder_parts, frame_mask, head_parts, held_fixed
from edgecompress.training.vocabulary import Vocabulary, classes_of, make, of_model

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.inputs import Inputs
    from edgecompress.training.data import Corpus
    from edgecompress.training.settings import TaskLoss

Of = Callable[["Inputs", list[str]], tuple[torch.Tensor, int]]
IGNORED = -100


class TaskObjective:
    """Which task follows from the head: CTC, classification of clips, or the next token of a Whisper with its decoder.

    A bare encoder gets a linear head that is gone afterwards: frames for CTC where ``settings.head`` says so, else the
    mean over the filled frames for classes. Of Whisper the encoder trains and the decoder stays the source model's.
    Clips without a label are not counted.
    """

    def __init__(self, settings: TaskLoss, model: Model, *, corpus: Corpus, seed: int) -> None:
        labels = [entry[settings.label] for entry in corpus.labels if entry.get(settings.label)]
        if not labels:
            raise TechniqueError(
                f"none of the training audio has a label in column {settings.label!r}",
                hint="name the manifest's column that holds them: label = ...",
            )
        self.student = Student(model)
        self.context_seconds = model.max_seconds
        self.head: nn.Linear | None = None
        self._modules = encoder_parts(model)
        architecture = model.architecture
        if architecture.endswith("ForConditionalGeneration"):
            self._tokens = _Transcripts(model)
            self._of: Of = self._next_token
            return
        if model.anatomy.output_name(architecture) == "logits":
            self._modules |= head_parts(model)
            ctc, size = architecture.endswith("ForCTC"), _head_size(model)
            self.vocabulary = of_model(model, labels, size) if ctc else None
            self.classes = {} if ctc else classes_of(model, labels, size)
        else:
            ctc = settings.head == "ctc"
            self.vocabulary = make(labels, 1 + sum(map(len, labels)), 0) if ctc else None
            self.classes = {} if ctc else {name: number for number, name in enumerate(sorted(set(labels)))}
            size = len(self.vocabulary.numbers) if self.vocabulary else len(self.classes)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.head = nn.Linear(model.hidden_size, size)
            self._modules["task"] = self.head
        self._of = self._ctc if ctc else self._classify

    def modules(self) -> Mapping[str, nn.Module]:
        """The encoder and the head."""
        return self._modules

    def loss(self, batch: Batch) -> Loss:
        """Mean over the labelled clips (CTC: of the loss a token; classes) or over tokens (Whisper)."""
        there = [place for place, label in enumerate(batch.labels) if label.strip()]
        if there and len(there) < len(batch.labels):
            batch = _chosen(batch, there)
        inputs = self.student.inputs(batch)
        with held_fixed(self.student.model, self._modules):
            value, count = self._of(inputs, list(batch.labels) if there else [])
        return Loss(value, count, {})

    def _logits(self, inputs: Inputs, whole_clips: bool) -> torch.Tensor:
        """(batch, frames, tokens), or (batch, classes) of whole clips; by the model's own head or ours."""
        if self.head is None:
            return self.student.model.logits(inputs)
        hidden = self.student.model.states(inputs)[-1]
        if whole_clips:
            mask = frame_mask(inputs.frames, hidden.shape[1])[..., None]
            hidden = (hidden * mask).sum(1) / mask.sum(1)
        said: torch.Tensor = self.head(hidden)
        return said

    def _ctc(self, inputs: Inputs, labels: list[str]) -> tuple[torch.Tensor, int]:
        logits = self._logits(inputs, whole_clips=False).float()
        if not labels:
            return logits.sum() * 0, 0
        vocabulary = cast(Vocabulary, self.vocabulary)
        rows = [vocabulary.encode(label) for label in labels]
        wide = max(len(row) for row in rows)
        targets = torch.full((len(rows), wide), vocabulary.blank)
        for place, row in enumerate(rows):
            targets[place, : len(row)] = torch.tensor(row)
        sizes = torch.tensor([len(row) for row in rows])
        losses = nn.functional.ctc_loss(
            torch.log_softmax(logits, -1).transpose(0, 1),
            targets.to(logits.device),
            inputs.frames.clamp(max=logits.shape[1]).to(logits.device),
            sizes.to(logits.device),
            blank=vocabulary.blank,
            reduction="none",
            zero_infinity=True,  # a label with more tokens than there are frames teaches nothing
        )
        return (losses / sizes.to(losses.device)).mean(), len(rows)

    def _classify(self, inputs: Inputs, labels: list[str]) -> tuple[torch.Tensor, int]:
        logits = self._logits(inputs, whole_clips=True).float()
        if not labels:
            return logits.sum() * 0, 0
        wanted = torch.tensor([self.classes[label] for label in labels], device=logits.device)
        return nn.functional.cross_entropy(logits, wanted), len(labels)

    def _next_token(self, inputs: Inputs, labels: list[str]) -> tuple[torch.Tensor, int]:
        hidden = self.student.model.states(inputs)[-1]
        if not labels:
            return hidden.sum() * 0, 0
        given, wanted = (ids.to(hidden.device) for ids in self._tokens.of(labels))
        logits = self.student.model.network(encoder_outputs=(hidden,), decoder_input_ids=given, use_cache=False).logits
        count = int((wanted != IGNORED).sum())
        value = nn.functional.cross_entropy(
            logits.float().reshape(-1, logits.shape[-1]), wanted.reshape(-1), ignore_index=IGNORED
        )
        return value, count


def _chosen(batch: Batch, places: list[int]) -> Batch:
    """Some clips of a batch."""
    return Batch(
        [batch.clips[place] for place in places],
        [batch.rows[place] for place in places],
        [batch.starts[place] for place in places],
        [batch.labels[place] for place in places],
    )


class _Transcripts:
    """What Whisper's decoder is given and shall answer: prompt, the text's tokens, the end mark."""

    def __init__(self, model: Model) -> None:
        from tokenizers import Tokenizer

        from edgecompress.model.decoding import generation_settings, prompt

        text = model.origin.extra_files.get("tokenizer.json")
        if text is None:
            raise TechniqueError(
                "the model folder has no tokenizer.json, so labels cannot become tokens",
                hint="put tokenizer.json beside config.json",
            )
        self.tokenizer: Any = Tokenizer.from_str(text)
        self.prompt = prompt(model)
        self.end = int(generation_settings(model)["eos_token_id"])
        self.room = int(model.network.config.max_target_positions)

    def of(self, labels: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens that are given and tokens that are wanted, both (batch, longest); -100 is not counted."""
        rows = [
            [*self.prompt, *self.tokenizer.encode(f" {label.strip()}", add_special_tokens=False).ids, self.end]
            for label in labels
        ]
        rows = [row[: self.room + 1] for row in rows]
        given = torch.full((len(rows), max(map(len, rows)) - 1), self.end)
        wanted = torch.full_like(given, IGNORED)
        for place, row in enumerate(rows):
            given[place, : len(row) - 1] = torch.tensor(row[:-1])
            wanted[place, len(self.prompt) - 1 : len(row) - 1] = torch.tensor(row[len(self.prompt) :])
        return given, wanted


def _head_size(model: Model) -> int:
    config = model.network.config
    return int(config.vocab_size if model.architecture.endswith("ForCTC") else config.num_labels)
