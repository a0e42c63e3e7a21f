"""The command that looks inside a model: what its heads and layers do on audio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecompress.cli.models import Dataset, Json, Seed


def analyze(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model folder, checkpoint, or hub id.")],
    audio: Annotated[Path, typer.Option(help="Folder of recordings, or a manifest.csv beside them.")],
    limit: Annotated[int, typer.Option(min=1, help="How many recordings, at most.")] = 10,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for page, table and record.")] = None,
    dataset: Dataset = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Say what each head attends to, when each pruning score would remove it, and how alike layers are."""
    from edgecompress import analysis
    from edgecompress.analysis import relations
    from edgecompress.cli import say
    from edgecompress.cli.models import _load, _read

    folder = say.free_folder(output, "analysis.json") if output is not None else None
    clips = _read(audio, dataset, limit, seed)
    with say.working(f"loading {model}") as progress:
        found = analysis.analyze(_load(model), clips.arrays, seed=seed, say=progress)
    if folder is not None:
        analysis.write(found, folder)
    if json:
        say.as_json(found.model_dump(by_alias=True, mode="json"))
        return
    related = relations.relations(found)
    rows = [
        (relations.order_name(one.order), relations.told(one.pooled), relations.told(one.within))
        for one in related
        if one.measure == "diagonality"
    ]
    say.table(("pruning order", "diagonality and round of removal", "the same within layers"), rows)
    print(relations.answer(found, related))
    print(relations.details(found, related)[-1])
    for text in relations.cautions(found):
        say.note(text)
    if folder is not None:
        print(folder / "index.html")
