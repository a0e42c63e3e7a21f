"""Self-attention that can lose heads: the same module for every family, and WavLM's with its gated position bias.

transformers 5 removed ``prune_heads``, and WavLM's own attention cannot be sliced at all: its gate reads the layer's
*input* split by the original head numbers, and all layers share one position bias that has a row for every original
head. Here a head keeps its original number, and gate and bias are indexed by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class SelfAttention(nn.Module):
    """Multi-head self-attention over the heads that are left (Vaswani et al., 2017).

    ``heads`` holds the original numbers of the heads that are left. Parameter names are those of transformers. ``watch``,
    where it is set, is shown the attention weights of each pass, (batch, heads left, time, time), before dropout.
    """

    watch: Callable[[torch.Tensor], None] | None = None

    def __init__(self, original: Any, returns: int, names: Mapping[str, str] | None = None) -> None:
        """Take over the projections of a transformers attention module; ``returns`` is how many values it gave back.

        ``names`` says what the module calls its ``PROJECTIONS``; one that is not in it stands outside (BERT's
        ``out_proj``, which the library calls after this module), and is left to who calls it.
        """
        super().__init__()
        self.names = dict(names or {name: name for name in PROJECTIONS})
        for name in self.names.values():
            setattr(self, name, getattr(original, name))
        self.head_dim = int(_first(original, "head_dim", "attention_head_size"))
        self.original_heads = int(_first(original, "num_heads", "num_attention_heads"))
        self.heads: tuple[int, ...] = tuple(range(self.original_heads))
        dropout = _first(original, "attention_dropout", "dropout")
        self.dropout = float(dropout.p if isinstance(dropout, nn.Dropout) else dropout)
        self.returns = returns

    @property
    def num_heads(self) -> int:
        return len(self.heads)

    def projected(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """What one of ``PROJECTIONS`` makes of ``x``; ``x`` itself where that one stands outside."""
        said: torch.Tensor = getattr(self, self.names[name])(x) if name in self.names else x
        return said

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, time, heads * head_dim) -> (batch, heads, time, head_dim)."""
        return x.view(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def context(self, hidden_states: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """What the heads say before ``out_proj``: (batch, time, width) -> (batch, time, heads * head_dim).

        ``bias`` is added to the scores: (batch or 1, heads or 1, time, time). While a training runs without dropout,
        torch's fused kernel does it: the same to 1e-5 at half the time. In eval mode the steps are explicit, as they
        are traced and as the library takes them.
        """
        query = self.split(self.projected("q_proj", hidden_states) * self.head_dim**-0.5)
        key = self.split(self.projected("k_proj", hidden_states))
        value = self.split(self.projected("v_proj", hidden_states))
        if self.training and not self.dropout and self.watch is None:
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        else:
            mixed = torch.matmul(self.weights(query, key, bias), value)
        return mixed.transpose(1, 2).reshape(
            hidden_states.shape[0], hidden_states.shape[1], self.num_heads * self.head_dim
        )

    def weights(self, query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """How much each frame attends to each: (batch, heads, time, head_dim) twice -> (batch, heads, time, time)."""
        scores = torch.matmul(query, key.transpose(2, 3))
        if bias is not None:
            scores = scores + bias
        weights = torch.softmax(scores, dim=-1)
        if self.watch is not None:
            self.watch(weights)
        return nn.functional.dropout(weights, p=self.dropout, training=self.training)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **ignored: object
    ) -> tuple[torch.Tensor | None, ...]:
        """(batch, time, width) -> the same shape, in the tuple that the family's layer unpacks."""
        inner = self.context(hidden_states, additive(attention_mask, hidden_states)) if self.heads else hidden_states
        return (self.projected("out_proj", inner), None, None)[: self.returns]


class GatedSelfAttention(SelfAttention):
    """WavLM's attention: a relative position bias shared by all layers, scaled by a gate on the layer's input.

    Chen et al., "WavLM: Large-Scale Self-Supervised Pre-Training for Full Stack Speech Processing", 2022, section III.
    """

    gru_rel_pos_const: nn.Parameter
    gru_rel_pos_linear: nn.Linear
    rel_attn_embed: nn.Embedding

    def __init__(self, original: Any, returns: int, names: Mapping[str, str] | None = None) -> None:
        super().__init__(original, returns, names)
        self.gru_rel_pos_const = original.gru_rel_pos_const
        self.gru_rel_pos_linear = original.gru_rel_pos_linear
        self.num_buckets = int(original.num_buckets)
        self.max_distance = int(original.max_distance)
        embedding = getattr(original, "rel_attn_embed", None)
        if embedding is not None:
            self.rel_attn_embed = embedding

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **ignored: object,
    ) -> tuple[torch.Tensor | None, ...]:
        """As :class:`SelfAttention`; ``position_bias`` (1, original heads, time, time) is made by the first layer."""
        if position_bias is None:
            position_bias = self.compute_bias(hidden_states.shape[1], hidden_states.device)
        if not self.heads:
            return self.projected("out_proj", hidden_states), None, position_bias
        kept = torch.tensor(self.heads, dtype=torch.long, device=hidden_states.device)
        bias = self.gate(hidden_states).index_select(1, kept) * position_bias.index_select(1, kept)
        mask = additive(attention_mask, hidden_states)
        inner = self.context(hidden_states, bias if mask is None else bias + mask)
        return self.projected("out_proj", inner), None, position_bias

    def gate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """How much each original head listens to the position bias: (batch, time, width) -> (batch, heads, time, 1)."""
        batch, time, _ = hidden_states.shape
        split = hidden_states.view(batch, time, self.original_heads, -1).permute(0, 2, 1, 3)
        projected = self.gru_rel_pos_linear(split).view(batch, self.original_heads, time, 2, 4).sum(-1)
        gate_a, gate_b = torch.sigmoid(projected).chunk(2, dim=-1)
        return gate_a * (gate_b * self.gru_rel_pos_const - 1.0) + 2.0

    def compute_bias(self, time: int, device: torch.device) -> torch.Tensor:
        """The learned bias of every pair of frames: (1, original heads, time, time)."""
        frames = torch.arange(time, dtype=torch.long, device=device)
        values = self.rel_attn_embed(self.bucket(frames[None, :] - frames[:, None]))
        return values.permute(2, 0, 1).unsqueeze(0)

    def bucket(self, distance: torch.Tensor) -> torch.Tensor:
        """Which of the buckets a signed distance in frames falls into: exact when near, logarithmic when far."""
        half = self.num_buckets // 2
        exact = half // 2
        sign = (distance > 0).to(torch.long) * half
        distance = distance.abs()
        far = torch.log(distance.float() / exact) / math.log(self.max_distance / exact) * (half - exact)
        far = torch.clamp((exact + far).to(torch.long), max=half - 1)
        return sign + torch.where(distance < exact, distance, far)


def _first(module: Any, *names: str) -> Any:
    """What a module has under the first of these names that it knows."""
    return next(getattr(module, name) for name in names if hasattr(module, name))


def additive(mask: torch.Tensor | None, hidden_states: torch.Tensor) -> torch.Tensor | None:
    """Any mask the library hands us as an additive one: (batch, time) or (batch, 1, time, time) -> the latter."""
    if mask is None:
        return None
    if mask.dim() == 2:
        mask = mask.bool()[:, None, None, :]
    if mask.is_floating_point():
        return mask
    lowest = torch.finfo(hidden_states.dtype).min
    return torch.zeros_like(mask, dtype=hidden_states.dtype).masked_fill(~mask.bool(), lowest)
