"""Commands that load a model: inspect, compress, export, score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgecompress.audio import Clips
    from edgecompress.model import Model
    from edgecompress.pipeline.corpus import Chosen

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Audio = Annotated[Path | None, typer.Option(help="Folder of recordings, or a manifest.csv beside them.")]
Dataset = Annotated[str | None, typer.Option(help="Only this dataset of the manifest.")]
Seed = Annotated[int, typer.Option(help="Chooses the clips.")]


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model folder, checkpoint, or hub id.")],
    seconds: Annotated[
        float | None, typer.Option(help="Audio length for the costs; default 10, or Whisper's context.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Length of text for the costs; default 128.")] = None,
    json: Json = False,
) -> None:
    """Say what a model is and costs: parameters, bytes, multiply-accumulates by part."""
    from edgecompress.cli import say

    with say.working(f"loading {model}"):
        facts = _facts(_load(model), seconds, tokens)
    if json:
        say.as_json(facts)
        return
    parameters, macs = facts["parameters"], facts["macs"]
    rows: list[tuple[str, object]] = [
        ("model", f"{facts['name']} ({facts['architecture']}{', random weights' if facts['random_weights'] else ''})"),
        ("parameters", f"{parameters['total']:,} ({parameters['nonzero']:,} not zero)"),
        ("bytes", f"{facts['bytes']:,}"),
        ("layers", " ".join(f"{one['number']}:{one['heads']}h/{one['units']}u" for one in facts["layers"])),
        (f"MACs for {_amount(facts)}", f"{macs['total']:,}"),
    ]
    if macs["per_second"] is not None:
        rows.append(("MACs per second", f"{macs['per_second']:,.0f}"))
    audio = facts["seconds"] is not None  # of text and images, parts that such a family does not have are left out
    parts = {part: count for part, count in macs["parts"].items() if count or audio}
    rows += [(f"  {part}", f"{count:,} ({count / macs['total']:.1%})") for part, count in parts.items()]
    say.table(("what", "value"), rows)


def _amount(facts: dict[str, Any]) -> str:
    """What one pass takes, in words."""
    if facts["tokens"] is not None:
        return f"{facts['tokens']} tokens"
    if facts["pixels"] is not None:
        return "an image of {} x {} pixels".format(*facts["pixels"])
    return f"{facts['seconds']:g} s"


def _facts(model: Model, seconds: float | None, tokens: int | None) -> dict[str, Any]:
    """What ``inspect --json`` prints."""
    from edgecompress import cost

    layers = [{"number": one.number, "heads": len(one.heads), "units": len(one.units)} for one in model.layers]
    known = cost.measure(model, seconds, tokens)
    return {
        **known.model_dump(mode="json"),
        # An untouched folder is as big as it is (half precision, say); a checkpoint as save() writes it.
        "bytes": model.origin.source_bytes or known.bytes,
        "family": model.family,
        "architecture": model.architecture,
        "name": model.origin.source.name,
        "random_weights": model.origin.source.random_weights,
        "sha256": model.origin.source.sha256,
        "layers": layers,
        "edits": len(model.edits),
        "max_seconds": model.max_seconds,
    }


def compress(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model folder, checkpoint, or hub id.")],
    recipe: Annotated[Path, typer.Option(help="Recipe file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the checkpoint.")],
    audio: Audio = None,
    dataset: Dataset = None,
    clips: Annotated[int, typer.Option(help="How many recordings calibrate, at most.")] = 40,
    train_audio: Annotated[
        Path | None, typer.Option(help="Folder of recordings to train on, or a manifest.csv beside them.")
    ] = None,
    train_dataset: Annotated[list[str] | None, typer.Option(help="Only these datasets of that manifest.")] = None,
    train_split: Annotated[str | None, typer.Option(help="Only this split of that manifest, e.g. train.")] = None,
    seed: Seed = 0,
) -> None:
    """Apply a recipe to a model and write the checkpoint."""
    from edgecompress import pipeline
    from edgecompress.cli import say
    from edgecompress.recipe import read_recipe

    asked = read_recipe(recipe)
    folder = say.free_folder(output, "checkpoint.json")
    calibration = _read(audio, dataset, clips, seed) if audio else None
    chosen = _to_train_on(train_audio, train_dataset or [], train_split)
    with say.working(f"loading {model}") as progress:
        source = _load(model)
        corpus = chosen.read() if chosen else None
        record = pipeline.write_checkpoint(
            source, asked, folder, clips=calibration, seed=seed, progress=progress,
            corpus=corpus, audio=chosen.record(corpus) if chosen and corpus else None,
        )  # fmt: skip
    if corpus:
        say.skipped(corpus.skipped)
    for step in record.steps:
        before, after = step.before.parameters.nonzero, step.after.parameters.nonzero
        say.note(f"{step.kind}: {before:,} -> {after:,} parameters that are not zero, {step.seconds:.1f} s")
        for text in step.notes:
            say.note(f"  {text}")
    print(folder)


def export(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT_OR_FILE", help="Checkpoint, model folder, hub id, or .onnx.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the artifact.")],
    format: Annotated[str, typer.Option(help="Format: see `list exporters`.")] = "onnx",
    precision: Annotated[
        str,
        typer.Option(help="fp32, fp16, int8 (dynamic), int8-static, int8-weights, int4-weights: what the format has."),
    ] = "fp32",
    input: Annotated[
        str | None, typer.Option(help="What goes in, where a family has a choice: waveform, features ...")
    ] = None,
    seconds: Annotated[
        list[float] | None, typer.Option(help="Fix the length, seconds of audio; several where the format can.")
    ] = None,
    padded: Annotated[
        bool, typer.Option("--padded", help="Add an input of true lengths: padding then does not change the answer.")
    ] = False,
    for_runtime: Annotated[
        str | None, typer.Option(help="Keep to what an older runtime reads, e.g. tflite-runtime.")
    ] = None,
    audio: Audio = None,
    dataset: Dataset = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Recordings to calibrate with (int8-static) and to judge on.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task to judge a quantised file by, beside torch.")] = None,
    tolerated_drop: Annotated[
        float | None, typer.Option(help="What costs more of the task's score than this stays in fp32.")
    ] = None,
    dim: Annotated[
        list[str] | None, typer.Option(help="Of an .onnx file: size of a dimension that may vary, NAME=SIZE.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="Of an .onnx file: inputs to compare on, .npz or folder of .npy.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Export a model, check it against PyTorch at several lengths, and write the artifact.

    A plain .onnx file goes to other formats and precisions too, checked against itself in ONNX Runtime.
    """
    from edgecompress import exporters, plugins
    from edgecompress.cli import exporting, foreign, say

    plugins.find("exporters", format)
    folder = say.free_folder(output, "artifact.json")
    file = foreign.file_of(checkpoint)
    if file is not None:
        ours = {"--input": input, "--seconds": seconds, "--padded": padded, "--for-runtime": for_runtime, "--task": task,
                "--dataset": dataset, "--tolerated-drop": tolerated_drop}  # fmt: skip
        foreign.export(
            file, format, folder, precision, dim=dim or [], inputs=inputs, audio=audio, calibration=calibration,
            not_for_files=ours, name=file.stem if Path(checkpoint).is_file() else Path(checkpoint).resolve().name,
        )  # fmt: skip
        return
    if dim or inputs:
        from edgecompress.errors import RecipeError

        raise RecipeError("--dim and --inputs: only for plain .onnx files", hint="--seconds fixes a model's length")
    clips = _read(audio, dataset, 2, seed).arrays if audio else None
    heard = _read(calibration, dataset, exporting.CALIBRATION_CLIPS, seed) if calibration else None
    exporting.check(task, tolerated_drop, heard)
    options = exporters.Options(tuple(seconds or ()), padded, (), for_runtime)
    with say.working(f"exporting {checkpoint} to {format} {precision}") as progress:
        made = _made(checkpoint)
        model = _load(checkpoint)
        judge = exporting.judge(model, input, padded, task, heard, calibration, tolerated_drop, progress)
        artifact = exporters.export(
            model, format, folder, precision=precision, clips=clips, input=input, options=options,
            recipe=made.recipe if made else "", techniques=made.techniques if made else (),
            checkpoint=Path(checkpoint).resolve().name if made else "",
            calibration=sorted({*(made.calibration if made else ()), *(clip.name for clip in heard or ())}),
            calibration_clips=heard.arrays if heard else (), judge=judge, say=progress,
        )  # fmt: skip
    for line in exporting.told(artifact):
        say.note(line)
    print(folder)


def score(
    target: Annotated[str, typer.Argument(metavar="CHECKPOINT_OR_ARTIFACT", help="What is scored.")],
    task: Annotated[str, typer.Option(help="Task: see `list tasks`.")],
    audio: Annotated[Path, typer.Option(help="Folder of recordings, or a manifest.csv beside them.")],
    source: Annotated[
        str | None, typer.Option(help="The untouched model: needed for artifacts, and to compare with.")
    ] = None,
    dataset: Dataset = None,
    clips: Annotated[int | None, typer.Option(help="How many recordings; default: all.")] = None,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File for the score's record.")] = None,
    json: Json = False,
) -> None:
    """Score a checkpoint or an artifact on audio."""
    from edgecompress import stats
    from edgecompress.cli import say, scoring
    from edgecompress.job import scores_checkpoints

    asked = scoring.task(task)
    folder = audio if audio.is_dir() else audio.parent
    if scores_checkpoints(asked):
        with say.working(f"scoring {target}") as progress:
            record = scoring.score_checkpoint(target, asked, folder, progress)
    else:
        recordings = scoring.unseen(target, _read(audio, dataset, None, seed), clips)
        with say.working(f"scoring {target}") as progress:
            record = scoring.score(target, asked, recordings, folder, source, progress)
    if output is not None:
        record.write(output)
    if json:
        say.as_json(record.model_dump(by_alias=True, mode="json"))
        return
    groups = [str(item.detail.get("group") or "") for item in record.items]
    found = stats.score([item.numerator for item in record.items], [item.denominator for item in record.items], groups)
    interval = f" [{found.low:.4f}, {found.high:.4f}]" if found and found.low is not None else ""
    say.table(
        ("metric", "value", "clips"),
        [(record.metric, f"{found.value:.4f}{interval}" if found else "none", len(record.items))],
    )
    say.skipped(record.skipped)
    if output is not None:
        print(output)


def _to_train_on(audio: Path | None, datasets: list[str], split: str | None) -> Chosen | None:
    """The files to train on, not yet read."""
    from edgecompress import pipeline
    from edgecompress.errors import RecipeError
    from edgecompress.job import TrainingSource

    if audio is None:
        if datasets or split:
            raise RecipeError(
                "--train-dataset and --train-split choose from --train-audio, which is not given",
                hint="add --train-audio with a manifest.csv",
            )
        return None
    in_manifest = audio.is_file() or bool(datasets or split)
    folder, manifest = (audio.parent, audio.name) if audio.is_file() else (audio, "manifest.csv")
    return pipeline.choose(
        TrainingSource(
            folder=str(folder), manifest=manifest if in_manifest else None, datasets=tuple(datasets), split=split
        )
    )


def _load(path: str) -> Model:
    from edgecompress import model

    return model.load(path)


def _made(path: str) -> Any:
    """How a checkpoint was made; None for a folder that we did not write."""
    from edgecompress.records import Checkpoint

    record = Path(path) / "checkpoint.json"
    return Checkpoint.read(record) if record.is_file() else None


def _read(audio: Path, dataset: str | None, limit: int | None, seed: int) -> Clips:
    """Recordings from a folder or a manifest; those skipped are named on standard error."""
    from edgecompress.audio import read_folder, read_manifest
    from edgecompress.cli import say

    manifest = audio if audio.is_file() else audio / "manifest.csv" if dataset else None
    if manifest:
        clips = read_manifest(manifest, dataset=dataset, limit=limit, seed=seed)
    else:
        clips = read_folder(audio, limit=limit, seed=seed)
    say.skipped(clips.skipped)
    return clips
