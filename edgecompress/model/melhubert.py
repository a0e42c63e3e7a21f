"""MelHuBERT: HuBERT's Transformer on log-mel frames instead of a stack of convolutions over samples.

Lin, Lee and Tang, "MelHuBERT: A Simplified HuBERT on Mel Spectrograms", 2023. A linear map takes one frame of 40 log-mel
bins (10 ms) or two side by side (20 ms) to the width of the encoder, which is transformers' own: grouped position
convolution, layer norm, post-norm layers. Pretraining adds a linear map to the clusters.

Importing this module makes ``model_type: melhubert`` known to transformers' ``AutoConfig`` in this process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, HubertConfig
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, ModelOutput, SequenceClassifierOutput
from transformers.models.hubert.modeling_hubert import HubertEncoder, HubertPreTrainedModel

MEL_SHIFT_MS = 10  # between two log-mel frames; a frame period of twice that takes two of them side by side


class MelHubertConfig(HubertConfig):
    """As HuBERT's, without its convolutions: ``feature_dim`` is the width of a frame, 40 bins for each 10 ms of it."""

    model_type = "melhubert"

    def __init__(
        self, feature_dim: int = 80, frame_period_ms: int = 20, num_clusters: int = 512, **settings: Any
    ) -> None:
        super().__init__(**{"layerdrop": 0.0, **settings})
        if frame_period_ms not in (MEL_SHIFT_MS, 2 * MEL_SHIFT_MS) or feature_dim % (frame_period_ms // MEL_SHIFT_MS):
            raise ValueError(
                f"frames of {frame_period_ms} ms and {feature_dim} features: 10 ms, or 20 ms of two halves"
            )
        if self.do_stable_layer_norm:
            raise ValueError(
                "MelHuBERT's layers have their norms after their blocks: do_stable_layer_norm must be false"
            )
        self.feature_dim = feature_dim
        self.frame_period_ms = frame_period_ms
        self.num_clusters = num_clusters

    @property
    def stacked_frames(self) -> int:
        """How many log-mel frames of 10 ms make one frame of the encoder."""
        return self.frame_period_ms // MEL_SHIFT_MS

    @property
    def num_mel_bins(self) -> int:
        return self.feature_dim // self.stacked_frames


class MelHubertPreTrainedModel(HubertPreTrainedModel):
    """What transformers must know: the name of the base model and of the input."""

    config_class = MelHubertConfig
    base_model_prefix = "melhubert"
    main_input_name = "input_features"


class MelHubertModel(MelHubertPreTrainedModel):
    """Log-mel frames in, hidden states out."""

    def __init__(self, config: MelHubertConfig) -> None:
        super().__init__(config)
        self.feature_projection = nn.Linear(config.feature_dim, config.hidden_size)
        self.encoder = HubertEncoder(config)
        self.post_init()

    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **ignored: object,
    ) -> BaseModelOutput:
        """(batch, frames, feature_dim) -> states of (batch, frames, width).

        ``attention_mask`` (batch, frames) is False where no audio fills the frame; ``mask_time_indices`` (batch, frames)
        is True where a frame is hidden: it becomes zero, the mean of normalised features, before the projection.
        """
        if mask_time_indices is not None:
            input_features = input_features.masked_fill(mask_time_indices.bool()[..., None], 0.0)
        hidden = self.feature_projection(input_features)
        additive = None
        if attention_mask is not None:
            filled = attention_mask.bool()
            hidden = hidden.masked_fill(~filled[..., None], 0.0)
            additive = torch.zeros(filled.shape, dtype=hidden.dtype, device=hidden.device)
            additive = additive.masked_fill(~filled, torch.finfo(hidden.dtype).min)[:, None, None, :]
            additive = additive.expand(-1, 1, filled.shape[1], -1)
        hidden = self.encoder.layer_norm(hidden + self.encoder.pos_conv_embed(hidden))
        hidden = self.encoder.dropout(hidden)
        states = [hidden]
        for layer in self.encoder.layers:
            said = layer(hidden, attention_mask=additive)
            hidden = said if isinstance(said, torch.Tensor) else said[0]  # transformers 4 gives a tuple
            states.append(hidden)
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=tuple(states) if output_hidden_states else None)


@dataclass
class MelHubertForPreTrainingOutput(ModelOutput):
    """``logits`` (batch, frames, clusters) besides the base model's."""

    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class MelHubertForPreTraining(MelHubertPreTrainedModel):
    """With the linear map to the clusters that masked frames are guessed among. It stays behind on export."""

    def __init__(self, config: MelHubertConfig) -> None:
        super().__init__(config)
        self.melhubert = MelHubertModel(config)
        self.cluster_head = nn.Linear(config.hidden_size, config.num_clusters)
        self.post_init()

    def forward(self, input_features: torch.Tensor, **more: Any) -> MelHubertForPreTrainingOutput:
        """As :class:`MelHubertModel`, and the logits of the clusters."""
        said = self.melhubert(input_features, **more)
        return MelHubertForPreTrainingOutput(
            logits=self.cluster_head(said.last_hidden_state),
            last_hidden_state=said.last_hidden_state,
            hidden_states=said.hidden_states,
        )


class MelHubertForCTC(MelHubertPreTrainedModel):
    """With a letter for every frame."""

    def __init__(self, config: MelHubertConfig) -> None:
        super().__init__(config)
        self.melhubert = MelHubertModel(config)
        self.dropout = nn.Dropout(config.final_dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(self, input_features: torch.Tensor, **more: Any) -> CausalLMOutput:
        """(batch, frames, feature_dim) -> logits (batch, frames, vocabulary)."""
        said = self.melhubert(input_features, **more)
        logits = self.lm_head(self.dropout(said.last_hidden_state))
        return CausalLMOutput(logits=logits, hidden_states=said.hidden_states)


class MelHubertForSequenceClassification(MelHubertPreTrainedModel):
    """With one label for a clip: a projection, the mean over the frames that audio fills, a classifier."""

    def __init__(self, config: MelHubertConfig) -> None:
        super().__init__(config)
        self.melhubert = MelHubertModel(config)
        if config.use_weighted_layer_sum:
            count = config.num_hidden_layers + 1
            self.layer_weights = nn.Parameter(torch.ones(count) / count)
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, int(config.num_labels or 2))
        self.post_init()

    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **more: Any,
    ) -> SequenceClassifierOutput:
        """(batch, frames, feature_dim) -> logits (batch, labels)."""
        weighted = bool(self.config.use_weighted_layer_sum)
        wanted = weighted or output_hidden_states
        said = self.melhubert(input_features, attention_mask=attention_mask, output_hidden_states=wanted, **more)
        hidden = said.last_hidden_state
        if weighted:
            weights = torch.softmax(self.layer_weights, dim=-1)
            hidden = (torch.stack(said.hidden_states, dim=1) * weights.view(-1, 1, 1)).sum(dim=1)
        hidden = self.projector(hidden)
        if attention_mask is None:
            pooled = hidden.mean(dim=1)
        else:
            filled = attention_mask.to(hidden.dtype)[..., None]
            pooled = (hidden * filled).sum(dim=1) / filled.sum(dim=1)
        return SequenceClassifierOutput(logits=self.classifier(pooled), hidden_states=said.hidden_states)


AutoConfig.register(MelHubertConfig.model_type, MelHubertConfig, exist_ok=True)
