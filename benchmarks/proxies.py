"""Which count predicts latency: variants of one HuBERT, each exported and measured in every runtime, and a table.

    python -m benchmarks.proxies [--work DIR] [--variants N] [--size tiny|base] [--runtimes onnx ...] [--rounds N]
                                  [--export-only]

Held against measured medians are stored and non-zero parameters, multiply-accumulates and bytes: rank correlation over
all variants and within 25 % of equal multiply-accumulates, pairs that a count orders wrongly beyond the intervals, and
the latency lost by choosing with it (``edgecompress.proxies``). Variants are dense, structured (heads, units),
unstructured (zeros), of low rank, with fewer layers, and some of these in int8: 42 in all, ``--variants`` takes so many of
them, spread over the kinds. Weights are random, seed 0: time does not depend on them.

Exports lie in ``DIR/artifacts``; each measurement is a line of ``DIR/measured.jsonl`` as soon as it is there, and rounds
go through all files in turn, so that a slow hour falls on all. Run again, it skips what is there: ``--export-only``
makes the files while others use the machine, and a later run measures them. A file that cannot be
made or run is a line of ``DIR/failed.jsonl``, and is tried again the next time.

Exit status: 0, or 1 where fewer than three models of some runtime were measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompress import devices, exporters, plugins, proxies, session, stats, techniques
from edgecompress.errors import EdgeCompressError
from edgecompress.exporters.golden import synthetic_clip
from edgecompress.model import Model, from_config_values
from edgecompress.proxies import Point
from edgecompress.records import Artifact, Measurement, Source, content_key

RUNTIMES = ("onnx", "openvino", "tflite")
SEED, ROUNDS = 0, 3
PLAN = session.Plan(repetitions=1, warmup_s=0.2, min_samples=5, min_seconds=0.5, max_seconds=10.0, timeout_s=600.0)
# Layers, width, heads, feed-forward units and channels of the front end: HuBERT base, and one to try this file with.
SIZES = {"base": (12, 768, 12, 3072, 512), "tiny": (4, 128, 4, 256, 32)}
COUNTS = ("stored parameters", "non-zero parameters", "multiply-accumulates", "bytes")
MACS = "multiply-accumulates"
Step = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Variant:
    """One model: what is done to it, and the precision that it is exported at."""

    name: str
    kind: str
    steps: tuple[Step, ...] = ()
    precision: str = "fp32"


def variants(size: str) -> list[Variant]:
    """All 42, kinds in turn, so that the first few are of many kinds."""
    layers, width = SIZES[size][:2]
    shares = [number / 8 for number in range(1, 8)]
    kinds: dict[str, list[Variant]] = {"dense": [Variant("dense", "dense")]}

    def add(kind: str, name: str, *steps: Step, precision: str = "fp32") -> None:
        kinds.setdefault(kind, []).append(Variant(name, kind, steps, precision))

    for share in shares:
        per_cent = f"{100 * share:.0f}"
        units: Step = ("prune_ffn", {"ratio": share, "score": "l1"})
        zeros: Step = ("prune_weights", {"ratio": share})
        add("ffn", f"ffn-{per_cent}", units)
        add("zeros", f"zeros-{per_cent}", zeros)
        if share in shares[1::2]:
            add("int8", f"ffn-{per_cent}-int8", units, precision="int8")
            add("int8", f"zeros-{per_cent}-int8", zeros, precision="int8")
    for share in (0.25, 0.5, 0.75):
        heads: Step = ("prune_heads", {"ratio": share, "score": "l1"})
        add("heads", f"heads-{100 * share:.0f}", heads)
        add("both", f"heads-ffn-{100 * share:.0f}", heads, ("prune_ffn", {"ratio": share, "score": "l1"}))
    for part in (16, 12, 8, 6, 4, 3):
        add("rank", f"rank-{width // part}", ("factorize", {"rank": width // part, "matrices": "all"}))
    for part in (8, 4):
        step: Step = ("factorize", {"rank": width // part, "matrices": "all"})
        add("int8", f"rank-{width // part}-int8", step, precision="int8")
    for share in (0.25, 0.5, 0.75):
        drop: Step = ("drop_layers", {"layers": list(range(layers - round(share * layers), layers))})
        add("layers", f"layers-{layers - round(share * layers)}", drop)
        add("int8", f"layers-{layers - round(share * layers)}-int8", drop, precision="int8")
    add("int8", "dense-int8", precision="int8")
    longest = max(map(len, kinds.values()))
    return [held[place] for place in range(longest) for held in kinds.values() if place < len(held)]


def model_of(variant: Variant, size: str) -> Model:
    """A variant in torch."""
    layers, width, heads, units, channels = SIZES[size]
    config = {
        "model_type": "hubert", "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
        "intermediate_size": units, "conv_dim": [channels] * 7,
    }  # fmt: skip
    source = Source(name=f"hubert-{size}", sha256=content_key([config, SEED]), random_weights=True)
    model = from_config_values(config, seed=SEED, source=source)
    techniques.compress(model, [plugins.find("techniques", name)(**given) for name, given in variant.steps])
    return model


def export_all(wanted: Sequence[Variant], formats: Sequence[str], size: str, work: Path) -> None:
    """The files that are not there yet; one that cannot be made is told, and tried again by ``measure``."""
    for variant in wanted:
        for format in formats:
            try:
                exported(variant, size, format, work)
                print(f"exported: {variant.name} {format}", file=sys.stderr, flush=True)
            except EdgeCompressError as why:
                print(f"{variant.name} {format}: {why.message}", file=sys.stderr, flush=True)


def exported(variant: Variant, size: str, format: str, work: Path) -> tuple[Artifact, Path]:
    """The variant's file, made unless it is there."""
    folder = work / "artifacts" / f"{size}-{variant.name}-{format}"
    if not (folder / "artifact.json").is_file():
        exporters.export(
            model_of(variant, size), format, folder, precision=variant.precision, recipe=variant.name,
            calibration_clips=[synthetic_clip()],
        )  # fmt: skip
    return Artifact.read(folder / "artifact.json"), folder


def lines(file: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of a JSON-lines file; a last one that was cut off is passed over."""
    if not file.is_file():
        return
    for text in file.read_text(encoding="utf-8").split("\n")[:-1]:
        try:
            yield json.loads(text)
        except ValueError:
            continue


def append(file: Path, value: dict[str, Any]) -> None:
    """Add a line, after whatever an interrupted run left of its last one."""
    cut = file.is_file() and file.stat().st_size > 0 and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as stream:
        stream.write(("\n" if cut else "") + json.dumps(value, ensure_ascii=False) + "\n")


def measure(wanted: Sequence[Variant], formats: Sequence[str], size: str, rounds: int, work: Path) -> None:
    """Export and measure what is not there yet, in rounds."""
    told, failed = work / "measured.jsonl", work / "failed.jsonl"
    failed.unlink(missing_ok=True)
    there = {(line["size"], line["variant"], line["format"], line["round"]) for line in lines(told)}
    broken: set[tuple[str, str]] = set()
    with devices.open_device("local") as device:
        for turn in range(1, rounds + 1):
            for variant in wanted:
                for format in formats:
                    key = (size, variant.name, format, turn)
                    if key in there or (variant.name, format) in broken:
                        continue
                    about = {
                        "size": size,
                        "variant": variant.name,
                        "kind": variant.kind,
                        "format": format,
                        "round": turn,
                    }
                    try:
                        artifact, folder = exported(variant, size, format, work)
                        seen = session.measure(device, artifact, folder, PLAN)
                    except EdgeCompressError as why:
                        broken.add((variant.name, format))
                        append(failed, {**about, "error": why.message})
                        print(f"{variant.name} {format}: {why.message}", file=sys.stderr, flush=True)
                        continue
                    counts = dict(zip(COUNTS, counts_of(artifact), strict=True))
                    append(
                        told, {**about, "counts": counts, "measurement": seen.model_dump(by_alias=True, mode="json")}
                    )
                    print(f"round {turn}: {variant.name} {format}", file=sys.stderr, flush=True)


def counts_of(artifact: Artifact) -> tuple[float, float, float, float]:
    """In the order of ``COUNTS``."""
    macs = artifact.cost.macs
    return (
        float(artifact.cost.parameters.total), float(artifact.cost.parameters.nonzero),
        float(macs.total if macs else 0), float(artifact.cost.bytes),
    )  # fmt: skip


def points(work: Path, size: str, wanted: Sequence[str]) -> dict[str, list[Point]]:
    """Measured variants by format, the processes of all rounds as repetitions."""
    samples: dict[tuple[str, str], list[list[float]]] = {}
    counts: dict[tuple[str, str], dict[str, float]] = {}
    for line in lines(work / "measured.jsonl"):
        if line["size"] != size or line["variant"] not in wanted:
            continue
        key = (line["format"], line["variant"])
        measured = Measurement.model_validate(line["measurement"])
        samples.setdefault(key, []).extend([[ns / 1e9 for ns in one.samples_ns] for one in measured.repetitions])
        counts[key] = line["counts"]
    found: dict[str, list[Point]] = {}
    for (format, name), seen in samples.items():
        found.setdefault(format, []).append(Point(name, stats.median(seen), counts[format, name]))
    return found


def table(found: dict[str, list[Point]]) -> list[str]:
    """Lines of Markdown: a row for each runtime and count."""
    out = [
        "| format | count | n | Spearman | Kendall | Spearman in the fullest 25 % band of MACs | pairs not ordered rightly | latency lost |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for format, here in sorted(found.items()):
        for counted in COUNTS:
            told = proxies.judge(here, counted, MACS)
            if told is None:
                continue
            tau = "-" if told.kendall is None else f"{told.kendall:.2f}"
            wrong = f"{told.wrong} of {told.certain}"
            cells = [
                format,
                counted,
                str(len(here)),
                spelt(told.spearman),
                tau,
                spelt(told.band),
                wrong,
                f"{told.regret:.0%}",
            ]
            out.append(f"| {' | '.join(cells)} |")
    return out


def spelt(estimate: stats.Estimate | None) -> str:
    """``0.91 [0.80, 0.97], n = 12``."""
    if estimate is None:
        return "-"
    ends = (
        f" [{estimate.low:.2f}, {estimate.high:.2f}]" if estimate.low is not None and estimate.high is not None else ""
    )
    return f"{estimate.value:.2f}{ends}, n = {estimate.n}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.proxies", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("proxies"), help="folder of exports and measurements")
    parser.add_argument("--variants", type=int, default=0, help="so many; default: all")
    parser.add_argument("--size", choices=tuple(SIZES), default="base")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES), metavar="FORMAT")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--export-only", action="store_true", help="make the files and measure none")
    asked = parser.parse_args(arguments)
    if asked.variants < 0 or asked.rounds < 1:
        parser.error("--variants and --rounds: at least 1")
    wanted = variants(asked.size)[: asked.variants or None]
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.export_only:
        export_all(wanted, asked.runtimes, asked.size, asked.work)
        return 0
    measure(wanted, asked.runtimes, asked.size, asked.rounds, asked.work)
    found = points(asked.work, asked.size, [one.name for one in wanted])
    shown = "\n".join(table({name: here for name, here in found.items() if name in asked.runtimes}))
    (asked.work / f"table-{asked.size}.md").write_text(shown + "\n", encoding="utf-8")
    print(shown)
    return 0 if all(len(found.get(name, ())) >= 3 for name in asked.runtimes) else 1


if __name__ == "__main__":
    sys.exit(main())
