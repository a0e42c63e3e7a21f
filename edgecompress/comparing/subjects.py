"""What is compared: artifacts and plain files by path, named apart, and refused early where no comparison is fair."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgecompress import plain, session
from edgecompress.comparing.campaign import Measure
from edgecompress.comparing.record import Subject
from edgecompress.devices import Device
from edgecompress.errors import RecipeError
from edgecompress.records import Artifact, Measurement, canonical_json, file_sha256
from edgecompress.session import Plan, feeds


@dataclass(frozen=True)
class Given:
    """What plain files are fed, as ``session.measure_file`` takes it; artifacts have inputs of their own."""

    inputs: Path | Mapping[str, int] | None = None
    runtime: str = ""
    audio: Any = None

    def __bool__(self) -> bool:
        return self.inputs is not None or bool(self.runtime) or self.audio is not None

    def described(self) -> dict[str, Any]:
        """What of it belongs to the question: sizes, or hashes of contents."""
        found: dict[str, Any] = {}
        if isinstance(self.inputs, Path):
            found["arrays"] = {name: feeds.blob(array).sha256 for name, array in plain.arrays(self.inputs).items()}
        elif self.inputs:
            found["dims"] = dict(self.inputs)
        if self.audio is not None:
            found["audio"] = feeds.blob(self.audio).sha256
        return found


@dataclass(frozen=True)
class Target:
    """A model to run: an artifact with its folder, or a plain file."""

    path: Path
    subject: Subject
    artifact: Artifact | None = None


def targets(paths: Sequence[Path], given: Given, across_runtimes: bool = False) -> list[Target]:
    """The models at ``paths``, in order; a name that comes again is numbered.

    Raises:
        RecipeError: fewer than two, inputs given for an artifact, or models that no comparison of is fair: of unlike
            runtimes (unless ``across_runtimes``), or artifacts for audio of unlike lengths.
    """
    if len(paths) < 2:
        raise RecipeError("a comparison needs two models at least", hint="edgecompress compare A B; A A is one, too")
    found: list[Target] = []
    for path in paths:
        made = target(path, given)
        before = sum(one.subject.name.partition(" (")[0] == made.subject.name for one in found)
        name = f"{made.subject.name} ({before + 1})" if before else made.subject.name
        found.append(Target(made.path, made.subject.model_copy(update={"name": name}), made.artifact))
    runtimes = list(dict.fromkeys(one.subject.runtime for one in found))
    if len(runtimes) > 1 and not across_runtimes:
        raise RecipeError(
            f"these are run by different runtimes: {', '.join(runtimes)}",
            hint="compare files of one format, or say --across-runtimes: the ratio is then of model and runtime together",
        )
    lengths = {one.artifact.audio.golden_seconds for one in found if one.artifact and one.artifact.audio}
    if len(lengths) > 1:
        told = ", ".join(f"{length:g} s" for length in sorted(lengths))
        raise RecipeError(f"these take audio of different lengths: {told}", hint="export them with one length")
    return found


def target(path: Path, given: Given) -> Target:
    """One model.

    Raises:
        RecipeError: no such file, or inputs given for an artifact.
    """
    if (path / "artifact.json").is_file():
        if given:
            raise RecipeError(
                f"inputs and a runtime are only for plain files, and {path} is an artifact",
                hint="an artifact has its golden input and names its runtime; --seconds sets its length",
            )
        artifact = Artifact.read(path / "artifact.json")
        contents = {name: file.sha256 for name, file in artifact.files.items()}
        return Target(path, Subject(name=artifact.name, sha256=_hash(contents), runtime=artifact.runtime), artifact)
    file = plain.model_file(path)
    contents = {file.name: file_sha256(file), **{name: blob.sha256 for name, blob in feeds.beside(file).items()}}
    runtime = given.runtime or plain.kind_of(file).runtime
    return Target(file, Subject(name=file.name, sha256=_hash(contents), runtime=runtime))


def _hash(contents: dict[str, str]) -> str:
    if len(contents) == 1:
        return next(iter(contents.values()))
    return hashlib.sha256(canonical_json(contents).encode()).hexdigest()


def measuring(
    device: Device, variants: Sequence[Target], canary: Target | None, given: Given, say: Callable[[str], None] | None
) -> Measure:
    """How a campaign measures one of these on a device; a canary of its own gets its own inputs."""

    def measure(variant: int | None, plan: Plan) -> Measurement:
        own = variant is None and canary is not None
        chosen = canary if own and canary is not None else variants[variant or 0]
        if own:
            plan = replace(plan, seconds=None)
        if chosen.artifact is not None:
            return session.measure(device, chosen.artifact, chosen.path, plan, say)
        fed = Given() if own else given
        return session.measure_file(device, chosen.path, plan, fed.inputs, fed.runtime, say, fed.audio)

    return measure
