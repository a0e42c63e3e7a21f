"""A model folder in, a checkpoint folder out, and the checkpoint rebuilt bit-equal: text and safetensors, no pickle."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgecompress import records, sources
from edgecompress.errors import ModelError
from edgecompress.model.anatomy import Anatomy, anatomy_of, class_name
from edgecompress.model.attention import PROJECTIONS, GatedSelfAttention, SelfAttention
from edgecompress.model.edits import EDITS
from edgecompress.model.folding import fold_weight_norm
from edgecompress.model.layer import MATRICES
from edgecompress.model.network import Model, Origin
from edgecompress.model.states import nothing_random_but_dropout
from edgecompress.records import Source
from edgecompress.sources import read_json

CONFIG_HINT = "see the config class of the family in transformers"
CARRIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "special_tokens_map.json",
    "merges.txt",
)


def load(path_or_id: str | os.PathLike[str]) -> Model:
    """Load a Hugging Face model folder, a hub id, or a checkpoint that edgecompress wrote.

    Weights become float32, weight norm is folded, attention is explicit. The model is in eval mode.

    Raises:
        ModelError: no such model, another family or head, weights missing, truncated, or only there as a pickle.
    """
    folder = find_folder(path_or_id)
    config = read_json(folder / "config.json")
    anatomy = anatomy_of(str(config.get("model_type")), str(folder))
    architecture = (config.get("architectures") or [anatomy.prefix + "Model"])[0]
    name = class_name(anatomy, str(architecture), str(folder))
    if (folder / "edits.json").exists():
        return _rebuild(folder, config, anatomy, name)
    origin = Origin(
        config=config,
        preprocessor=_preprocessor(folder),
        source=sources.of_folder(folder),
        source_bytes=sum(file.stat().st_size for file in sources.weight_files(folder)),
        extra_files=_carried(folder),
    )
    return dress(_from_folder(folder, name, anatomy), anatomy, name, origin)


def from_config(config: Any, *, seed: int, name: str = "random", source: Source | None = None) -> Model:
    """A model with random weights, made from a transformers config with a fixed seed; it says of itself that it is random."""
    anatomy = anatomy_of(config.model_type, type(config).__name__)
    architecture = class_name(anatomy, (config.architectures or [anatomy.prefix + "Model"])[0], type(config).__name__)
    given = config.to_dict()
    settings = {**given, "architectures": [architecture], sources.RANDOM_MARK: True}
    with torch.random.fork_rng(), _library(name, CONFIG_HINT):
        torch.manual_seed(seed)
        network = network_class(architecture)._from_config(copy.deepcopy(config), attn_implementation="eager")
    origin = Origin(settings, None, source or sources.of_random(given, seed, name))
    return dress(network.float(), anatomy, architecture, origin)


def from_config_values(config: dict[str, Any], *, seed: int, source: Source) -> Model:
    """As :func:`from_config`, from the values of a ``config.json``.

    Raises:
        ModelError: a family that is not supported, or values that its config class refuses.
    """
    anatomy_of(str(config.get("model_type")), source.name)
    with _library(source.name, CONFIG_HINT):
        settings = config_of(config)
    return from_config(settings, seed=seed, source=source)


def save(model: Model, folder: Path) -> None:
    """Write ``config.json`` (as it came), ``edits.json`` and ``model.safetensors`` into ``folder``.

    Raises:
        OSError: the disk is full, or another fault of the system.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    records.write_text(folder / "config.json", json.dumps(model.origin.config, indent=2, sort_keys=True) + "\n")
    if model.origin.preprocessor is not None:
        records.write_text(folder / "preprocessor_config.json", json.dumps(model.origin.preprocessor, indent=2) + "\n")
    for name, text in model.origin.extra_files.items():
        records.write_text(folder / name, text)
    document = {
        "schema": "edgecompress.edits/1",
        "source": model.origin.source.model_dump(mode="json"),
        "edits": EDITS.dump_python(list(model.edits), mode="json"),
    }
    weights = folder / "model.safetensors"
    try:
        save_file(_unshared(model.network), weights, metadata={"format": "pt"})
    except SafetensorError as cause:  # which hides the system's own error in its text
        number = re.search(r"os error (\d+)", str(cause))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(weights)) from cause
    records.write_text(folder / "edits.json", records.canonical_json(document) + "\n")


def dress(network: Any, anatomy: Anatomy, architecture: str, origin: Origin, *, check: bool = True) -> Model:
    """Fold weight norm and put our attention in the place of the library's."""
    import transformers

    layers = _layers_of(network, anatomy, architecture)
    folded = fold_weight_norm(network, check=check)
    version_4 = int(transformers.__version__.split(".")[0]) < 5
    returns = 3 if version_4 and anatomy.takes == "audio" and anatomy.family != "whisper" else 2
    kind = GatedSelfAttention if anatomy.relative_position else SelfAttention
    paths = {name: anatomy.path(name) for name in PROJECTIONS}
    inside = f"{anatomy.attention}."
    names = {name: path.removeprefix(inside) for name, path in paths.items() if path.startswith(inside)}
    for layer in layers:
        attention = kind(layer.get_submodule(anatomy.attention), returns, names)
        parent, _, leaf = anatomy.attention.rpartition(".")
        setattr(layer.get_submodule(parent), leaf, attention)
    nothing_random_but_dropout(network, waveform=anatomy.front_end_kind == "convolutions")
    model = Model(network, anatomy, architecture, origin)
    model.folded_parameters = folded
    return model


def _layers_of(network: Any, anatomy: Anatomy, architecture: str) -> nn.ModuleList:
    """The list of encoder layers.

    Raises:
        ModelError: this transformers keeps the family's parts elsewhere, or the network is a decoder.
    """
    import transformers

    config, strange = network.config, False
    if anatomy.takes == "tokens":
        strange = config.is_decoder or getattr(config, "position_embedding_type", "absolute") != "absolute"
    if strange:
        raise ModelError(
            f"{architecture} as a decoder, or with relative positions, is not supported",
            hint="give an encoder with absolute positions",
        )
    try:
        layers: nn.ModuleList = getattr(network.base_model.get_submodule(anatomy.encoder), anatomy.stack)
        for layer in layers[:1]:
            for name in MATRICES:
                layer.get_submodule(anatomy.path(name))
    except AttributeError as cause:
        raise ModelError(
            f"transformers {transformers.__version__} keeps the parts of {architecture} elsewhere ({cause})",
            hint="install a newer transformers",
        ) from cause
    return layers


# --- classes ---------------------------------------------------------------------------------------------------------
def network_class(name: str) -> Any:
    """The class of a network: the library's, or ours where the library has none (MelHuBERT)."""
    if name.startswith("MelHubert"):
        from edgecompress.model import melhubert

        return getattr(melhubert, name)
    import transformers

    return getattr(transformers, name)


def config_of(values: dict[str, Any]) -> Any:
    """The config object of a ``config.json``; its class may refuse the values in any way it likes."""
    import transformers

    from edgecompress.model import melhubert  # noqa: F401  importing it makes its model_type known

    return transformers.AutoConfig.for_model(**copy.deepcopy(values))


# --- folders ---------------------------------------------------------------------------------------------------------
def find_folder(path_or_id: str | os.PathLike[str]) -> Path:
    """A model folder on this machine: the path itself, or where the hub's client puts what the id names.

    Raises:
        ModelError: neither is there.
    """
    path = Path(path_or_id)
    if path.is_dir():
        return path
    text = str(path_or_id)
    if path.exists() or not sources.is_hub_id(text):
        raise ModelError(f"no such model folder: {text}", hint="give a folder with config.json and model.safetensors")
    from huggingface_hub import snapshot_download

    try:
        with _quiet():
            return Path(snapshot_download(text, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as cause:  # the hub client raises many kinds: offline, gated, unknown
        raise ModelError(
            f"no folder {text!r} here, and the hub did not give a model of that name ({type(cause).__name__})",
            hint="check the path, or the network and the hub id",
        ) from cause


def _carried(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text(encoding="utf-8") for name in CARRIED if (folder / name).exists()}


def _preprocessor(folder: Path) -> dict[str, Any] | None:
    """Settings of the feature extractor: newer folders keep them inside ``processor_config.json``."""
    if (folder / "preprocessor_config.json").exists():
        return read_json(folder / "preprocessor_config.json")
    if (folder / "processor_config.json").exists():
        both = read_json(folder / "processor_config.json")
        nested = both.get("feature_extractor") or both.get("image_processor")
        return nested if isinstance(nested, dict) else None
    return None


@contextmanager
def _library(where: object, hint: str) -> Iterator[None]:
    """Whatever the library raises on a config or weights it cannot take becomes a ModelError; its kinds change often."""
    try:
        with _quiet():
            yield
    except ModelError:
        raise
    except Exception as cause:
        raise ModelError(f"{where}: {type(cause).__name__}: {_line(cause)}", hint=hint) from cause


def _from_folder(folder: Path, name: str, anatomy: Anatomy) -> nn.Module:
    with _library(f"{folder}: the weights do not load", "the file is truncated or of another model; download it again"):
        network, info = network_class(name).from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    for name, parameter in network.named_parameters():
        if name.endswith("masked_spec_embed") and name in info["missing_keys"]:
            torch.nn.init.zeros_(parameter)  # only training looks at it; random, two loads would not be the same
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("masked_spec_embed"))
    if missing and all(key.startswith("pooler.") for key in missing):
        network.pooler, missing = None, []  # a folder that was saved with a pretraining head has none
    mismatched = sorted(str(key) for key in info.get("mismatched_keys", []))
    stack = re.escape(f"{anatomy.encoder}.{anatomy.stack}".lstrip("."))
    spare = sorted(key for key in info["unexpected_keys"] if re.search(rf"(^|\.){stack}\.\d+\.", key))
    if spare:
        raise ModelError(
            f"{folder}: config.json has no place for {len(spare)} weights of encoder layers, e.g. {spare[0]}",
            hint="config.json and model.safetensors belong to different models",
        )
    if missing or mismatched:
        raise ModelError(
            f"{folder}: {len(missing)} weights are missing and {len(mismatched)} have another shape, e.g. {(missing + mismatched)[0]}",
            hint="config.json and model.safetensors belong to different models",
        )
    return network


def _rebuild(folder: Path, config: dict[str, Any], anatomy: Anatomy, name: str) -> Model:
    """config + edits + safetensors, strictly: every name must be there, with its shape, and no other."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    document = read_json(folder / "edits.json")
    if document.get("schema") != "edgecompress.edits/1":
        raise ModelError(
            f"{folder / 'edits.json'}: schema {document.get('schema')!r}",
            hint="written by another version of edgecompress?",
        )
    try:
        edits = EDITS.validate_python(document["edits"])
        source = Source.model_validate(document["source"])
    except (KeyError, ValueError) as cause:
        raise ModelError(
            f"{folder / 'edits.json'} does not hold edits: {_line(cause)}", hint="compress the model again"
        ) from cause
    with _library(folder, CONFIG_HINT), torch.device("meta"):
        settings = config_of(config)
        network = network_class(name)._from_config(settings, dtype=torch.float32, attn_implementation="eager")
    origin = Origin(config, _preprocessor(folder), source, extra_files=_carried(folder))
    model = dress(network, anatomy, name, origin, check=False)
    for edit in edits:
        model.change(edit)
    try:
        state = load_file(folder / "model.safetensors")
        other = sorted(
            {str(tensor.dtype) for tensor in state.values() if tensor.is_floating_point()} - {"torch.float32"}
        )
        if other:
            raise RuntimeError(f"numbers of type {other[0]}, wanted torch.float32")
        if getattr(model.network, "pooler", None) is not None and not any(key.startswith("pooler.") for key in state):
            model.network.pooler = None
        model.network.load_state_dict(_with_ties(model.network, state), strict=True, assign=True)
    except FileNotFoundError as cause:
        raise ModelError(f"{folder} has no model.safetensors", hint="compress the model again") from cause
    except (SafetensorError, OSError, RuntimeError) as cause:
        raise ModelError(
            f"{folder}: the weights do not fit the edits: {_line(cause)}",
            hint="the folder is damaged; compress the model again",
        ) from cause
    _fill_buffers(model.network)
    if hasattr(model.network, "tie_weights"):
        model.network.tie_weights()
    return model.eval()


def _unshared(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state, each tensor once: safetensors refuses two names for one memory (Whisper ties its output to its input)."""
    seen: set[int] = set()
    state = {}
    for name, tensor in network.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        state[name] = tensor.detach().contiguous()
    return state


def _with_ties(network: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give a tied output matrix, which is stored once, its second name back."""
    if "proj_out.weight" in network.state_dict() and "proj_out.weight" not in state:
        tied = state.get("model.decoder.embed_tokens.weight")
        return state if tied is None else {**state, "proj_out.weight": tied}
    return state


def _fill_buffers(network: nn.Module) -> None:
    """Give BERT's tables of positions and of token types, which no file holds, their numbers."""
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta and name in ("position_ids", "token_type_ids"):
                row = torch.arange(buffer.shape[1]) if name == "position_ids" else torch.zeros(buffer.shape[1]).long()
                setattr(module, name, row.expand(buffer.shape))


def _line(cause: BaseException) -> str:
    return " ".join(str(cause).split())[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bars and advice: what a user must know, we say."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
