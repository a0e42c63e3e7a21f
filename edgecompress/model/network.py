"""A network we may change: a transformers model with explicit attention, its anatomy, and the edits it has had."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from edgecompress.errors import ModelError
from edgecompress.model import edits as edit_kinds
from edgecompress.model.anatomy import Anatomy
from edgecompress.model.attention import GatedSelfAttention
from edgecompress.model.edits import Edit, with_edit
from edgecompress.model.layer import Layer
from edgecompress.records import Source

SAMPLE_RATE = 16000
MEL_HOP = 160  # samples between two mel frames
MEL_FRAMES_PER_POSITION = 2  # the stride of Whisper's second convolution


@dataclass(frozen=True)
class Origin:
    """What a model folder said about itself besides its weights; written back unchanged."""

    config: dict[str, Any]
    preprocessor: dict[str, Any] | None
    source: Source
    source_bytes: int = 0
    extra_files: dict[str, str] = field(default_factory=dict)


class Model(nn.Module):
    """A speech Transformer that edgecompress can change, and still the torch module it was.

    Calling it calls the transformers module; attributes it does not have are looked up there (``config``,
    ``generate``, ``encoder`` ...). ``network`` is that module. Structure changes only through :meth:`change`.
    """

    network: Any

    def __init__(self, network: nn.Module, anatomy: Anatomy, architecture: str, origin: Origin) -> None:
        super().__init__()
        self.network = network
        self.anatomy = anatomy
        self.architecture = architecture
        self.origin = origin
        self.edits: tuple[Edit, ...] = ()
        self.folded_parameters = 0
        self._layers = [Layer(module, i, anatomy) for i, module in enumerate(self.encoder_module.layers)]
        self.eval()

    # --- still a torch module ---
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "network":
                raise
            return getattr(super().__getattr__("network"), name)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The weights under the names that transformers gives them."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights under the names that transformers gives them."""
        return self.network.load_state_dict(*args, **kwargs)

    def clone(self) -> Model:
        """An independent copy."""
        twin = copy.deepcopy(self)
        return twin

    # --- parts ---
    @property
    def family(self) -> str:
        return self.anatomy.family

    @property
    def base(self) -> Any:
        """The model without a task head."""
        return self.network.base_model

    @property
    def encoder_module(self) -> Any:
        return self.base.get_submodule(self.anatomy.encoder)

    @property
    def layers(self) -> list[Layer]:
        """The encoder layers that are left, first to last."""
        return list(self._layers)

    def layer(self, number: int) -> Layer:
        """The layer with this original number.

        Raises:
            ModelError: it was dropped, or never was.
        """
        for layer in self._layers:
            if layer.number == number:
                return layer
        left = ", ".join(str(layer.number) for layer in self._layers)
        raise ModelError(f"there is no layer {number}", hint=f"layers left (original numbers): {left}")

    @property
    def hidden_size(self) -> int:
        return int(self.network.config.hidden_size)

    @property
    def context_positions(self) -> int | None:
        """How many frames (20 ms) Whisper's encoder sees; None for families that take any length."""
        return int(self.encoder_module.embed_positions.num_embeddings) if self.family == "whisper" else None

    @property
    def max_seconds(self) -> float | None:
        """The longest audio the encoder can see, seconds; None when any length will do."""
        if self.context_positions is None:
            return None
        return self.context_positions * MEL_FRAMES_PER_POSITION * MEL_HOP / SAMPLE_RATE

    # --- structure ---
    def change(self, edit: Edit) -> None:
        """Carry out an edit and remember it.

        Raises:
            ModelError: the edit names what this model does not have.
        """
        try:
            edit.carry_out(self)
        except ValueError as cause:
            raise ModelError(
                f"cannot carry out {edit!r}: {cause}", hint="indices are original ones, and must still be there"
            ) from cause
        self.edits = with_edit(self.edits, edit)

    def _change(self, kind: type[Edit], **values: Any) -> None:
        try:
            edit = kind(**values)
        except ValueError as cause:
            raise ModelError(
                f"cannot carry out {kind.__name__} {values}: {cause}", hint="see edgecompress.model.edits"
            ) from cause
        self.change(edit)

    def keep_heads(self, layer: int, heads: Sequence[int]) -> None:
        """Keep only these heads (original numbers) of a layer (original number)."""
        self._change(edit_kinds.KeepHeads, layer=layer, heads=tuple(sorted(heads)))

    def keep_units(self, layer: int, units: Sequence[int]) -> None:
        """Keep only these feed-forward units (original numbers) of a layer (original number)."""
        self._change(edit_kinds.KeepUnits, layer=layer, units=tuple(sorted(units)))

    def keep_layers(self, layers: Sequence[int]) -> None:
        """Keep only these layers (original numbers)."""
        self._change(edit_kinds.KeepLayers, layers=tuple(sorted(layers)))

    def keep_context(self, positions: int) -> None:
        """Let Whisper's encoder see only the first ``positions`` frames of 20 ms."""
        self._change(edit_kinds.KeepContext, positions=positions)

    def factor(self, layer: int, matrix: edit_kinds.Matrix, rank: int) -> None:
        """Factor a matrix of a layer by singular value decomposition at ``rank``."""
        self._change(edit_kinds.Factor, layer=layer, matrix=matrix, rank=rank)

    def select_layers(self, numbers: Sequence[int]) -> None:
        """Carry out :class:`edits.KeepLayers`: WavLM's shared position bias moves to the first layer that is left."""
        if not numbers:
            raise ValueError("at least one layer must be left")
        before = [layer.number for layer in self._layers]
        first = self._layers[0].attention
        kept = [self.layer(number) for number in numbers]
        if isinstance(first, GatedSelfAttention) and kept[0].attention is not first:
            kept[0].attention.rel_attn_embed = first.rel_attn_embed
            del first.rel_attn_embed
        self._layers = kept
        stack = nn.ModuleList([layer.module for layer in kept])
        stack.training = self.encoder_module.layers.training
        self.encoder_module.layers = stack
        weights = getattr(self.network, "layer_weights", None)
        if weights is not None:  # a learned sum over hidden states: the projected input and one for each layer
            rows = [0] + [before.index(number) + 1 for number in numbers]
            self.network.layer_weights = nn.Parameter(weights.detach()[rows])

    def select_context(self, positions: int) -> None:
        """Carry out :class:`edits.KeepContext`."""
        now = self.context_positions
        if now is None:
            raise ValueError(f"{self.family} has no fixed context: it takes audio of any length")
        if positions > now:
            raise ValueError(f"the encoder sees {now} positions; {positions} would be more")
        encoder = self.encoder_module
        table = encoder.embed_positions
        shorter = nn.Embedding(positions, table.embedding_dim, device="meta")
        shorter.weight = nn.Parameter(table.weight.detach()[:positions].clone(), requires_grad=False)
        encoder.embed_positions = shorter.train(table.training)
        encoder.max_source_positions = positions
        self.network.config.max_source_positions = positions
        encoder.config.max_source_positions = positions

    # --- audio in, hidden states out ---
    def features(self, clip: np.ndarray) -> torch.Tensor:
        """One clip of 16 kHz mono audio, float32 in [-1, 1], as the encoder's input of batch 1.

        Waveform families: (1, samples). Whisper: (1, mel bins, frames of the whole context).
        """
        from edgecompress.model.features import extract

        return extract(self, clip)

    def batches(self, clips: Sequence[np.ndarray], size: int = 8) -> Iterator[torch.Tensor]:
        """Inputs for clips, in order; ``size`` at a time where all have one length, else one by one.

        Families that take any length go one by one: padding would change what a group-norm front end says.
        """
        if self.context_positions is None:
            size = 1
        for start in range(0, len(clips), size):
            yield torch.cat([self.features(clip) for clip in clips[start : start + size]])

    def filled_frames(self, clip: np.ndarray) -> int | None:
        """How many of the encoder's frames a clip fills; the rest of Whisper's context is padding. None: all of them."""
        if self.context_positions is None:
            return None
        samples_per_position = MEL_HOP * MEL_FRAMES_PER_POSITION
        return min(self.context_positions, max(1, -(-clip.size // samples_per_position)))

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """The encoder's last hidden state: (batch, frames, width)."""
        module = self.encoder_module if self.family == "whisper" else self.base
        return module(inputs).last_hidden_state

    def hidden_states(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The input of the first layer and the output of each layer that is left, each (batch, frames, width)."""
        module = self.encoder_module if self.family == "whisper" else self.base
        return tuple(module(inputs, output_hidden_states=True).hidden_states)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode inside (no dropout, no layer dropped at random); afterwards every part is in the mode it was in."""
        own, modes = self.training, {module: module.training for module in self.modules()}
        try:
            self.eval()
            yield
        finally:
            for module in self.modules():
                module.training = modes.get(module, own)  # a part that is new since then goes with the whole
