"""edgecompress: compress a speech Transformer, export it, measure it on the device, see what was won and lost.

    import edgecompress as ec

    model = ec.load("path/to/hubert")
    ec.compress(model, [ec.PruneHeads(ratio=0.5)])
    ec.export(model, "onnx", "out/")

Names are looked up when they are first used, so importing the package is quick and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "load": "edgecompress.model",
    "save": "edgecompress.model",
    "from_config": "edgecompress.model",
    "Model": "edgecompress.model",
    "compress": "edgecompress.techniques",
    "Context": "edgecompress.techniques",
    "PruneWeights": "edgecompress.techniques.prune_weights",
    "PruneHeads": "edgecompress.techniques.prune_heads",
    "PruneFfn": "edgecompress.techniques.prune_ffn",
    "PruneFrontEnd": "edgecompress.techniques.prune_front_end",
    "PruneJointly": "edgecompress.techniques.prune_jointly",
    "Factorize": "edgecompress.techniques.factorize",
    "DropLayers": "edgecompress.techniques.drop_layers",
    "Distill": "edgecompress.techniques.distill",
    "Pretrain": "edgecompress.techniques.pretrain",
    "Finetune": "edgecompress.techniques.finetune",
    "TrimContext": "edgecompress.techniques.trim_context",
    "export": "edgecompress.exporters",
    "cost": "edgecompress.cost",
    "EdgeCompressError": "edgecompress.errors",
}

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'edgecompress' has no attribute {name!r}")
    if name == "cost":
        return import_module("edgecompress.cost")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
