"""What training and compressing cost, as ratios within one run: what is compared takes turns, so that a busy machine
is busy for all of it.

    python benchmarks/training.py [--turns 7] [--json benchmarks/training.json] [--only steps|one-shot|loader]

1. ``steps``: a step with held masks, and one with gates (Hard Concrete on channels, heads and units, and the augmented
   Lagrangian), against a plain step of the same model on the same audio. At most 1.10.
2. ``one-shot``: prune, save and rebuild HuBERT base (random weights) in a fresh process: under 3 s, with a peak of
   memory, above what was used before the model was loaded, under 2.2 times the size of the model's file.
3. ``loader``: audio that batches give in a second against audio that a training step takes in a second, on real files
   (``EDGECOMPRESS_SPEECH``); from memory, and decoded from disk every time. At least 3.

Ratios are of processor time: other work on the machine stretches wall time, not that. Wall time stands beside it. The
greatest and the least of the turns' own ratios say how noisy it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgecompress import audio, cost, paths
from edgecompress.model import Model, from_config, load
from edgecompress.training import Batch, Hook, Loss, data, loop, optimizer
from edgecompress.training.batches import batches_of
from edgecompress.training.settings import Training

LIMITS = {"masks": 1.10, "gates": 1.10, "one-shot seconds": 3.0, "one-shot memory": 2.2, "loader": 3.0}
Row = dict[str, Any]


class LastState:
    """The last hidden state shall be small: an objective that costs nothing beside the model's own passes."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def modules(self) -> Mapping[str, nn.Module]:
        return {"model": self.model.network}

    def loss(self, batch: Batch) -> Loss:
        inputs = self.model.collate(batch.clips)
        state = self.model.states(inputs)[-1]
        return Loss((state - 0.1).abs().mean(), int(inputs.frames.sum()))


# --- 1: steps --------------------------------------------------------------------------------------------------------
def small_hubert() -> Model:
    """Six layers of half of HuBERT base's width, with its front end: 15 M parameters."""
    import transformers

    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
    return from_config(transformers.HubertConfig(**sizes, layerdrop=0.0), seed=0)


def a_run(model: Model, hooks: list[Hook]) -> loop.Run:
    objective = LastState(model)
    modules = optimizer.trained_modules(objective, hooks)
    model.network.train()
    settings = Training(steps=1000, device="cpu")
    return loop.Run(objective, hooks, settings, 0, torch.device("cpu"), modules, optimizer.parameters_of(modules))


def held_masks(model: Model) -> Hook:
    """Half of all weights of the encoder's layers stay zero."""
    from edgecompress.techniques.sparsity import HeldMasks, pieces_of, smallest_of_all

    tensors = [piece.tensor for piece in pieces_of(model)]
    return HeldMasks(tensors, smallest_of_all(tensors, sum(tensor.numel() for tensor in tensors) // 2))


def gated(model: Model) -> tuple[contextlib.AbstractContextManager[None], Hook]:
    """Gates wherever there may be one, towards half of the parameters."""
    from edgecompress.techniques import Context
    from edgecompress.techniques.expected_cost import expected_cost
    from edgecompress.techniques.gates import Gates, sites_of
    from edgecompress.techniques.lagrangian import Lagrangian
    from edgecompress.techniques.targets import Target, goal_of

    sites = sites_of(model)
    context = Context(reference=model, source=model)
    goal = goal_of(Target(parameters=0.5), model, context)
    gates = Gates(sites, {"channels": 0.05, "heads": 0.05, "units": 0.05}, seed=0)
    return gates.acting(), Lagrangian(gates, expected_cost(model, sites, goal.measure), goal, 0.02, 500)


def steps(turns: int) -> list[Row]:
    clips = [clip.samples for clip in audio.synthetic(2, 4.0)]
    batch = [Batch(clips, range(2), [0, 0])]
    models = {name: small_hubert() for name in ("plain", "masks", "gates")}
    acting, lagrangian = gated(models["gates"])
    hooks: dict[str, list[Hook]] = {"plain": [], "masks": [held_masks(models["masks"])], "gates": [lagrangian]}
    with acting:
        runs = {name: a_run(model, hooks[name]) for name, model in models.items()}
        taken = in_turns({name: lambda step, run=run: run.step(step, batch) for name, run in runs.items()}, turns)
    return [
        compared(f"a step with {name}", taken[name], taken["plain"], "at most", LIMITS[name])
        for name in ("masks", "gates")
    ]


# --- 2: one shot -----------------------------------------------------------------------------------------------------
def one_shot(turns: int) -> list[Row]:
    import transformers

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        from edgecompress.model.storage import save

        save(from_config(transformers.HubertConfig(), seed=0), Path(folder) / "source")
        for kind in ("prune_heads", "prune_ffn", "prune_weights"):
            command = [sys.executable, __file__, "--inside", kind, folder]
            said = [
                subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(min(3, turns))
            ]
            seen = [json.loads(text.splitlines()[-1]) for text in said]
            seconds = min(one["cpu_s"] for one in seen)
            rows.append(row(f"{kind}, save, rebuild (processor s)", seconds, "below", LIMITS["one-shot seconds"],
                            wall_s=min(one["wall_s"] for one in seen), turns=seen))  # fmt: skip
            rows.append(row(f"{kind}: peak memory / model", max(one["memory"] for one in seen), "below",
                            LIMITS["one-shot memory"]))  # fmt: skip
    return rows


def inside(kind: str, folder: Path) -> None:
    """In a process of its own: one technique, saved and rebuilt; prints seconds and memory."""
    import safetensors.torch
    import transformers

    from edgecompress.model.storage import save
    from edgecompress.plugins import find
    from edgecompress.techniques import Context, compress

    technique = find("techniques", kind)(ratio=0.5)
    assert transformers.HubertModel is not None  # the libraries' own code is not the model's
    assert safetensors.torch is not None
    with torch.no_grad():
        nn.Linear(8, 8)(torch.randn(2, 8))
    size = (folder / "source" / "model.safetensors").stat().st_size
    before = resident("VmRSS")
    model = load(folder / "source")
    wall, cpu = time.perf_counter(), time.process_time()
    compress(model, [technique], Context())
    save(model, folder / kind)
    rebuilt = load(folder / kind)
    took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    same = cost.parameters(rebuilt) == cost.parameters(model)
    print(json.dumps({**took, "memory": (resident("VmHWM") - before) / size, "same": same}))


def resident(field: str) -> int:
    """Memory of this process, bytes: ``VmRSS`` now, ``VmHWM`` at most so far. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


# --- 3: the loader ---------------------------------------------------------------------------------------------------
def loader(turns: int) -> list[Row]:
    manifest = paths.existing("${EDGECOMPRESS_SPEECH}", "audio folder") / "manifest.csv"
    settings = Training(steps=1000, batch_seconds=60, crop_seconds=15, device="cpu")
    kept = data.Corpus.from_manifest(manifest, where={"split": "train"})
    from_disk = data.Corpus.from_manifest(manifest, where={"split": "train"}, keep_bytes=0)
    memory, disk = batches_of(kept, settings, 0), batches_of(from_disk, settings, 0)
    run = a_run(small_mel_hubert(), [])
    taken = in_turns(
        {
            "step": lambda step: run.step(step, memory(step)),
            "memory": lambda step: memory(step),
            "disk": lambda step: disk(step),
        },
        turns,
    )
    return [
        compared(
            f"audio loaded from {name} / audio trained on", taken["step"], taken[name], "at least", LIMITS["loader"]
        )
        for name in ("memory", "disk")
    ]


def small_mel_hubert() -> Model:
    """Six layers, 192 wide: as fast a training as anyone has, the hardest case for a loader."""
    from edgecompress.model.melhubert import MelHubertConfig

    sizes = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 768}
    return from_config(MelHubertConfig(**sizes), seed=0)


# --- taking turns ----------------------------------------------------------------------------------------------------
Taken = dict[str, list[tuple[float, float]]]  # by name, each turn's seconds of processor and of wall


def in_turns(actions: Mapping[str, Callable[[int], Any]], turns: int) -> Taken:
    """Each action once in every turn, after one turn that does not count."""
    taken: Taken = {name: [] for name in actions}
    for turn in range(turns + 1):
        for name, action in actions.items():
            cpu, wall = time.process_time(), time.perf_counter()
            action(turn)
            if turn:
                taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return taken


def compared(
    what: str, one: list[tuple[float, float]], other: list[tuple[float, float]], sense: str, limit: float
) -> Row:
    """The ratio of the medians of processor time, and what the turns say of it."""
    each = [a[0] / b[0] for a, b in zip(one, other, strict=True)]
    walls = [statistics.median(wall for _, wall in side) for side in (one, other)]
    medians = [statistics.median(cpu for cpu, _ in side) for side in (one, other)]
    return row(what, medians[0] / medians[1], sense, limit, least=min(each), greatest=max(each), wall_ratio=walls[0] / walls[1],
               processor_s=medians, wall_s=walls)  # fmt: skip


def row(what: str, value: float, sense: str, limit: float, **more: Any) -> Row:
    kept = value >= limit if sense == "at least" else value <= limit
    return {"what": what, "value": value, "asked": f"{sense} {limit:g}", "kept": bool(kept), **more}


def lines(rows: list[Row]) -> Iterator[str]:
    yield f"{'what':58} {'value':>8} {'asked':>14}      turns            wall"
    for one in rows:
        spread = f"{one['least']:.2f} to {one['greatest']:.2f}" if "least" in one else ""
        wall = (
            f"ratio {one['wall_ratio']:.2f}"
            if "wall_ratio" in one
            else f"{one['wall_s']:.2f} s"
            if "wall_s" in one
            else ""
        )
        yield f"{one['what']:58} {one['value']:8.3f} {one['asked']:>14} {'yes' if one['kept'] else 'NO':>3}  {spread:16} {wall}"


def main() -> None:
    parts = {"steps": steps, "one-shot": one_shot, "loader": loader}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--only", choices=parts)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        inside(arguments.inside[0], Path(arguments.inside[1]))
        return
    np.random.seed(0)
    rows = [one for name, part in parts.items() if arguments.only in (None, name) for one in part(arguments.turns)]
    print("\n".join(lines(rows)))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"\n{torch.get_num_threads()} threads; load of the machine at the end {load:.1f}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"rows": rows, "load_1min": load, "torch": torch.__version__}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
