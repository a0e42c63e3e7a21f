"""Tasks: what a score is. Here is the contract; each task is one file.

A task is a frozen dataclass of parameters with one verb, ``score(subject, source, clips)``; its fields are its keys in
a job. It returns clip by clip numerators and denominators: a score is their sums' ratio, and its interval a bootstrap
over clips, both computed when read. A subject is a model together with how its encoder is run (torch, or an exported
file in the runtime that will run it), so one task scores checkpoints and artifacts alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from edgecompress.records import ScoreItem

if TYPE_CHECKING:
    import numpy as np
    import torch

    from edgecompress.model import Model

Progress = Callable[[str], None]


class NamedClip(Protocol):
    """A recording: its name (a path relative to the audio folder) and 16 kHz mono float32 samples."""

    name: str
    samples: np.ndarray


@dataclass
class Subject:
    """What is scored: ``model`` prepares the audio (and decodes, for Whisper); ``run`` is its encoder.

    ``run`` takes the encoder's input and gives what the exported graph gives: last hidden states
    (batch, frames, width), or the logits of a task head. Answers are kept, so that two tasks ask once.
    """

    model: Model
    run: Callable[[torch.Tensor], torch.Tensor]
    batch_size: int = 8
    takes: str | None = None  # the form of an exported file, where what it is fed is not the encoder's own input
    _outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    _texts: dict[str, str] = field(default_factory=dict)

    def outputs(self, clips: Sequence[NamedClip], progress: Progress | None = None) -> list[torch.Tensor]:
        """The encoder's answer to each clip, batch 1 each."""
        import torch

        missing = [clip for clip in clips if clip.name not in self._outputs]
        done = 0
        with torch.no_grad():
            for inputs in self.model.batches([clip.samples for clip in missing], self.batch_size, self.takes):
                answer = self.run(inputs)
                for row in range(inputs.shape[0]):
                    self._outputs[missing[done].name] = answer[row : row + 1].clone()
                    done += 1
                if progress:
                    progress(f"encoded {done} of {len(missing)} clips")
        return [self._outputs[clip.name] for clip in clips]

    def texts(self, clips: Sequence[NamedClip], progress: Progress | None = None) -> list[str]:
        """What the full model writes for each clip (Whisper)."""
        import torch

        from edgecompress.model.decoding import transcribe

        missing = [clip for clip in clips if clip.name not in self._texts]
        for start in range(0, len(missing), self.batch_size):
            some = missing[start : start + self.batch_size]
            for clip, text in zip(some, transcribe(self.model, torch.cat(self.outputs(some))), strict=True):
                self._texts[clip.name] = text
            if progress:
                progress(f"transcribed {min(start + self.batch_size, len(missing))} of {len(missing)} clips")
        return [self._texts[clip.name] for clip in clips]


def in_torch(model: Model) -> Subject:
    """A model scored as it is, in torch."""
    from edgecompress.model.forms import encoder_form

    return Subject(model, encoder_form(model))


def of_runner(
    model: Model, runner: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], takes: Sequence[str], gives: str
) -> Subject:
    """An exported encoder scored in its runtime, with the model's own features (and decoder) around it.

    ``takes`` and ``gives`` are the names of the file's inputs and of its output.
    """
    import torch

    from edgecompress.model.forms import form_by_inputs

    form = form_by_inputs(model, takes)

    def run(inputs: torch.Tensor) -> torch.Tensor:
        rows = []
        for row in inputs.split(1):  # a file may take one clip at a time
            feeds = form.refeed({}, row.numpy())
            rows.append(torch.from_numpy(form.cut(runner(feeds), feeds)[gives]))
        return torch.cat(rows)

    return Subject(model, run, takes=form.takes)


@dataclass(frozen=True)
class Result:
    """One metric, clip by clip, with the conditions it holds under."""

    metric: str
    higher_is_better: bool
    items: list[ScoreItem]
    skipped: dict[str, str] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """The contract. A task with truths in files beside the audio names them in a property ``truth_files``."""

    kind: ClassVar[str]

    def score(
        self,
        subject: Subject,
        source: Subject,
        clips: Sequence[NamedClip],
        folder: str | None,
        progress: Progress | None = None,
    ) -> Result:
        """Score ``subject``. ``source`` is the untouched model; ``folder`` is where the clips came from, for truths beside them.

        Raises:
            EdgeCompressError: the task does not fit this model, or its truths are missing.
        """
