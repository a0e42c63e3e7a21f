"""Who a source model is, told from its files alone: what a cell's key needs, without waiting for torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from edgecompress import records
from edgecompress.errors import ModelError
from edgecompress.records import Source

RANDOM_MARK = "edgecompress_random_weights"
# Besides the weights, these decide what a model says.
SAYS = ("config.json", "preprocessor_config.json", "processor_config.json", "generation_config.json", "tokenizer.json")
PICKLES = ("pytorch_model.bin", "model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        ModelError: missing, unreadable, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise ModelError(
            f"{path.parent} has no {path.name}", hint="a model folder has config.json and model.safetensors"
        ) from cause
    except (OSError, ValueError) as cause:
        raise ModelError(f"{path} is not readable as JSON: {cause}", hint="download the folder again") from cause
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object", hint="download the folder again")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder.

    Raises:
        ModelError: there are none, some are missing, or the weights are only there as a pickle.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted({folder / Path(name).name for name in read_json(index).get("weight_map", {}).values()})
    elif (folder / "model.safetensors").exists():
        files = [folder / "model.safetensors"]
    else:
        pickles = [name for name in PICKLES if (folder / name).exists()]
        if pickles:
            raise ModelError(
                f"{folder} has its weights only as a pickle ({pickles[0]}), which can run code when loaded",
                hint="convert it to model.safetensors where you trust it, e.g. save_pretrained() in transformers",
            )
        raise ModelError(f"{folder} has no model.safetensors", hint="download the folder again")
    missing = [file for file in files if not file.exists()]
    if missing:
        raise ModelError(f"{missing[0]} is missing", hint="download the folder again")
    return files


def of_folder(folder: Path) -> Source:
    """The source that a model folder is: its name, a hash of its files, and whether it says that they are random.

    Raises:
        ModelError: not a model folder, or without safetensors.
    """
    if not folder.is_dir():
        raise ModelError(f"no such model folder: {folder}", hint="give a folder with config.json and model.safetensors")
    config = read_json(folder / "config.json")
    hashes = [records.file_sha256(file) for file in weight_files(folder)]
    hashes += [records.file_sha256(folder / name) for name in SAYS if (folder / name).exists()]
    digest = hashlib.sha256(records.canonical_json(hashes).encode()).hexdigest()
    return Source(name=hub_name(folder), sha256=digest, random_weights=bool(config.get(RANDOM_MARK, False)))


def is_hub_id(text: str) -> bool:
    """Whether a text that is no path here may name a model on the hub: ``owner/name``."""
    return text.count("/") == 1 and not text.startswith((".", "/", "~"))


def hub_name(folder: Path) -> str:
    """A folder's name; the hub's cache names folders by commit, so there it is the name of the model."""
    place = folder.resolve()
    if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
        return place.parent.parent.name.removeprefix("models--").replace("--", "/")
    return place.name


def of_random(config: dict[str, Any], seed: int, name: str) -> Source:
    """The source that random weights from a config and a seed are."""
    return Source(name=name, sha256=records.content_key({"config": config, "seed": seed}), random_weights=True)
