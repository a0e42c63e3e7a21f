"""Front-end pruning: convolution channels that matter least are cut out before the encoder hears anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgecompress.errors import TechniqueError
from edgecompress.techniques.scored import ScoredPruning, without

if TYPE_CHECKING:
    import torch

    from edgecompress.model import Model
    from edgecompress.model.channels import FrontEndConv
    from edgecompress.techniques import Context
    from edgecompress.techniques.scored import Parts
    from edgecompress.techniques.statistics import Moments


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PruneFrontEnd(ScoredPruning):
    """Remove the channels of the waveform front end's convolutions that matter least, and slice what reads them.

    A third of HuBERT base's multiply-accumulates at 10 s are in its front end, in 4.4 % of its parameters: without this
    none gets more than 2.7 times cheaper there. Half of the channels is a quarter of the cost. Scores: ``l1``, the
    absolute sum of a channel's own weights and of those that read it; ``first_order``, |activation . gradient|;
    ``activation``, root mean square of the channel times the norm of the weights that read it, with the mean of what is
    removed folded into the next bias, where there is one (in HuBERT base only the projection's). ``scope = "layer"`` takes
    the same share from every convolution. One channel of each stays. Whisper's first convolution can lose channels, its
    second one is as wide as the encoder; MelHuBERT has no convolutions. Layer norms are then of the channels that are left.
    """

    score: Literal["l1", "first_order", "activation"] = "l1"
    compensate: Annotated[
        bool | Literal["mean"] | None,
        Field(description="fold the mean of what is removed into the next bias; default: with score activation"),
    ] = None
    kind: ClassVar[str] = "prune_front_end"
    noun: ClassVar[str] = "front-end channels"
    least: ClassVar[int] = 1

    def parts(self, model: Model) -> dict[int, tuple[int, ...]]:
        return {conv.number: conv.channels for conv in _sliceable(model)}

    def look(self, model: Model, context: Context) -> dict[int, Moments]:
        from edgecompress.techniques.channel_scores import channel_moments

        if self.compensation is None and self.score != "activation":
            return {}
        convs = _sliceable(model)
        if self.compensation is not None and (mute := [conv.number for conv in convs if conv.reader.bias is None]):
            note = f"no bias takes the mean of what convolutions {', '.join(map(str, mute))} lose"
            if note not in context.notes:
                context.notes.append(note)
        return channel_moments(model, context, self.kind, convs)

    def scores(self, model: Model, context: Context, seen: dict[int, Moments]) -> dict[int, torch.Tensor]:
        from edgecompress.techniques import channel_scores

        convs = _sliceable(model)
        if self.score == "l1":
            return channel_scores.l1_scores(convs)
        if self.score == "activation":
            return channel_scores.activation_scores(convs, seen)
        return channel_scores.first_order_scores(model, context, self.kind, convs)

    def make_up(self, model: Model, gone: Parts, seen: dict[int, Moments]) -> None:
        from edgecompress.techniques.channel_scores import fold_channel_means

        if self.compensation is None:
            return
        for number, channels in gone.items():
            conv = model.front_end.conv(number)
            place = {channel: i for i, channel in enumerate(conv.channels)}
            fold_channel_means(conv, [place[channel] for channel in channels], seen[number].mean)

    def cut(self, model: Model, gone: Parts) -> None:
        for number, channels in gone.items():
            model.keep_channels(number, without(model.front_end.conv(number).channels, channels))


def _sliceable(model: Model) -> list[FrontEndConv]:
    """The convolutions that can lose channels.

    Raises:
        TechniqueError: the family has none.
    """
    found = [conv for conv in model.front_end.convs if conv.may_lose_channels]
    if not found:
        raise TechniqueError(
            f"{model.family} has no convolutional front end to prune", hint="leave this step out: prune heads and units"
        )
    return found
