"""Whisper's own decoder on top of whatever encoder: hidden states in, text out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from edgecompress.errors import ModelError

if TYPE_CHECKING:
    from edgecompress.model.network import Model

MAX_NEW_TOKENS = 128  # 30 s of brisk speech; a model that loops would go on to 448


def prompt(model: Model) -> list[int]:
    """Start of transcript, no time stamps: what the decoder is given before the first word.

    Multilingual models are told to transcribe in ``language`` of ``generation_config.json``, English if it has none.
    """
    settings = generation_settings(model)
    start, plain = int(settings["decoder_start_token_id"]), int(settings["no_timestamps_token_id"])
    if not settings.get("lang_to_id"):
        return [start, plain]
    language = str(settings.get("language") or "en").strip("<|>")
    try:
        return [start, int(settings["lang_to_id"][f"<|{language}|>"]), int(settings["task_to_id"]["transcribe"]), plain]
    except (KeyError, TypeError) as cause:
        raise ModelError(
            f"generation_config.json has no tokens to transcribe {language!r}",
            hint="set language in generation_config.json to one of lang_to_id, as <|en|>",
        ) from cause


def generation_settings(model: Model) -> dict[str, Any]:
    """The folder's ``generation_config.json``, over what ``config.json`` says.

    Raises:
        ModelError: neither names the token that asks for text without time stamps.
    """
    settings = {**model.origin.config, **json.loads(model.origin.extra_files.get("generation_config.json", "{}"))}
    if settings.get("no_timestamps_token_id") is None:
        raise ModelError(
            "the model folder does not say which token asks for text without time stamps",
            hint="put generation_config.json beside config.json",
        )
    return settings


@torch.no_grad()
def greedy_tokens(model: Model, hidden_states: torch.Tensor, max_new_tokens: int = MAX_NEW_TOKENS) -> list[list[int]]:
    """The likeliest token after the likeliest token, without the end mark: one list a row of (batch, frames, width).

    The prompt, and the tokens that may not be said, are those of the model's generation_config.
    """
    from transformers.modeling_outputs import BaseModelOutput

    network = model.network
    settings = generation_settings(model)
    start = prompt(model)
    banned = torch.tensor(settings.get("suppress_tokens") or [], dtype=torch.long)
    banned_first = torch.tensor(settings.get("begin_suppress_tokens") or [], dtype=torch.long)
    end = int(settings["eos_token_id"])
    encoder_outputs = BaseModelOutput(last_hidden_state=hidden_states)
    ids = torch.tensor([start] * hidden_states.shape[0])
    said: list[list[int]] = [[] for _ in range(hidden_states.shape[0])]
    done = torch.zeros(hidden_states.shape[0], dtype=torch.bool)
    cache: Any = None
    room = int(network.config.max_target_positions) - len(start)  # the decoder has no position for more
    for step in range(min(max_new_tokens, room)):
        output = network(encoder_outputs=encoder_outputs, decoder_input_ids=ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits = output.logits[:, -1]
        logits[:, banned] = -torch.inf
        if step == 0:
            logits[:, banned_first] = -torch.inf
        best = logits.argmax(-1)
        done |= best == end
        if bool(done.all()):
            break
        for row in torch.nonzero(~done).reshape(-1).tolist():
            said[row].append(int(best[row]))
        ids = best[:, None]
    return said


def transcribe(model: Model, hidden_states: torch.Tensor) -> list[str]:
    """Text for each row of the encoder's (batch, frames, width).

    Raises:
        ModelError: the model folder had no tokenizer.json.
    """
    from tokenizers import Tokenizer

    text = model.origin.extra_files.get("tokenizer.json")
    if text is None:
        raise ModelError(
            "the model folder has no tokenizer.json, so its words cannot be read",
            hint="put tokenizer.json beside config.json",
        )
    tokenizer = Tokenizer.from_str(text)
    return [
        tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in greedy_tokens(model, hidden_states)
    ]
