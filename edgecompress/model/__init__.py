"""A network we may change. Structure changes only through edits with original indices; everything else is weights.

``load`` takes a Hugging Face folder (HuBERT, wav2vec2, WavLM, data2vec-audio, MelHuBERT, Whisper; BERT, ViT), ``save`` writes a checkpoint,
``load`` rebuilds it bit-equal from ``config.json`` + ``edits.json`` + ``model.safetensors``.
"""

from edgecompress.model.anatomy import FAMILIES, Anatomy
from edgecompress.model.network import Model
from edgecompress.model.storage import from_config, from_config_values, load, save

__all__ = ["FAMILIES", "Anatomy", "Model", "from_config", "from_config_values", "load", "save"]
