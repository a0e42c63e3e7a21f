"""Whisper's own decoder on top of whatever encoder: hidden states in, text out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgecompress.errors import ModelError
from edgecompress.transcript import MAX_NEW_TOKENS, Rules, greedy, prompt_of, read, rules_of

if TYPE_CHECKING:
    from edgecompress.model.network import Model


def prompt(model: Model) -> list[int]:
    """What the decoder is given before the first word, see :func:`edgecompress.transcript.prompt_of`."""
    return list(prompt_of(generation_settings(model)))


def rules(model: Model) -> Rules:
    """How the model's transcripts start and end, and what may not be said in them; ModelError if it does not say."""
    return rules_of(generation_settings(model))


def generation_settings(model: Model) -> dict[str, Any]:
    """The folder's ``generation_config.json``, over what ``config.json`` says."""
    return {
        "max_target_positions": int(model.network.config.max_target_positions),
        **model.origin.config,
        **json.loads(model.origin.extra_files.get("generation_config.json", "{}")),
    }


@torch.no_grad()
def greedy_tokens(model: Model, hidden_states: torch.Tensor, max_new_tokens: int = MAX_NEW_TOKENS) -> list[list[int]]:
    """The likeliest token after the likeliest token, without the end mark: one list a row of (batch, frames, width).

    The prompt, and the tokens that may not be said, are those of the model's generation_config.
    """
    from transformers.modeling_outputs import BaseModelOutput

    encoder_outputs = BaseModelOutput(last_hidden_state=hidden_states)
    cache: Any = None

    def step(ids: np.ndarray) -> np.ndarray:
        nonlocal cache
        given = torch.from_numpy(ids).to(hidden_states.device)
        output = model.network(
            encoder_outputs=encoder_outputs, decoder_input_ids=given, past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        logits: np.ndarray = output.logits[:, -1].float().cpu().numpy()
        return logits

    return greedy(step, rules(model), hidden_states.shape[0], max_new_tokens)


def transcribe(model: Model, hidden_states: torch.Tensor) -> list[str]:
    """Text for each row of the encoder's (batch, frames, width).

    Raises:
        ModelError: the model folder had no tokenizer.json.
    """
    text = model.origin.extra_files.get("tokenizer.json")
    if text is None:
        raise ModelError(
            "the model folder has no tokenizer.json, so its words cannot be read",
            hint="put tokenizer.json beside config.json",
        )
    return [read(text, tokens) for tokens in greedy_tokens(model, hidden_states)]
