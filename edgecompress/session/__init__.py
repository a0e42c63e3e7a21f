"""A session: ship the agent, put files by hash, run one job, follow its events, return a Measurement.

Raw samples are kept; what they mean is computed by whoever reads them. Nothing is installed on the device, and after
any ending (also a bad one) none of our processes is left there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench_remote import PROTOCOL
from edgecompress import plain, runtimes
from edgecompress.devices import Blob, Device, Profile
from edgecompress.devices.profile import matching
from edgecompress.errors import RecipeError, RecordError
from edgecompress.records import Artifact, Measurement, now
from edgecompress.session import agent, events, feeds
from edgecompress.session.plan import Plan as Plan
from edgecompress.session.plan import cool_down as cool_down
from edgecompress.session.stream import Collector, follow

Say = Callable[[str], None]

SAMPLE_RATE = 16000


@dataclass(frozen=True)
class Probe:
    """What a device is: facts that stay, facts of now, runtimes (version, or why it is absent), and its profile."""

    name: str
    python: str
    identity: dict[str, Any]
    state: dict[str, Any]
    runtimes: dict[str, str | None]
    absent: dict[str, str]
    profile: Profile | None


def measure(device: Device, artifact: Artifact, folder: Path, plan: Plan, progress: Say | None = None) -> Measurement:
    """Measure an artifact whose files are in ``folder``.

    Raises:
        DeviceError: what the device, or the way to it, did wrong; see ``edgecompress.errors``.
        RecordError: the artifact's files are not what its record says.
        RecipeError: the plan asks for a length that this artifact cannot take.
    """
    files = _files(artifact, folder)
    lengths, audio_seconds = feeds.lengths(artifact, plan.seconds)
    job = {
        "model": artifact.model_file,
        "golden": artifact.golden.model_dump(),
        "lengths": lengths,
        "filled": feeds.filled(artifact, lengths),
    }
    about = {
        "artifact": artifact.name,
        "artifact_sha256": files[artifact.model_file].sha256,
        "recipe": artifact.recipe,
        "format": artifact.format,
        "precision": artifact.precision,
        "audio_seconds": audio_seconds,
    }
    return _measure(device, artifact.runtime, files, job, about, plan, progress)


def measure_file(
    device: Device,
    path: Path,
    plan: Plan,
    inputs: Path | Mapping[str, int] | None = None,
    runtime: str = "",
    progress: Say | None = None,
    audio: Any = None,
) -> Measurement:
    """Measure a plain model file, without a golden check. What belongs to it and lies beside it is sent along.

    Args:
        inputs: a folder of ``<input>.npy`` or an ``.npz`` with the inputs; or sizes of dimensions by name, for inputs
            made on the device from the model's own shapes; None makes them with default sizes.
        runtime: that of the file's suffix, unless another is named.
        audio: 16 kHz mono float32 samples (n,) for the one input that takes them; other inputs are made as above.

    Raises:
        DeviceError: what the device, or the way to it, did wrong; Refused also where the inputs do not fit.
        RecipeError: no such file, a part of it missing, a suffix that no runtime is known for.
    """
    path = plain.model_file(path)
    runtime = runtime or plain.kind_of(path).runtime
    if plan.seconds is not None:
        raise RecipeError(
            "seconds needs an artifact, which knows what a second is", hint="give sizes of dimensions instead"
        )
    files = {path.name: Blob.of(path), **feeds.beside(path)}
    job: dict[str, Any] = {"model": path.name}
    if audio is not None:
        files["inputs/audio.npy"] = feeds.blob(audio)
        job["audio"] = "inputs/audio.npy"
    if isinstance(inputs, Path):
        arrays = feeds.given(inputs)
        files |= {f"inputs/{number}.npy": blob for number, blob in enumerate(arrays.values())}
        job["inputs"] = {name: f"inputs/{number}.npy" for number, name in enumerate(arrays)}
    elif inputs:
        job["dims"] = dict(inputs)
    about = {
        "artifact": path.name,
        "artifact_sha256": files[path.name].sha256,
        "recipe": "",
        "format": path.suffix.removeprefix(".") or "file",
        "precision": "",
        "audio_seconds": None,
    }
    return _measure(device, runtime, files, job, about, plan, progress)


def probe(device: Device, timeout_s: float = 60.0) -> Probe:
    """Ask a device what it is and which runtimes its Python can import."""
    asked = [runtimes.find(name) for name in runtimes.names()]
    package = agent.build(asked)
    put = device.transport.put(device.config.python, device.config.cache, [package])
    job = _job(device, put.cache, timeout_s) | {"action": "probe", "runtimes": [_spelled(one) for one in asked]}
    identity: dict[str, Any] = {}
    state: dict[str, Any] = {}
    found: dict[str, str | None] = {}
    absent: dict[str, str] = {}
    for event in follow(device, f"{put.cache}/objects/{package.sha256}", job, timeout_s):
        if isinstance(event, events.Hello):
            identity = event.identity
        elif isinstance(event, events.Facts):
            state = event.facts
        elif isinstance(event, events.RuntimeFound):
            found[event.name] = event.version
            if event.version is None:
                absent[event.name] = event.absent or "no reason given"
    return Probe(device.name, put.python, identity, state, found, absent, device.profile or matching(identity))


def _measure(
    device: Device,
    runtime_name: str,
    files: dict[str, Blob],
    job: dict[str, Any],
    about: dict[str, Any],
    plan: Plan,
    progress: Say | None,
) -> Measurement:
    started = now()
    runtime = runtimes.find(runtime_name)
    package = agent.build([runtime])
    sending = None if progress is None else lambda sent, total: progress(f"sending {sent >> 20} of {total >> 20} MiB")
    blobs = [package, *files.values()]
    put = device.transport.put(device.config.python, device.config.cache, blobs, sending)
    whole = {"golden": None, "inputs": None, "audio": None, "dims": {}, "lengths": {}, "filled": {}} | job
    whole |= _job(device, put.cache, plan.timeout_s) | plan.job
    whole |= {"runtime": _spelled(runtime), "files": {name: blob.sha256 for name, blob in files.items()}}
    collector = Collector(progress)
    for event in follow(device, f"{put.cache}/objects/{package.sha256}", whole, plan.timeout_s, progress):
        collector.take(event)
    repetitions = collector.repetitions(plan.repetitions)
    board = device.profile or matching(collector.identity)
    if heard := collector.input.get("audio_samples"):
        about = {**about, "audio_seconds": heard / SAMPLE_RATE}
    if about["audio_seconds"] is not None:
        about = {**about, "audio_seconds": about["audio_seconds"] * plan.batch}
    return Measurement(
        **about,
        device=device.name,
        transport=device.transport.kind,
        profile=board.id if board else None,
        runtime=runtime_name,
        runtime_version=collector.version,
        options=collector.options,
        plan=asdict(plan) | {"affinity": list(plan.affinity)},
        input=collector.input,
        identity=collector.identity,
        repetitions=repetitions,
        memory_pass=collector.memory_pass,
        operators=collector.operators,
        bytes_sent=put.bytes_sent,
        agent_sha256=package.sha256,
        protocol=PROTOCOL,
        started=started,
        ended=now(),
        tool=_tool(),
    )


def _files(artifact: Artifact, folder: Path) -> dict[str, Blob]:
    """Every file that the device needs, checked against the artifact's record."""
    golden = [*artifact.golden.inputs.values(), *artifact.golden.outputs.values()]
    found = {}
    for name in dict.fromkeys([artifact.model_file, *artifact.files, *golden]):
        path = folder / name
        if not path.is_file():
            raise RecordError(f"{path}: no such file, though the artifact names it", hint="export it again")
        found[name] = Blob.of(path)
        wanted = artifact.files.get(name)
        if wanted is not None and wanted.sha256 != found[name].sha256:
            raise RecordError(f"{path}: has changed since it was exported (wrong hash)", hint="export it again")
    return found


def _job(device: Device, cache: str, timeout_s: float) -> dict[str, Any]:
    return {
        "protocol": PROTOCOL,
        "action": "measure",
        "cache": cache,
        "site": device.config.site,
        "deadline_s": timeout_s,
    }


def _spelled(runtime: runtimes.Runtime) -> dict[str, str]:
    return {"name": runtime.name, "module": runtime.module, "function": runtime.function}


def _tool() -> str:
    try:
        return f"edgecompress {version('edgecompress')}"
    except PackageNotFoundError:
        return "edgecompress (not installed)"
