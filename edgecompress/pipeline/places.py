"""Where things lie on this machine: model folders, and what the given model of a job is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress import sources
from edgecompress.job import Job
from edgecompress.paths import existing, expand
from edgecompress.records import Source

if TYPE_CHECKING:
    from edgecompress.model import Model


def model_folder(text: str) -> Path:
    """A model's folder on this machine; a hub id is fetched first.

    Raises:
        RecipeError: no such folder.
        ModelError: the hub has no such model, or cannot be reached.
    """
    path = expand(text)
    if path.is_dir() or "${" in text or not sources.is_hub_id(text):
        return existing(text, "model folder")
    from edgecompress.model.storage import find_folder

    return find_folder(text)


def given_source(job: Job) -> Source:
    """Who the model is that a job names, from its files."""
    given = job.model
    if given.random is not None:
        config = sources.read_json(job.file.parent / given.random.config)
        return sources.of_random(config, given.random.seed, f"random {config.get('model_type', 'model')}")
    return sources.of_folder(model_folder(given.path or ""))


def given_model(job: Job, source: Source) -> Model:
    """The model that a job names, loaded."""
    from edgecompress import model

    given = job.model
    if given.random is None:
        return model.load(model_folder(given.path or ""))
    config = sources.read_json(job.file.parent / given.random.config)
    return model.from_config_values(config, seed=given.random.seed, source=source)
