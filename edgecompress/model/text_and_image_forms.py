"""The forms in which BERT and ViT leave torch: token numbers with a mask in, or images of one size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgecompress.model.features import USUAL_TOKENS, image_shape
from edgecompress.model.forms import Arrays, Form, Port

if TYPE_CHECKING:
    from edgecompress.model.network import Model

TOKENS = (1, 2, 5, 13, 33, 100)
IMAGES = (1, 2, 3, 4, 5, 6)


@dataclass(frozen=True)
class TextForm(Form):
    """Token numbers (batch, tokens) and a mask of the same shape, 1 where there is text and 0 where there is padding.

    All tokens are of the first segment. A text says in company, and padded, what it says alone.
    """

    def module(self, model: Model) -> nn.Module:
        """See :meth:`Form.module`."""
        return Answer(model, self).eval()

    def example(self, model: Model, batch: int, length: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """See :meth:`Form.example`. Rows are filled to different lengths, the first one whole; padding is noise too."""
        generator = torch.Generator().manual_seed(seed)
        known = int(model.network.config.vocab_size)
        numbers = torch.randint(0, known, (batch, length), generator=generator)
        filled = torch.tensor([max(1, length - row * length // 3) for row in range(batch)])
        mask = (torch.arange(length) < filled[:, None]).long()
        return numbers.to(model.device), mask.to(model.device)

    def trace_length(self, model: Model) -> int:
        """As many tokens as a text usually has here: the golden input is as long."""
        return min(USUAL_TOKENS, _most(model))

    def lengths(self, model: Model) -> list[int]:
        """See :meth:`Form.lengths`: from one token to all that there are positions for."""
        most = _most(model)
        usual = {length for length in (*TOKENS, most - 1, most) if 0 < length <= most}
        return sorted(usual - {self.trace_length(model)}) or [most]

    def answer(self, model: Model, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """See :meth:`Form.answer`. Each text is answered alone, without padding and mask; they are joined in length."""
        numbers, counts = np.asarray(feeds[self.input_name]), self._counts(feeds)
        rows = [_said(model, self, numbers[row : row + 1, :count]) for row, count in enumerate(counts)]
        return {self.outputs[0].name: np.concatenate(rows, axis=rows[0].ndim - 2)}

    def feeds(self, model: Model, clip: np.ndarray) -> Arrays:
        """Token numbers (tokens,) as the file takes them, batch 1.

        Raises:
            ModelError: they are none, too many, or unknown.
        """
        return self.refeed({}, model.features(clip).numpy())

    def refeed(self, feeds: Mapping[str, np.ndarray], values: np.ndarray) -> Arrays:
        """See :meth:`Form.refeed`."""
        return {**feeds, self.input_name: values, self.inputs[1].name: np.ones_like(values)}

    def cut(self, outputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]) -> Arrays:
        """See :meth:`Form.cut`."""
        name = self.outputs[0].name
        said = outputs[name]
        if said.ndim == 3:
            said = np.concatenate(
                [said[row : row + 1, :count] for row, count in enumerate(self._counts(feeds))], axis=1
            )
        return {name: said}

    def _counts(self, feeds: Mapping[str, np.ndarray]) -> list[int]:
        return [int(count) for count in np.asarray(feeds[self.inputs[1].name]).sum(axis=1)]


@dataclass(frozen=True)
class ImageForm(Form):
    """Images (batch, channels, height, width) of the one size that the model takes; a length is how many they are."""

    def module(self, model: Model) -> nn.Module:
        """See :meth:`Form.module`."""
        return Answer(model, self).eval()

    def example(self, model: Model, batch: int, length: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """See :meth:`Form.example`; ``length`` says nothing here."""
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(batch, *image_shape(model), generator=generator).to(model.device),)

    def trace_length(self, model: Model) -> int:
        """Says nothing: see :meth:`example`."""
        return 1

    def lengths(self, model: Model) -> list[int]:
        """Six: the seeds of as many images."""
        return list(IMAGES)

    def answer(self, model: Model, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """See :meth:`Form.answer`."""
        return {self.outputs[0].name: _said(model, self, np.asarray(feeds[self.input_name]))}

    def feeds(self, model: Model, clip: np.ndarray) -> Arrays:
        """Pixels (channels, height, width) as the file takes them, batch 1.

        Raises:
            ModelError: of another shape.
        """
        return {self.input_name: model.features(clip).numpy()}


class Answer(nn.Module):
    """A model's inputs by position, in the order of a form -> logits or last hidden state."""

    def __init__(self, model: Model, form: Form) -> None:
        super().__init__()
        self.names = [port.name for port in form.inputs]
        self.output = form.outputs[0].name
        self.network = model.network if self.output == "logits" else model.base

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """One tensor for each input, in order."""
        said: torch.Tensor = self.network(**dict(zip(self.names, inputs, strict=True)))[self.output]
        return said


def text_or_image_form(model: Model) -> Form:
    """The form of a family that hears no audio."""
    config: Any = model.network.config
    name = model.anatomy.output_name(model.architecture)
    inner = int(config.hidden_size) if name != "logits" else int(model.network.classifier.out_features)
    if model.anatomy.takes == "images":
        pixels = Port("pixel_values", ("batch", *image_shape(model)))
        places = int(model.base.embeddings.position_embeddings.shape[1])
        out = Port(name, ("batch", inner) if name == "logits" else ("batch", places, inner))
        return ImageForm("images", (pixels,), (out,), "images")
    ports = tuple(Port(each, ("batch", "tokens"), "int64") for each in ("input_ids", "attention_mask"))
    whole = model.architecture.endswith("ForSequenceClassification")
    return TextForm("tokens", ports, (Port(name, ("batch", inner) if whole else ("batch", "tokens", inner)),), "tokens")


def _most(model: Model) -> int:
    return int(model.network.config.max_position_embeddings)


def _said(model: Model, form: Form, values: np.ndarray) -> np.ndarray:
    inputs = torch.from_numpy(values).to(model.device)
    with torch.no_grad(), model.evaluating():
        answer = model.network(inputs).logits if form.outputs[0].name == "logits" else model.encode(inputs)
    return np.asarray(answer.float().cpu().numpy())
