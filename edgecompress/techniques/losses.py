"""A loss for scoring without labels: how strongly the output hangs on each part, by the model's own answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from edgecompress.model import Model


def proxy_loss(model: Model, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A scalar whose gradient says what matters, needing audio only.

    - with logits (CTC, classification): cross-entropy against the model's own best guess;
    - Whisper with its decoder: cross-entropy of the model's own greedy transcript;
    - a bare encoder: the last hidden state along a random direction, so that the size of the gradient estimates the
      size of the Jacobian (Hutchinson's estimator).
    """
    if model.architecture.endswith("ForConditionalGeneration"):
        return _transcript_loss(model, inputs)
    if model.anatomy.output_name(model.architecture) == "logits":
        logits = model(inputs).logits
        return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), logits.detach().argmax(-1).reshape(-1))
    hidden = model.encode(inputs)
    direction = torch.randn(hidden.shape, generator=generator).to(hidden.device)
    return (hidden * direction).sum() / hidden.shape[1] ** 0.5


def _transcript_loss(model: Model, inputs: torch.Tensor) -> torch.Tensor:
    from edgecompress.model.decoding import greedy_tokens, prompt

    with torch.no_grad():
        tokens = greedy_tokens(model, model.encode(inputs))
    start = prompt(model)
    longest = max(1, *(len(row) for row in tokens))  # where nothing is said, the end mark is the transcript
    ids = torch.full((len(tokens), len(start) + longest), int(model.network.config.eos_token_id))
    for row, said in enumerate(tokens):
        ids[row, : len(start) + len(said)] = torch.tensor(start + said)
    targets = ids.clone()
    targets[:, : len(start)] = -100
    for row, said in enumerate(tokens):
        targets[row, len(start) + len(said) + 1 :] = -100
    logits = model(input_features=inputs, decoder_input_ids=ids[:, :-1]).logits
    return nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets[:, 1:].reshape(-1), ignore_index=-100
    )
