"""Whisper's decoder on top of any encoder: the likeliest token after the likeliest token."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from edgecompress.errors import ModelError
from edgecompress.model.decoding import greedy_tokens, transcribe
from tests.library import GENERATION, library_network, ours
from tests.models import example, tiny


def without_cache(network: Any, inputs: torch.Tensor, settings: dict[str, Any], length: int) -> list[int]:
    """The same for one clip by the library's own module, that hears all tokens again at each step."""
    ids = [settings["decoder_start_token_id"], settings["no_timestamps_token_id"]]
    start = len(ids)
    while len(ids) < length:
        logits = network(inputs, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
        banned = [*settings["suppress_tokens"], *(settings["begin_suppress_tokens"] if len(ids) == start else [])]
        logits[banned] = -torch.inf
        if int(logits.argmax()) == settings["eos_token_id"]:
            break
        ids.append(int(logits.argmax()))
    return ids[start:]


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_the_likeliest_that_may_be_said_until_the_end_mark(seed: int) -> None:
    network = library_network("whisper", seed=seed, head="ForConditionalGeneration", max_target_positions=24)
    model = ours(network)
    inputs = example(model, batch=3, seed=seed)
    wanted = [without_cache(network, inputs[row : row + 1], GENERATION, 24) for row in range(3)]
    said = greedy_tokens(model, model.encode(inputs))
    assert said == wanted
    assert not any({1, 2} & set(row) for row in said)
    assert all(len(row) <= 22 for row in said)  # the decoder has 24 positions, and two are the prompt


def test_the_token_limit_is_kept() -> None:
    model = ours(library_network("whisper", seed=2, head="ForConditionalGeneration"))
    hidden = model.encode(example(model, batch=2))
    assert all(len(row) <= 3 for row in greedy_tokens(model, hidden, max_new_tokens=3))


def test_a_folder_that_does_not_say_how_a_transcript_starts_is_refused() -> None:
    model = tiny("whisper", head="ForConditionalGeneration")
    with pytest.raises(ModelError, match="without time stamps") as caught:
        greedy_tokens(model, model.encode(example(model)))
    assert "generation_config" in caught.value.hint


def test_a_trimmed_encoder_feeds_the_same_decoder() -> None:
    model = ours(library_network("whisper", head="ForConditionalGeneration"))
    model.keep_context(40)
    assert len(greedy_tokens(model, model.encode(example(model, batch=2)), max_new_tokens=4)) == 2


def test_text_is_read_with_the_folders_own_tokenizer() -> None:
    model = ours(library_network("whisper", head="ForConditionalGeneration"))
    vocabulary = {f"word{number}": number for number in range(40)}
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "word0"}}
    model.origin.extra_files["tokenizer.json"] = json.dumps(tokenizer)
    hidden = model.encode(example(model))
    assert transcribe(model, hidden) == [" ".join(f"word{token}" for token in greedy_tokens(model, hidden)[0])]
