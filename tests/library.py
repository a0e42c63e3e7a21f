"""The library's own modules as references: what a loaded or compressed model must say, told by transformers itself."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from edgecompress.model import FAMILIES, Model
from edgecompress.model.network import Origin
from edgecompress.model.storage import dress, network_class
from edgecompress.records import Source
from tests.models import liven, tiny_config

GENERATION = {
    "decoder_start_token_id": 3,
    "no_timestamps_token_id": 4,
    "eos_token_id": 2,
    "begin_suppress_tokens": [2, 5],
    "suppress_tokens": [1],
}
DECODER_START = [3, 4, 7, 9]


def library_network(family: str, *, seed: int = 0, **variant: Any) -> Any:
    """A tiny network of the library's own classes, with seeded random weights that show every mistake."""
    torch.manual_seed(seed)
    network = build(tiny_config(family, **variant))
    with torch.no_grad():
        liven(SimpleNamespace(network=network, family=family), seed)  # type: ignore[arg-type]
    return network


def build(config: Any) -> Any:
    """The library's network for a config, in eval mode."""
    return network_class(config.architectures[0])._from_config(config, attn_implementation="eager").eval()


def ours(network: Any) -> Model:
    """An edgecompress model with the weights of a library network, which stays as it is."""
    config = network.config
    source = Source(name="tiny", sha256="0" * 64, random_weights=True)
    origin = Origin(config.to_dict(), None, source, extra_files={"generation_config.json": json.dumps(GENERATION)})
    twin = build(copy.deepcopy(config))  # a deepcopy of the network would share the class that folding takes apart
    twin.load_state_dict(network.state_dict())
    return dress(twin, FAMILIES[config.model_type], config.architectures[0], origin)


def encoder_of(network: Any) -> Any:
    """The library's encoder module, which has the list of layers."""
    return network.base_model.get_submodule(FAMILIES[network.config.model_type].encoder)


def matrix_of(network: Any, layer: int, name: str) -> nn.Linear:
    """A matrix of a library layer under our name: ``q_proj`` ... ``out_proj``, ``up``, ``down``."""
    anatomy = FAMILIES[network.config.model_type]
    found: nn.Linear = getattr(encoder_of(network), anatomy.stack)[layer].get_submodule(anatomy.path(name))
    return found


@torch.no_grad()
def says(network: Any, inputs: torch.Tensor, **more: Any) -> dict[str, torch.Tensor]:
    """All that a network, the library's or ours, answers: its output, its logits, and every hidden state."""
    architecture = network.config.architectures[0]
    if network.config.model_type == "whisper" and architecture != "WhisperForAudioClassification":
        more["decoder_input_ids"] = torch.tensor([DECODER_START] * inputs.shape[0])
    answer = network(inputs, output_hidden_states=True, **more)
    found: dict[str, torch.Tensor] = {}
    for name in ("last_hidden_state", "logits", "encoder_last_hidden_state"):
        if answer.get(name) is not None:
            found[name] = answer[name]
    states = answer.get("hidden_states", answer.get("encoder_hidden_states"))
    assert states is not None
    return {**found, **{f"hidden state {number}": state for number, state in enumerate(states)}}


def assert_same(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    """Every answer is the same to ``tolerance``, relative to the answer's greatest value (or 1, if that is less)."""
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        assert ours[name].shape == wanted.shape, name
        difference = (ours[name] - wanted).abs().max().item() / max(1.0, wanted.abs().max().item())
        assert difference <= tolerance, f"{name} is off by {difference:.2e}"


def assert_differ(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """The outputs differ by far more than rounding: a comparison with them could have failed."""
    name = "logits" if "logits" in theirs else "last_hidden_state"
    assert ours[name].shape != theirs[name].shape or float((ours[name] - theirs[name]).abs().max()) > 1e-2


def with_fewer_layers(network: Any, kept: Sequence[int]) -> Any:
    """A library network built with fewer layers, that has the weights of the layers ``kept``."""
    config = copy.deepcopy(network.config)
    config.num_hidden_layers = len(kept)
    if config.model_type == "whisper":
        config.encoder_layers = len(kept)  # in transformers 5 another name of the same number, in 4 another number
    anatomy = FAMILIES[config.model_type]
    stack = re.escape(f"{anatomy.encoder}.{anatomy.stack}.".lstrip("."))
    state = {}
    for name, value in network.state_dict().items():
        found = re.search(rf"(?<={stack})\d+(?=\.)", name)
        if name == "layer_weights":
            value = value[[0, *(number + 1 for number in kept)]]
        elif "rel_attn_embed" in name:
            found = None  # WavLM's shared position bias always belongs to the first layer
        if found is None:
            state[name] = value
        elif int(found[0]) in kept:
            state[f"{name[: found.start()]}{list(kept).index(int(found[0]))}{name[found.end() :]}"] = value
    shorter = build(config)
    shorter.load_state_dict(state)
    return shorter


def with_less_context(network: Any, positions: int) -> Any:
    """A library Whisper built for a shorter context, with the first ``positions`` of the position table."""
    config = copy.deepcopy(network.config)
    config.max_source_positions = positions
    state = dict(network.state_dict())
    table = next(name for name in state if name.endswith("encoder.embed_positions.weight"))
    state[table] = state[table][:positions]
    shorter = build(config)
    shorter.load_state_dict(state)
    return shorter
