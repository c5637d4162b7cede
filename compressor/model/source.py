"""Where a model comes from: a local folder or the hub, and what its config.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from transformers import AutoConfig, PretrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

from compressor.architectures import Family, family_named
from compressor.errors import ModelError, did_you_mean
from compressor.model.foreign import refuse_adapter, refuse_foreign_codes

OWN_TYPE = "compressed_"
"""What `model_type` begins with where stock modules would compute something else: stock transformers refuses that."""
OWN_CLASS = "Compressed"
"""What the class in `architectures` is called then, before the name of the stock class."""
HUB_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "1_Pooling/*"]


def resolve_path(model: str, *, revision: str | None = None) -> Path:
    """Return the local folder of a model: `demo`, a folder, or a hub id whose needed files are then downloaded.

    Raises:
        ModelError: there is no such folder, and the hub does not have it or cannot be reached.
    """
    if model == "demo":
        from compressor.demo import MODEL_DIR

        return Path(MODEL_DIR)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith(".") or model.count("/") != 1:
        raise ModelError(f"{model}: no such folder", hint="Give a local model folder or a hub id such as owner/name.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=HUB_PATTERNS))
    except Exception as error:
        raise ModelError(
            f"{model}: neither a local folder nor a model that the hub gives: {type(error).__name__}",
            hint="Check the name and the network; gated models need HF_TOKEN. A local folder works offline.",
        ) from error


def read_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read config.json.

    Raises:
        ModelError: it is missing, is not a config, is of a family that is not covered, or asks for remote code that was
            not allowed.
    """
    file = folder / "config.json"
    refuse_adapter(folder)
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder}: no config.json", hint="Give the folder of a Hugging Face model.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{file.name} cannot be read: {error}") from error
    if not isinstance(raw, dict) or "model_type" not in raw:
        raise ModelError(f"{folder}: config.json names no model_type")
    refuse_foreign_codes(raw)
    if "transformers_weights" in raw:
        raise ModelError(
            f"config.json: transformers_weights names {raw['transformers_weights']!r:.80} as the file with the weights",
            hint="Rename that file to model.safetensors and remove the key.",
        )
    kind = raw.pop("model_type")
    if isinstance(kind, str) and kind.startswith(OWN_TYPE):
        kind = kind.removeprefix(OWN_TYPE)
        raw["architectures"] = [str(name).removeprefix(OWN_CLASS) for name in raw.get("architectures") or ()]
    family_named(kind)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        if trust_remote_code:
            return cast(PretrainedConfig, AutoConfig.from_pretrained(folder, trust_remote_code=True))
        config: PretrainedConfig = AutoConfig.for_model(kind, **{k: v for k, v in raw.items() if k != "auto_map"})
        return config
    except (ValueError, TypeError, KeyError, AttributeError, OSError, ImportError) as error:
        raise ModelError(f"config.json is not a config that transformers understands: {error}") from error
    except Exception as error:  # transformers validates configs with huggingface_hub's own error classes
        raise ModelError(f"config.json: {type(error).__name__}: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def check_activation(config: PretrainedConfig, family: Family) -> None:
    """Raise ModelError where config.json names an activation that transformers does not have."""
    given = getattr(config, family.activation_key)
    if given not in ACT2FN:
        raise ModelError(
            f"config.json: {family.activation_key} is {given!r}{did_you_mean(given, ACT2FN)};"
            f" allowed: {', '.join(sorted(ACT2FN))}"
        )
