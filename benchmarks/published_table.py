"""The published table, rebuilt: 34 compressed MelHuBERTs made by the techniques here, their sizes beside the published ones.

    python benchmarks/published_table.py [--only METHOD] [--seed 0] [--json FILE] [--markdown FILE]

``published_tradeoff.csv`` holds the trade-off curves of Lin et al., "Compressing Transformer-based self-supervised models
for speech processing" (2022): one dense MelHuBERT of 12 layers at 20 ms and 33 that five techniques and a combination made
of it. Their structures and phone error rates were read from the published figure (rates to about 1 % of their value);
parameters and multiply-accumulates are what those structures cost, and lie within 2 % of where the figure has them.

Each row is built from a copy of one dense model by the recipe that :func:`recipe` says, one shot: slicing and zeroing are
the library's own, nothing is counted by a formula of the row. It must have

- the row's layers, heads and feed-forward units;
- its parameters exactly: those that are not zero, and where weights were sliced rather than zeroed all of them too;
- its multiply-accumulates per second within 1 %, as products and convolutions over the 32 SUPERB clips (224.86 s), zeros
  left out where weights were pruned. What the challenge's profiler says, which also counts masks, softmax and biases, is in
  the JSON beside it.

The weights are random: error rates are shown as published and are not rebuilt here. A fresh network's biases are zero,
and a zero that nobody pruned would count as pruned, so biases and gains are drawn at random too, and no weight is zero.

Exit status: 0 every row is met, 1 one or more differ. Takes about a minute of one core, and 1.3 GB.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from edgecompress import cost
from edgecompress.model import Model, from_config
from edgecompress.techniques import Technique, compress
from edgecompress.techniques.distill import Distill
from edgecompress.techniques.drop_layers import DropLayers
from edgecompress.techniques.prune_ffn import PruneFfn
from edgecompress.techniques.prune_heads import PruneHeads
from edgecompress.techniques.prune_weights import PruneWeights

FIGURES = Path(__file__).with_name("published_tradeoff.csv")
LAYERS, HEADS, UNITS = 12, 12, 3072  # of the dense model: layers, and in each layer heads and feed-forward units
HEADS_A_ROUND, UNITS_A_ROUND = (
    18,
    512,
)  # steps of the published combination: 72, 54, 36 heads, then 3072, 2560, ... units
MACS_TOLERANCE = 0.01
NOT_ZERO = 0.02  # the deviation that weights are drawn with


@dataclass(frozen=True)
class Row:
    """One model of the published table; ``heads`` are those of all layers, ``zeros`` the share of weights pruned."""

    method: str
    configuration: str
    layers: int
    heads: int
    units: int
    zeros: float
    parameters: int
    gmacs_per_second: float
    phone_error_percent: float


@dataclass(frozen=True)
class Built:
    """What the model that was built for a row is: its structure, its parameters, its cost per second of audio."""

    layers: int
    heads: int
    units: tuple[int, ...]
    parameters: int
    nonzero: int
    gmacs_per_second: float
    profiler_gmacs_per_second: float
    seconds: float


def published() -> list[Row]:
    """The 34 rows."""
    with FIGURES.open(newline="", encoding="utf-8") as stream:
        return [
            Row(
                one["method"],
                one["configuration"],
                int(one["layers"]),
                int(one["heads_total"]),
                int(one["ffn_units"]),
                float(one["weight_sparsity"]),
                int(one["params_nonzero"]),
                float(one["gmacs_per_second"]),
                float(one["per_percent_read_from_figure"]),
            )
            for one in csv.DictReader(stream)
        ]


# --- building --------------------------------------------------------------------------------------------------------
def dense_model(seed: int = 0) -> Model:
    """MelHuBERT of 12 layers at 20 ms with a map to 512 clusters, at random, and not one number of it zero."""
    from edgecompress.model.melhubert import MelHubertConfig

    model = from_config(MelHubertConfig(architectures=["MelHubertForPreTraining"]), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(NOT_ZERO * torch.randn(parameter.shape, generator=generator))
            parameter[parameter == 0] = NOT_ZERO  # normal numbers in float32 are zero once in some ten millions
    return model


def recipe(row: Row) -> list[Technique]:
    """The techniques that make a row's model out of the dense one."""
    if row.method == "dense":
        return []
    if row.method == "truncation":
        return [DropLayers(layers=tuple(range(row.layers, LAYERS)))]
    if row.method == "distillation":
        return [Distill(layers=row.layers)]
    if row.method == "weight_pruning":
        return [PruneWeights(ratio=row.zeros)]
    if row.method == "head_pruning":
        return [PruneHeads(ratio=1 - row.heads / (LAYERS * HEADS))]
    if row.method == "row_pruning":
        return [PruneFfn(ratio=1 - row.units / UNITS)]
    if row.method != "combination":
        raise ValueError(f"{FIGURES.name}: no technique is known for {row.method!r}")
    steps: list[Technique] = [Distill(layers=row.layers)]
    if heads := rates(row.layers * HEADS, row.heads, HEADS_A_ROUND):
        steps.append(PruneHeads(rounds=heads))
    if units := rates(UNITS, row.units, UNITS_A_ROUND):
        steps.append(PruneFfn(rounds=units))
    return steps


def rates(before: int, after: int, step: int) -> tuple[float, ...]:
    """Cumulative rates of the rounds from ``before`` parts to ``after``, ``step`` of them at a time."""
    return tuple(gone / before for gone in range(step, before - after + 1, step))


def build(row: Row, dense: Model) -> Built:
    """Carry out a row's recipe on a copy of the dense model, and count what came out."""
    started = time.perf_counter()
    model = dense.clone()
    compress(model, recipe(row))
    return count(model, sparse=row.zeros > 0, started=started)


def count(model: Model, *, sparse: bool, started: float) -> Built:
    """Structure and costs of a model; ``sparse`` leaves zeros out of its multiply-accumulates."""
    lengths = cost.superb_lengths()
    seconds = sum(lengths) / cost.SAMPLE_RATE
    macs = sum(sum(cost.macs(model, samples, sparse=sparse).values()) for samples in lengths)
    besides = cost.superb(model) - sum(sum(cost.macs(model, samples).values()) for samples in lengths)
    parameters = cost.parameters(model)
    return Built(
        layers=len(model.layers),
        heads=sum(len(layer.heads) for layer in model.layers),
        units=tuple(len(layer.units) for layer in model.layers),
        parameters=parameters.total,
        nonzero=parameters.nonzero,
        gmacs_per_second=macs / seconds / 1e9,
        profiler_gmacs_per_second=(macs + besides) / seconds / 1e9,
        seconds=time.perf_counter() - started,
    )


# --- comparing -------------------------------------------------------------------------------------------------------
def differences(row: Row, built: Built) -> list[str]:
    """What of a built model is not as published, in words; nothing where all is."""
    found = []
    if (built.layers, built.heads) != (row.layers, row.heads):
        found.append(f"{built.layers} layers, {built.heads} heads")
    if set(built.units) != {row.units}:
        found.append(f"units {sorted(set(built.units))}")
    if built.nonzero != row.parameters:
        found.append(f"{built.nonzero - row.parameters:+,} parameters")
    elif not row.zeros and built.parameters != row.parameters:
        found.append(f"{built.parameters - row.parameters:+,} parameters that are zero")
    if abs(macs_off(row, built)) > MACS_TOLERANCE:
        found.append(f"MACs {macs_off(row, built):+.2%}")
    return found


def macs_off(row: Row, built: Built) -> float:
    """How far the multiply-accumulates are from the published ones, as a share of those."""
    return built.gmacs_per_second / row.gmacs_per_second - 1


HEADER = ("method", "model", "PER %", "parameters", "here", "diff", "GMAC/s", "here", "diff", "")
LEFT = (0, 1, 9)  # columns of words


def cells(row: Row, built: Built) -> list[str]:
    """One line of the table: published figures, what was built, what differs."""
    return [
        row.method.replace("_", " "),
        row.configuration,
        f"{row.phone_error_percent:.2f}",
        f"{row.parameters:,}",
        f"{built.nonzero:,}",
        f"{built.nonzero - row.parameters:+,}" if built.nonzero != row.parameters else "0",
        f"{row.gmacs_per_second:.4f}",
        f"{built.gmacs_per_second:.4f}",
        f"{macs_off(row, built):+.3%}",
        "; ".join(differences(row, built)) or "as published",
    ]


def shown(pairs: Sequence[tuple[Row, Built]]) -> Table:
    """The table for a terminal; what differs is red."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(HEADER):
        table.add_column(name, justify="left" if place in LEFT else "right", no_wrap=place != len(HEADER) - 1)
    for row, built in pairs:
        table.add_row(*cells(row, built), style="bold red" if differences(row, built) else None)
    return table


def markdown(pairs: Sequence[tuple[Row, Built]]) -> str:
    """The table as Markdown; what differs is bold."""

    def lines() -> Iterator[str]:
        yield "| " + " | ".join(HEADER) + " |"
        yield "|" + "|".join("---" if place in LEFT else "---:" for place in range(len(HEADER))) + "|"
        for row, built in pairs:
            each = cells(row, built)
            if differences(row, built):
                each[-1] = f"**{each[-1]}**"
            yield "| " + " | ".join(each) + " |"

    return "\n".join(lines()) + "\n"


def as_data(pairs: Sequence[tuple[Row, Built]]) -> list[dict[str, Any]]:
    return [
        {"published": asdict(row), "built": asdict(built), "differs": differences(row, built)} for row, built in pairs
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    rows = published()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(dict.fromkeys(row.method for row in rows)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args(arguments)
    rows = [row for row in rows if asked.only in (None, row.method)]
    dense = dense_model(asked.seed)
    pairs = []
    for number, row in enumerate(rows, 1):
        print(f"row {number} of {len(rows)}: {row.method}, {row.configuration}", file=sys.stderr)
        pairs.append((row, build(row, dense)))
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(shown(pairs))
    met = sum(not differences(row, built) for row, built in pairs)
    console.print(f"{met} of {len(pairs)} rows as published: parameters exact, multiply-accumulates within 1 %")
    if asked.json:
        asked.json.write_text(json.dumps(as_data(pairs), indent=1) + "\n", encoding="utf-8")
    if asked.markdown:
        asked.markdown.write_text(markdown(pairs), encoding="utf-8")
    return 0 if met == len(pairs) else 1


if __name__ == "__main__":
    sys.exit(main())
