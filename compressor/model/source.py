"""Where a model comes from: a local folder or the hub, and what its config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig, PretrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

from compressor.architectures import FAMILIES, OWN_TYPE, TOWERS, Family, Tower, family_named
from compressor.architectures.tasks import RETURNED, stock_classes
from compressor.errors import ModelError, brief, did_you_mean, summary
from compressor.machine.shortage import raise_shortage
from compressor.model.foreign import refuse_adapter, refuse_foreign_codes
from compressor.storage.files import check_folder, own_file
from compressor.storage.json_files import read_json

OWN_CLASS = "Compressed"
"""What the class in `architectures` is called then, before the name of the stock class."""
HUB_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]


def resolve_path(model: str, *, revision: str | None = None) -> Path:
    """Return the local folder of a model: `demo`, a folder, or a hub id whose needed files are then downloaded.

    Raises:
        ModelError: there is no such folder, and the hub does not have it or cannot be reached; or the folder holds
            files that are not its own (see `compressor.storage.files`).
    """
    if model == "demo":
        from compressor.demo import MODEL_DIR

        return Path(MODEL_DIR)
    folder = Path(model).expanduser()
    if folder.is_dir():
        check_folder(folder)
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
    file = own_file(folder, "config.json")
    refuse_adapter(folder)
    if file is None:
        raise ModelError(f"{folder}: no config.json", hint="Give the folder of a Hugging Face model.")
    raw = read_json(file)
    if "model_type" not in raw:
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
    towers = TOWERS.get(kind) if isinstance(kind, str) else None
    if towers is None:
        family_named(kind)
    parts = [raw.get(tower.config) for tower in (towers or {}).values()]
    for numbers in (raw, *(part for part in parts if isinstance(part, dict))):
        check_numbers(numbers)
    ours = {key: value for key, value in {**RETURNED, "use_cache": True}.items() if key in raw}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        if trust_remote_code:
            return cast(PretrainedConfig, AutoConfig.from_pretrained(folder, trust_remote_code=True, **ours))
        stated = {key: value for key, value in raw.items() if key != "auto_map"}
        return _for_model(kind, {**stated, **ours})
    except Exception as error:  # transformers validates configs with huggingface_hub's own error classes
        raise_shortage(error)
        what = f"{type(error).__name__}: {summary(error)}"
        raise ModelError(f"config.json is not a config that transformers understands: {what}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def tower_in(config: PretrainedConfig, part: str | None) -> Tower | None:
    """Return the part of a model that is asked for; None for a model that has no parts, taken whole.

    Raises:
        ModelError: a model of several towers is to be taken whole, or the model has no such part.
    """
    towers, kind = TOWERS.get(config.model_type), config.model_type
    if towers is None and part is None:
        return None
    if towers is None:
        raise ModelError(f"model.part: {part}: a model of model_type {kind!r} has no parts", hint="Leave it out.")
    if part is None or part not in towers:
        names = " or ".join(towers)
        raise ModelError(
            f"config.json: model_type {kind!r} is a model of several towers, of which one is to be named here: {names}",
            hint=f"Set model.part to {names} in the recipe, or with --set model.part={next(iter(towers))}.",
        )
    return towers[part]


def config_of(stated: dict[str, Any]) -> PretrainedConfig:
    """Return the transformers config of what a config.json says."""
    return _for_model(stated["model_type"], {key: value for key, value in stated.items() if key != "model_type"})


def _for_model(kind: str, stated: dict[str, Any]) -> PretrainedConfig:
    if any(family.own and kind in family.model_types for family in FAMILIES):
        import compressor.model.llava_vision  # noqa: F401  makes it known to transformers
    config: PretrainedConfig = AutoConfig.for_model(kind, **stated)
    return config


def tower_config(config: PretrainedConfig, tower: Tower) -> dict[str, Any]:
    """Return the config.json of a tower by itself, from that of the whole model.

    Raises:
        ModelError: the tower is of a kind that is not covered, or no single block's output is read.
    """
    stated: dict[str, Any] = getattr(config, tower.config).to_dict()
    kind = stated["model_type"]
    if tower.kinds and kind not in tower.kinds:
        raise ModelError(
            f"config.json: {tower.config} is of model_type {kind!r}; covered here: {', '.join(tower.kinds)}"
        )
    inherited = {key: getattr(config, key) for key in tower.inherits}
    inherited |= {key: attrgetter(place)(config) for key, place in tower.takes}
    if tower.depth is not None:
        inherited["num_hidden_layers"] = _blocks_run(config, tower.depth, int(stated["num_hidden_layers"]))
    dtype = getattr(config, "dtype", None)
    named: dict[str, Any] = {
        "model_type": tower.model_type or kind,
        "architectures": [tower.architecture or stock_classes("text-generation", kind)[0]],
    }
    if dtype is not None:
        named["dtype"] = str(dtype).removeprefix("torch.")
    return {**stated, **inherited, **named}


def _blocks_run(config: PretrainedConfig, key: str, blocks: int) -> int:
    """Return how many of a tower's blocks run, where `key` says whose output is read: 0 is what the first one reads."""
    layer = getattr(config, key)
    whole = isinstance(layer, int) and not isinstance(layer, bool)
    run = layer + (blocks + 1 if layer < 0 else 0) if whole else 0
    if not 1 <= run <= blocks:
        raise ModelError(
            f"config.json: {key} is {brief(layer)}; covered is the output of one of {blocks} blocks:"
            f" {-blocks} to -1, or 1 to {blocks}"
        )
    return int(run)


def check_numbers(config: Mapping[str, Any]) -> None:
    """Refuse numbers in config.json that no model has, before modules of them are built.

    Raises:
        ModelError: a size is no number from 1 to its bound, another number is out of all bounds, or the padding token
            is none of the vocabulary.
    """
    for key, value in config.items():
        least, most = (_LEAST.get(key, 1), _MOST[key]) if key in _MOST else (-_LARGEST, _LARGEST)
        for number in value if isinstance(value, list) and key in _SIDES else [value]:
            whole = isinstance(number, int) and not isinstance(number, bool)
            if (key in _MOST or whole) and number is not None and not (whole and least <= number <= most):
                raise _no_size(f"{key} is {brief(value)}; allowed: whole numbers from {least} to {most}")
    size, padding = config.get("vocab_size"), config.get("pad_token_id")
    if isinstance(size, int) and isinstance(padding, int) and padding >= size:
        raise _no_size(f"pad_token_id is {brief(padding)}; vocab_size is {size}, so tokens are 0 to {size - 1}")


def _no_size(problem: str) -> ModelError:
    return ModelError(f"config.json: {problem}", hint="Take config.json from the same place as the weights.")


_LARGEST = 2**53
_SIDES = ("image_size", "patch_size")
"""Keys that may state height and width apart."""
_LEAST = {"num_register_tokens": 0}
_MOST = {
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "ffn_dim": 2**22,
    "word_embed_proj_dim": 2**20,
    "num_hidden_layers": 512,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**16,
    "vocab_size": 2**26,
    "max_position_embeddings": 2**24,
    "image_size": 2**14,
    "patch_size": 2**12,
    "num_channels": 2**10,
    "num_labels": 2**20,
    "mlp_ratio": 2**10,
    "num_register_tokens": 2**12,
}
"""Key of config.json -> beyond what it takes minutes, or more memory than there is, to build a model of no weights."""


def check_activation(config: PretrainedConfig, family: Family) -> None:
    """Raise ModelError where config.json names an activation that transformers does not have."""
    given = getattr(config, family.activation_key)
    if not isinstance(given, str) or given not in ACT2FN:
        near = did_you_mean(given, ACT2FN) if isinstance(given, str) else ""
        raise ModelError(
            f"config.json: {family.activation_key} is {brief(given)}{near}; allowed: {', '.join(sorted(ACT2FN))}"
        )
