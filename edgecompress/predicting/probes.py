"""Probe models: small HuBERTs with random weights, of which a calibration learns what things cost on a device.

Two depths by two widths by three kinds (dense, low rank, half of the heads), twelve in all, each an export like any other.
Convolutions grow with the width, so that no two features rise and fall together. Time does not depend on weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompress.errors import EdgeCompressError, ExportError, ParityError, RecipeError
from edgecompress.predicting import features
from edgecompress.predicting.features import Features
from edgecompress.records import Artifact, Source

KINDS = ("dense", "low-rank", "heads")
DEPTHS, WIDTHS = (2, 6), (192, 384)
HEAD_WIDTH = 64
SEED = 0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Shape:
    """One probe: layers, width, and what was done to it."""

    depth: int
    width: int
    kind: str

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.depth}x{self.width}"


@dataclass(frozen=True)
class Probe:
    """A probe that was made: its artifact, the folder it lies in, and its features."""

    shape: Shape
    artifact: Artifact
    folder: Path
    features: Features


def shapes(depths: Sequence[int] = DEPTHS, widths: Sequence[int] = WIDTHS) -> list[Shape]:
    """Every probe of these depths and widths.

    Raises:
        RecipeError: not two depths and two widths at least, or a width of which no two heads can be made.
    """
    if len(set(depths)) < 2 or len(set(widths)) < 2 or min(depths) < 1:
        text = f"depths {list(depths)} and widths {list(widths)}: two of each are needed to tell their costs apart"
        raise RecipeError(text, hint="e.g. --depths 2,6 --widths 192,384")
    if odd := [width for width in widths if width < 2 * HEAD_WIDTH or width % HEAD_WIDTH]:
        raise RecipeError(f"widths {odd}: not multiples of {HEAD_WIDTH}, two at least", hint="e.g. --widths 192,384")
    return [
        Shape(depth, width, kind) for depth in sorted(set(depths)) for width in sorted(set(widths)) for kind in KINDS
    ]


def made(
    wanted: Sequence[Shape], format: str, precision: str, folder: Path, failed: dict[str, str], say: Say | None = None
) -> Iterator[Probe]:
    """Make probes below ``folder``, one at a time. Why one could not be made is left in ``failed`` by its name.

    Raises:
        PluginNotFound: no such format.
        ModuleNotFoundError: torch, or what the format needs, is not installed here.
    """
    from edgecompress import exporters
    from edgecompress.exporters.golden import synthetic_clip

    for number, shape in enumerate(wanted, start=1):
        if say:
            say(f"making probe {number} of {len(wanted)}: {shape.name}")
        place = folder / shape.name
        try:
            artifact = exporters.export(
                model_of(shape), format, place, precision=precision, name=f"probe-{shape.name}", recipe=shape.name,
                calibration_clips=[synthetic_clip()],
            )  # fmt: skip
            yield Probe(shape, artifact, place, features.of_artifact(artifact, place))
        except (ExportError, ParityError, RecipeError) as why:
            failed[shape.name] = why.message


def model_of(shape: Shape) -> Any:
    """The probe as a model in torch.

    Raises:
        EdgeCompressError: a shape that cannot be made so.
    """
    from edgecompress import plugins, techniques
    from edgecompress.model import from_config_values

    model = from_config_values(config_of(shape), seed=SEED, source=source_of(shape))
    verbs: dict[str, tuple[str, dict[str, Any]]] = {
        "low-rank": ("factorize", {"rank": shape.width // 4, "matrices": "all"}),
        "heads": ("prune_heads", {"ratio": 0.5, "score": "l1"}),
    }
    if shape.kind in verbs:
        name, parameters = verbs[shape.kind]
        techniques.compress(model, [plugins.find("techniques", name)(**parameters)])
    elif shape.kind != "dense":
        raise EdgeCompressError(f"no probe is of kind {shape.kind!r}", hint=f"known are {', '.join(KINDS)}")
    return model


def config_of(shape: Shape) -> dict[str, Any]:
    """The ``config.json`` of a probe: HuBERT base, thinner and shorter, its proportions kept."""
    channels = shape.width * 2 // 3
    return {
        "model_type": "hubert", "hidden_size": shape.width, "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.width // HEAD_WIDTH, "intermediate_size": 4 * shape.width,
        "conv_dim": [channels] * 7,
    }  # fmt: skip


def source_of(shape: Shape) -> Source:
    """Where a probe comes from: its settings and a seed, no training."""
    from edgecompress.records import content_key

    return Source(name=f"probe-{shape.name}", sha256=content_key([config_of(shape), SEED]), random_weights=True)
