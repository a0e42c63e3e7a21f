"""``edgecompress transcribe``: an exported Whisper, encoder and decoder, writes what it hears. No torch is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.records import Artifact


def transcribe(
    recordings: Annotated[list[Path], typer.Argument(metavar="RECORDING...", help="Audio files.")],
    encoder: Annotated[
        Path, typer.Option(help="Artifact exported with --input waveform_cache, or cache (then with the torch extra).")
    ],
    decoder: Annotated[Path, typer.Option(help="Artifact exported with --input step, or fixed_step.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write the text of recordings, by an exported encoder and an exported decoder with a cache."""
    from edgecompress import audio, exporters
    from edgecompress.cli import say
    from edgecompress.transcript import Rules, read
    from edgecompress.transcript import transcribe as tokens_of

    encode_record, step_record = (
        _of_form(encoder, ("waveform_cache", "cache")),
        _of_form(decoder, exporters.WRITES_TEXT),
    )
    rules = Rules(**_rules(decoder))
    words = (decoder / exporters.WORDS[1]).read_text(encoding="utf-8")
    encode = exporters.runner(encode_record.format, encoder / encode_record.model_file)
    step = exporters.runner(step_record.format, decoder / step_record.model_file)
    sizes = {tensor.name: tensor.shape for tensor in step_record.inputs}
    capacity = sizes["past_keys"][3] if "position" in sizes else None
    said = {}
    for path in recordings:
        inputs = {encode_record.inputs[0].name: _inputs(encode_record, audio.read_clip(path).samples)}
        (tokens,) = tokens_of(encode, step, inputs, rules, capacity=int(capacity) if capacity else None)
        said[str(path)] = read(words, tokens)
        if not as_json:
            print(said[str(path)] if len(recordings) == 1 else f"{path}\t{said[str(path)]}", flush=True)
    if as_json:
        say.as_json(said)


def _of_form(folder: Path, forms: tuple[str, ...]) -> Artifact:
    from edgecompress.errors import RecordError
    from edgecompress.records import Artifact

    artifact = Artifact.read(folder / "artifact.json")
    found = artifact.lineage.get("form")
    if found not in forms:
        raise RecordError(f"{folder} takes {found!r}, wanted {' or '.join(forms)}", hint=f"export --input {forms[0]}")
    return artifact


def _rules(decoder: Path) -> dict[str, Any]:
    from edgecompress.errors import RecordError
    from edgecompress.exporters import WORDS

    for name in WORDS:
        if not (decoder / name).is_file():
            hint = f"put {name} beside config.json of the model, and export again"
            raise RecordError(f"{decoder} has no {name}: its tokens cannot become words", hint=hint)
    found = json.loads((decoder / WORDS[0]).read_text(encoding="utf-8"))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def _inputs(artifact: Artifact, samples: np.ndarray) -> np.ndarray:
    """(1, samples) as they are, or log-mel frames of the context by the library's extractor."""
    import numpy as np

    from edgecompress.errors import AudioError

    assert artifact.audio is not None
    most = artifact.audio.max_seconds
    if most is not None and samples.size > round(most * artifact.audio.sample_rate):
        seconds = samples.size / artifact.audio.sample_rate
        raise AudioError(f"{seconds:.1f} s of audio, and the encoder hears {most:g} s", hint="cut the recording")
    if artifact.audio.unit == "samples":
        return np.asarray(samples[None], dtype=np.float32)
    from edgecompress.model.features import whisper_log_mel

    return whisper_log_mel(samples, int(artifact.inputs[0].shape[1]), round((most or 30.0) * 100))
