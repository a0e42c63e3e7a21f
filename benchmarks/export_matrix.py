"""Every family, dense and compressed in every way, in every format at every precision: what works, how near to torch.

    python -m benchmarks.export_matrix [--size tiny|base] [--only 'hubert*'] [--formats onnx,tflite] [--jobs 2]
                                       [--output runs/export_matrix]

A cell is a pass with its figures (greatest relative error, least cosine, bytes, seconds) or a Failure with its reason.
Cells are appended to OUTPUT.jsonl as they are filled, and those that are there are not filled again, so a run that was
stopped goes on; OUTPUT.md is the table. Weights are random. Parity and calibration hear real speech where
``EDGECOMPRESS_SPEECH`` has some, else synthetic voices. ``tiny`` networks have real kernels and strides, 3 layers of 64.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fnmatch
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Cell = dict[str, Any]
TOLERATED = 0.02  # of a cosine: then parity, which asks for .95 everywhere, has room
STEPS = 2  # of a training: the shape that comes out is what counts here
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


@dataclass(frozen=True)
class Subject:
    """A family in one layout, exported in one form."""

    name: str
    family: str
    settings: dict[str, Any]
    input: str | None = None
    base: dict[str, Any] | None = None


_LAYER = {"front_end": "layer", "stable": True}
_WRITES = {"head": "ForConditionalGeneration"}
SUBJECTS = (
    Subject("hubert", "hubert", {}, base=BASE),
    Subject("hubert-large-layout", "hubert", _LAYER, base=LARGE),
    Subject("wav2vec2", "wav2vec2", {}, base=BASE),
    Subject("wav2vec2-large-layout", "wav2vec2", _LAYER, base=LARGE),
    Subject("wavlm", "wavlm", {}, base=BASE),
    Subject("wavlm-large-layout", "wavlm", _LAYER, base=LARGE),
    Subject("data2vec-audio", "data2vec-audio", {}, base=BASE),
    Subject("hubert-ctc", "hubert", {"head": "ForCTC"}, base=BASE),
    Subject("wav2vec2-classes", "wav2vec2", {"head": "ForSequenceClassification"}, base=BASE),
    Subject("melhubert-waveform", "melhubert", {}, "waveform", BASE),
    Subject("melhubert-features", "melhubert", {}, "features", BASE),
    Subject("whisper-encoder", "whisper", _WRITES, "features", {}),
    Subject("whisper-encoder-waveform", "whisper", _WRITES, "waveform", {}),
    Subject("whisper-cache", "whisper", _WRITES, "cache", {}),
    Subject("whisper-step", "whisper", _WRITES, "step", {}),
    Subject("bert", "bert", {}, base={}),
    Subject("vit", "vit", {}, base={}),
)
SPEECH = ("hubert", "wav2vec2", "wavlm", "data2vec-audio", "melhubert", "whisper")
SHAPES = ("dense", "heads", "ffn", "front-end", "low-rank", "layers", "joint", "distilled", "context", "combined")


def techniques_of(shape: str, family: str) -> list[Any] | None:
    """The techniques that make a shape; None where the family has nothing that they could remove."""
    import edgecompress as ec

    thin = {"steps": STEPS, "batch_seconds": 15, "objective": {"kind": "states", "layers": "same"}}
    fewer = {**thin, "objective": {"kind": "states", "layers": "even"}}
    speech = family in SPEECH
    alone: dict[str, Callable[[], Any]] = {
        "heads": lambda: ec.PruneHeads(ratio=0.4, score="l1"),
        "ffn": lambda: ec.PruneFfn(ratio=0.6, score="l1"),
        "low-rank": lambda: ec.Factorize(rank=16, matrices="all"),
        "layers": lambda: ec.DropLayers(layers=[1]),
    }
    if family in SPEECH and family != "melhubert":
        alone["front-end"] = lambda: ec.PruneFrontEnd(ratio=0.3)
    if family == "whisper":
        alone["context"] = lambda: ec.TrimContext(seconds=1.0)
    if speech and family != "whisper":
        alone["joint"] = lambda: ec.PruneJointly(target={"macs": 0.6}, training=thin)
    if speech:
        alone["distilled"] = lambda: ec.Distill(layers=2, training=fewer)
    if shape == "dense":
        return []
    if shape == "combined":
        return [alone[name]() for name in ("heads", "ffn", "front-end", "layers", "low-rank") if name in alone]
    return [alone[shape]()] if shape in alone else None


def made(subject: Subject, shape: str, size: str, clips: list[Any]) -> Any:
    """The model of a row: random weights, then the shape's techniques; None where there is no such row."""
    import edgecompress as ec
    from tests.models import noise_clip, tiny

    techniques = techniques_of(shape, subject.family)
    if techniques is None:
        return None
    sizes = {} if size == "tiny" else _base(subject)
    model = tiny(subject.family, **subject.settings, **sizes)
    if subject.family == "whisper":  # a token that the tiny vocabulary has too
        model.origin.extra_files["generation_config.json"] = json.dumps({"no_timestamps_token_id": 4})
    if techniques:
        corpus = _corpus([noise_clip(1.0, seed) for seed in range(4)])
        context = ec.Context(clips=clips[:2], corpus=corpus, source=model.clone())
        ec.compress(model, techniques, context)
    return model


def _base(subject: Subject) -> dict[str, Any]:
    """Sizes of the published models, over those of the tiny ones."""
    if subject.family == "whisper":
        return {
            "d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048,
            "decoder_layers": 6, "decoder_attention_heads": 8, "decoder_ffn_dim": 2048, "vocab_size": 51865,
            "max_source_positions": 1500, "max_target_positions": 448, "bos_token_id": 50257, "eos_token_id": 50257,
            "pad_token_id": 50257, "decoder_start_token_id": 50258,
        }  # fmt: skip
    if not subject.base:
        return dict(BASE)
    front = {} if subject.family in ("melhubert", "bert", "vit") else {"conv_dim": (512,) * 7}
    positions = (
        {}
        if subject.family in ("data2vec-audio", "bert", "vit")
        else {"num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16}
    )
    if subject.family == "data2vec-audio":
        positions = {"conv_pos_kernel_size": 19, "num_conv_pos_embeddings": 5, "num_conv_pos_embedding_groups": 16}
    return {**subject.base, **front, **positions}


def _corpus(clips: list[Any]) -> Any:
    from edgecompress.training.data import Corpus

    return Corpus.from_arrays(clips)


def cells_of(formats: list[str]) -> Iterator[tuple[str, str, str]]:
    """(format, precision, length) in an order in which what is made first is of use to what comes after it."""
    from edgecompress import plugins

    for name in formats:
        exporter = plugins.find("exporters", name)
        for length in ("free", "1 s") if name == "openvino" else ("buckets",) if name == "tflite" else ("free",):
            for precision in exporter.precisions:
                if not precision.endswith("-naive"):  # there to be compared with, not to be used
                    yield name, precision, length


def fill(
    subject: Subject, shape: str, size: str, formats: list[str], there: set[str], say: Callable[[Cell], None]
) -> None:
    """All cells of a row that are not there."""
    import torch

    torch.set_num_threads(1)
    names = [(key(subject, shape, *cell), cell) for cell in cells_of(formats)]
    if all(name in there for name, _ in names):
        return
    clips = speech()
    try:
        model = made(subject, shape, size, clips)
    except Exception as cause:
        for name, cell in names:
            say(_failed(name, subject, shape, cell, cause))
        return
    if model is None:
        return
    with tempfile.TemporaryDirectory() as place:
        full: dict[tuple[str, str], Path] = {}
        for name, cell in names:
            format, precision, length = cell
            if name in there and precision != "fp32":
                continue
            folder = Path(place) / f"{format}-{precision}-{length}".replace(" ", "")
            started = time.perf_counter()
            try:
                artifact = _exported(model, subject, shape, cell, folder, clips, full.get((format, length)))
            except Exception as cause:
                say(_failed(name, subject, shape, cell, cause))
                continue
            if precision == "fp32":
                full[format, length] = folder
            say(_passed(name, subject, shape, cell, artifact, time.perf_counter() - started))


def _exported(
    model: Any,
    subject: Subject,
    shape: str,
    cell: tuple[str, str, str],
    folder: Path,
    clips: list[Any],
    full: Path | None,
) -> Any:
    from edgecompress import exporters
    from edgecompress.errors import ParityError

    format, precision, length = cell
    takes = subject.input
    if format == "tflite" and takes == "step":
        takes = "fixed_step"
    heard = subject.family in SPEECH and takes not in ("step", "fixed_step")
    audio = clips if heard else []
    seconds: tuple[float, ...] = (1.0,) if length == "1 s" and heard else ()
    if format == "tflite" and heard and subject.family != "whisper":  # Whisper: its whole context of 2 s
        seconds = (1.0, 2.0) if shape in ("dense", "combined") else (2.0,)
    asked: dict[str, Any] = {
        "precision": precision, "input": takes, "clips": audio[:2] or None, "calibration_clips": audio, "reuse": full,
        "options": exporters.Options(seconds=seconds), "calibration_feeds": [] if heard else _noise(model, takes),
    }  # fmt: skip
    try:
        return exporters.export(model, format, folder, **asked)
    except ParityError:
        if precision in ("fp32", "fp16") or not audio:
            raise
        return exporters.export(
            model,
            format,
            folder,
            **asked,
            judge=_judge(
                model,
                takes,
                audio,
                sizes=(16_000,) * 3 if seconds == (1.0,) else (32_000, 8_000, 719, 400),
                noise=(16_000,) * 2 if seconds == (1.0,) and "-static" not in precision else (),
            ),
        )


def _noise(model: Any, takes: str | None) -> list[dict[str, Any]]:
    """Inputs to calibrate by for what takes no audio: random tokens, pixels or caches, as the weights are random."""
    from edgecompress.model.forms import form_of

    form = form_of(model, takes)
    return [form.noise(model, 1, form.trace_length(model), seed) for seed in range(4)]


def _judge(model: Any, takes: str | None, clips: list[Any], sizes: tuple[int, ...], noise: tuple[int, ...]) -> Any:
    """What cannot bear eight bits stays in fp32: the least cosine to torch over short clips may be 0.02 below 1.

    Noise is heard too where parity will ask for as much on it, in a file that has one length alone.
    """
    import numpy as np

    from edgecompress.exporters.accuracy import Judge
    from edgecompress.exporters.parity import distances
    from edgecompress.model.forms import form_of

    form = form_of(model, takes)
    feeds = [form.feeds(model, np.resize(clip, size)) for clip, size in zip(clips, sizes, strict=False)]
    feeds += [form.noise(model, 1, size, seed) for seed, size in enumerate(noise)]
    wanted = [form.answer(model, each) for each in feeds]

    def score(run: Any) -> float:
        return min(
            distances(form.cut(run(each), each)[name], right[name])["cosine"]
            for each, right in zip(feeds, wanted, strict=True)
            for name in right
        )

    return Judge("cosine", "least cosine", True, len(feeds), 1.0, score, TOLERATED)


def _passed(name: str, subject: Subject, shape: str, cell: tuple[str, str, str], artifact: Any, seconds: float) -> Cell:
    cases = artifact.parity.cases
    return {
        "key": name, "subject": subject.name, "shape": shape, "format": cell[0], "precision": cell[1], "length": cell[2],
        "passed": True, "relative": max(case.relative for case in cases), "cosine": min(case.cosine for case in cases),
        "cases": len(cases), "lengths": len({case.length for case in cases}), "bytes": artifact.cost.bytes,
        "quantized_nodes": artifact.quantized_nodes, "float_nodes": artifact.lineage.get("float_nodes", []), "seconds": round(seconds, 2),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }  # fmt: skip


def _failed(name: str, subject: Subject, shape: str, cell: tuple[str, str, str], cause: Exception) -> Cell:
    return {
        "key": name, "subject": subject.name, "shape": shape, "format": cell[0], "precision": cell[1], "length": cell[2],
        "passed": False, "kind": type(cause).__name__, "error": (str(cause) or type(cause).__name__).splitlines()[0],
        "hint": getattr(cause, "hint", ""),
    }  # fmt: skip


def key(subject: Subject, shape: str, format: str, precision: str, length: str) -> str:
    """What names a cell."""
    return f"{subject.name}|{shape}|{format}|{precision}|{length}"


def speech() -> list[Any]:
    """A few seconds of real speech where there is some, else of synthetic voices; 16 kHz mono."""
    from edgecompress import audio, paths
    from edgecompress.exporters.golden import synthetic_clip

    try:
        folder = paths.existing("${EDGECOMPRESS_SPEECH}", "speech")
        found = audio.read_folder(Path(folder), limit=6, seed=0)
    except Exception:
        return [synthetic_clip()[: 16_000 * seconds] for seconds in (1, 2, 1)]
    return [clip[:24_000] for clip in found.arrays]


def _row(arguments: tuple[str, str, str, list[str], list[str], str]) -> str:
    """One row in a process of its own; cells are appended to the file as they are filled."""
    subject_name, shape, size, formats, there, output = arguments
    subject = next(each for each in SUBJECTS if each.name == subject_name)

    def say(cell: Cell) -> None:
        with Path(output).open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell) + "\n")

    fill(subject, shape, size, formats, set(there), say)
    return f"{subject_name} {shape}"


def table(cells: list[Cell]) -> str:
    """The matrix as Markdown: a row for each subject and shape, a column for each format and precision."""
    columns = list(dict.fromkeys((c["format"], c["precision"], c["length"]) for c in cells))
    rows: dict[tuple[str, str], dict[tuple[str, str, str], Cell]] = {}
    for cell in cells:
        rows.setdefault((cell["subject"], cell["shape"]), {})[cell["format"], cell["precision"], cell["length"]] = cell
    reasons: dict[str, int] = {}
    lines = [
        "| subject | shape | " + " | ".join(" ".join(column) for column in columns) + " |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for (subject, shape), found in rows.items():
        texts = [_text(found.get(column), reasons) for column in columns]
        lines.append(f"| {subject} | {shape} | " + " | ".join(texts) + " |")
    lines += [f"\n{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join(lines) + "\n"


def _text(cell: Cell | None, reasons: dict[str, int]) -> str:
    if cell is None:
        return ""
    if cell["passed"]:
        precise = cell["precision"] in ("fp32", "fp16")
        kept = f" ({len(cell['float_nodes'])} fp32)" if cell.get("float_nodes") else ""
        return f"{cell['relative']:.0e}" if precise else f"{cell['cosine']:.4f}{kept}"
    number = reasons.setdefault(f"{cell['kind']}: {cell['error']}", len(reasons) + 1)
    return f"**[{number}]**"


def main() -> None:
    """Fill what is missing, then write the table."""
    from edgecompress import plugins

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "base"), default="tiny")
    parser.add_argument("--only", default="*", help="pattern of a subject, or of subject|shape")
    parser.add_argument("--formats", default="")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, help="runs/export_matrix, or runs/export_matrix-base")
    parser.add_argument("--again", action="store_true", help="fill failed cells again")
    asked = parser.parse_args()
    formats = asked.formats.split(",") if asked.formats else plugins.names("exporters")
    output = asked.output or Path("runs/export_matrix" if asked.size == "tiny" else f"runs/export_matrix-{asked.size}")
    output.parent.mkdir(parents=True, exist_ok=True)
    store = output.with_suffix(".jsonl")
    there = [cell["key"] for cell in read(store) if cell["passed"] or not asked.again]
    rows = [
        (subject.name, shape, asked.size, formats, there, str(store))
        for subject in SUBJECTS
        for shape in SHAPES
        if any(fnmatch.fnmatch(name, asked.only) for name in (subject.name, f"{subject.name}|{shape}"))
    ]
    if not rows:
        parser.error(f"nothing is called {asked.only!r}; subjects: {', '.join(each.name for each in SUBJECTS)}")
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(asked.jobs, mp_context=spawn) as pool:
        for number, name in enumerate(pool.map(_row, rows), 1):
            print(f"{number} of {len(rows)}: {name}", flush=True)
    cells = read(store)
    order = [(subject.name, shape) for subject in SUBJECTS for shape in SHAPES]
    cells.sort(key=lambda cell: order.index((cell["subject"], cell["shape"])))
    output.with_suffix(".md").write_text(table(cells), encoding="utf-8")
    failed = sum(not cell["passed"] for cell in cells)
    print(f"{len(cells)} cells, {failed} failures; {output.with_suffix('.md')}")


def read(store: Path) -> list[Cell]:
    """The cells so far; of one that was filled twice the last."""
    if not store.is_file():
        return []
    cells = map(json.loads, store.read_text(encoding="utf-8").splitlines())
    return list({cell["key"]: cell for cell in cells}.values())


if __name__ == "__main__":
    main()
