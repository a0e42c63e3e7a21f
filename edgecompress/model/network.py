"""A network we may change: a transformers model with explicit attention, its anatomy, and the edits it has had."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgecompress.errors import ModelError
from edgecompress.model import edits as edit_kinds
from edgecompress.model.anatomy import Anatomy
from edgecompress.model.attention import GatedSelfAttention
from edgecompress.model.channels import FrontEnd
from edgecompress.model.edits import Edit, with_edit
from edgecompress.model.layer import Layer
from edgecompress.records import Source

if TYPE_CHECKING:
    from edgecompress.model.inputs import Inputs

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
    """A Transformer that edgecompress can change, and still the torch module it was.

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
        self._layers = [Layer(module, i, anatomy) for i, module in enumerate(self.stack)]
        self._front_end = FrontEnd(self.base, anatomy)
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

    def skeleton(self) -> Model:
        """A copy on torch's meta device: shapes without numbers. Edits can be carried out on it and costs be counted."""
        same = (self.origin, self.edits, *(layer.units for layer in self._layers))  # never changed, only replaced
        known: dict[int, Any] = {id(value): value for value in same}
        for parameter in self.parameters():
            known[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        for buffer in self.buffers():
            known[id(buffer)] = buffer.to("meta")
        return copy.deepcopy(self, known)

    def become(self, other: Model) -> None:
        """Take over another model's network, structure and edits, which then belong to this one.

        What a folder says besides (source, preprocessor, tokenizer) stays, unless the other brings its own.
        """
        self.network = other.network
        self.anatomy, self.architecture = other.anatomy, other.architecture
        self.edits, self.folded_parameters, self._layers = other.edits, other.folded_parameters, other._layers
        self._front_end = other._front_end
        self.origin = replace(
            self.origin,
            config=other.origin.config,
            preprocessor=other.origin.preprocessor or self.origin.preprocessor,
            extra_files={**self.origin.extra_files, **other.origin.extra_files},
        )
        self.train(other.training)

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
    def stack(self) -> nn.ModuleList:
        """The library's list of encoder layers, those that are left."""
        found: nn.ModuleList = getattr(self.encoder_module, self.anatomy.stack)
        return found

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def has_logits(self) -> bool:
        """Whether :meth:`logits` has an answer."""
        return self.anatomy.output_name(self.architecture) == "logits" or hasattr(self.network, "cluster_head")

    @property
    def layers(self) -> list[Layer]:
        """The encoder layers that are left, first to last."""
        return list(self._layers)

    @property
    def front_end(self) -> FrontEnd:
        """The convolutions before the encoder."""
        return self._front_end

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

    def keep_channels(self, conv: int, channels: Sequence[int]) -> None:
        """Keep only these output channels (original numbers) of a front-end convolution (from 0)."""
        self._change(edit_kinds.KeepChannels, conv=conv, channels=tuple(sorted(channels)))

    def keep_layers(self, layers: Sequence[int]) -> None:
        """Keep only these layers (original numbers)."""
        self._change(edit_kinds.KeepLayers, layers=tuple(sorted(layers)))

    def keep_context(self, positions: int) -> None:
        """Let Whisper's encoder see only the first ``positions`` frames of 20 ms."""
        self._change(edit_kinds.KeepContext, positions=positions)

    def factor(
        self,
        layer: int,
        matrix: edit_kinds.Matrix,
        rank: int,
        matrices: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        """Factor a matrix of a layer at ``rank``: into ``matrices``, (out, rank) and (rank, in), or the best by its weights."""
        if matrices is not None:
            self.layer(layer).factor(matrix, rank, matrices)  # the edit then finds a product of its rank, and leaves it
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
        stack.training = self.stack.training
        setattr(self.encoder_module, self.anatomy.stack, stack)
        weights = getattr(self.network, "layer_weights", None)
        if weights is not None:  # a learned sum over hidden states: the projected input and one for each layer
            rows = [0] + [before.index(number) + 1 for number in numbers]
            self.network.layer_weights = nn.Parameter(weights.detach()[rows])

    def select_context(self, positions: int) -> None:
        """Carry out :class:`edits.KeepContext`."""
        now = self.context_positions
        if now is None:
            raise ValueError(f"{self.family} has no fixed context of audio")
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

        Waveform families: (1, samples). MelHuBERT: (1, frames, log-mel features). Whisper: (1, mel bins, frames of the
        whole context). For BERT a clip is token numbers (tokens,), int64, and becomes (1, tokens); for ViT pixels
        (channels, height, width), float32, as its image processor makes them, and becomes (1, channels, height, width).

        Raises:
            AudioError: audio too short, or not mono.
            ModelError: not what the family takes.
        """
        from edgecompress.model.features import extract

        return extract(self, clip)

    def normalize_log_mel(self, clips: Iterable[np.ndarray]) -> None:
        """Let MelHuBERT's features have mean 0 and deviation 1 over these clips, in every bin; saved with the model.

        Raises:
            ModelError: another family, or no clips.
        """
        from edgecompress.model import log_mel

        if self.anatomy.front_end_kind != "log_mel":
            raise ModelError(f"{self.family} has no log-mel features to normalise", hint="only MelHuBERT has")
        bins = int(self.network.config.num_mel_bins)
        preprocessor = log_mel.preprocessor(bins, *log_mel.statistics(clips, bins))
        self.origin = replace(self.origin, preprocessor=preprocessor)

    def export_input(self, clip: np.ndarray, takes: str | None = None) -> torch.Tensor:
        """One clip as an exported file of the form ``takes`` (:func:`edgecompress.model.forms.form_of`) is fed, batch 1."""
        from edgecompress.model.forms import export_input

        return export_input(self, clip, takes)

    def batches(self, clips: Sequence[np.ndarray], size: int = 8, takes: str | None = None) -> Iterator[torch.Tensor]:
        """Inputs for clips, in order; ``size`` at a time where all have one length, else one by one.

        They are the encoder's, or those of an exported file of the form ``takes``. What takes any length goes one by
        one, since :meth:`hidden_states` and an exported file know of no padding; :meth:`collate` does.
        """
        if self.context_positions is None or takes == "waveform":
            size = 1
        for start in range(0, len(clips), size):
            some = clips[start : start + size]
            yield torch.cat([self.features(clip) if takes is None else self.export_input(clip, takes) for clip in some])

    def filled_frames(self, clip: np.ndarray) -> int | None:
        """How many of the encoder's frames a clip fills; the rest of Whisper's context is padding. None: all of them."""
        if self.context_positions is None:
            return None
        samples_per_position = MEL_HOP * MEL_FRAMES_PER_POSITION
        return min(self.context_positions, max(1, -(-clip.size // samples_per_position)))

    def collate(self, clips: Sequence[np.ndarray], positions: int | None = None) -> Inputs:
        """Clips as one batch, padded to the longest of it.

        Whisper: to as many positions (20 ms) as the longest clip fills, rounded up to seconds, at most the context;
        or to ``positions``, e.g. the whole context, which is what the encoder sees when it is put to use.
        """
        from edgecompress.model.inputs import collate

        return collate(self, clips, positions)

    def states(self, inputs: Inputs, hide: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Hidden states of a padded batch, in the mode that the model is in; gradients flow.

        State 0 is the input of the first layer, then the output of each layer that is left (Whisper's last one after
        the final norm), each (batch, frames, width). A clip says in company what it says alone; only Whisper hears the
        silence that it is padded with, as it does when it is put to use. ``hide`` (batch, frames) says which frames to
        hide: MelHuBERT sets them to zero before the projection, Whisper to silence, the others put their learned
        vector there. Nothing is random but dropout: there is no SpecAugment and no LayerDrop.
        """
        from edgecompress.model.states import states

        return states(self, inputs, hide)

    def logits(self, inputs: Inputs) -> torch.Tensor:
        """What the head says of a padded batch: (batch, frames, labels), or (batch, labels) of whole clips.

        Raises:
            ModelError: the model has no head.
        """
        from edgecompress.model.states import logits

        return logits(self, inputs)

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
