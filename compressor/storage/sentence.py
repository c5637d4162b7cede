"""What sentence-transformers does with a model's hidden states, as the files of its folder state it.

modules.json lists the modules: the transformer, one Pooling, then any of Dense, LayerNorm, Dropout and Normalize. A
folder without modules.json pools as `1_Pooling/config.json` says, else by the mean, as that library does. Whatever else
such files ask for is refused by its name, because figures of another embedding would be worth nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import ModelError, did_you_mean
from compressor.storage.companions import MODULES, module_list, read_companion
from compressor.storage.tensors import SINGLE, read_header

POOLING_MODES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""Name of each mode -> the key that switches it on in files of older releases, in the order of concatenation."""
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU", "SELU", "Mish", "Softplus")
"""Classes of torch.nn, without options, that may follow a Dense."""
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

_PACKAGE = "sentence_transformers."
_POOLING = "1_Pooling"
_SETTINGS = "sentence_bert_config.json"
_PROMPTS = "config_sentence_transformers.json"
_PICKLE = "pytorch_model.bin"
_EMBEDDING = "sentence_embedding"
_RESAVE = "Save it with sentence-transformers as it is today: SentenceTransformer(FOLDER).save_pretrained(FOLDER)."


@dataclass(frozen=True)
class SentenceModule:
    """One module behind the pooling.

    Attributes:
        kind: `Dense`, `LayerNorm` or `Normalize`.
        weights: its file of weights, None without any.
        activation: class of torch.nn that follows a Dense.
        residual: whether a Dense adds its input, or a projection of it, to its output.
    """

    kind: str
    weights: Path | None = None
    activation: str = "Identity"
    residual: bool = False


@dataclass(frozen=True)
class SentenceEncoder:
    """From text to hidden states, and from them to an embedding.

    Attributes:
        modes: how tokens are pooled; the results of several are joined.
        include_prompt: whether tokens of the prompt are pooled too.
        modules: what follows, in order.
        prompt: text that is put before every sentence by default.
        lower_case: whether text is lower-cased, whatever the tokenizer does.
        max_length: tokens at which sentences are cut off; None leaves that to the tokenizer.
        similarity: how two embeddings are compared: a name of `SIMILARITIES`.
    """

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    modules: tuple[SentenceModule, ...] = ()
    prompt: str = ""
    lower_case: bool = False
    max_length: int | None = None
    similarity: str = "cosine"


def read_sentence_encoder(folder: Path, width: int | None = None) -> SentenceEncoder:
    """Return what the files of a model folder say; weights are looked at, not read.

    Args:
        folder: of the model.
        width: of its hidden states, which the weights of a Dense must fit; None leaves that open.

    Raises:
        ModelError: a file is missing or damaged, or asks for what is not covered; it is named.
    """
    listed = module_list(folder)
    pooling, rest = _split(folder, listed)
    modes, include_prompt = _pooling(folder, pooling)
    size = len(modes) * width if width is not None else None
    modules = []
    for kind, path in rest:
        module, size = _module(folder, kind, path, size)
        modules += [module] if module is not None else []
    lower_case, max_length = _settings(folder) if listed else (False, None)
    prompt, similarity = _prompt(folder) if listed else ("", "cosine")
    return SentenceEncoder(modes, include_prompt, tuple(modules), prompt, lower_case, max_length, similarity)


def _split(folder: Path, listed: list[dict[str, str]]) -> tuple[str | None, list[tuple[str, str]]]:
    """Return the folder of the pooling, if there is one, and the kind and the folder of every module behind it."""
    if not listed:
        return (_POOLING if (folder / _POOLING / "config.json").is_file() else None), []
    kinds = [_kind(module["type"]) for module in listed]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise ModelError(
            f"{MODULES}: the modules are {', '.join(kinds)}; covered are sentence encoders of a Transformer, a Pooling"
            " and any of Dense, LayerNorm, Dropout and Normalize, in this order"
        )
    if path := listed[0]["path"]:
        raise ModelError(
            f"{MODULES}: the transformer lies in {path}; it must lie beside {MODULES}",
            hint=f"{_RESAVE} Its files are then in FOLDER itself.",
        )
    return listed[1]["path"], [(kind, module["path"]) for kind, module in zip(kinds[2:], listed[2:], strict=True)]


def _kind(name: str) -> str:
    """Return the class of a module without its package; one of another package is given with it."""
    return name.rpartition(".")[2] if name.startswith(_PACKAGE) else name


def _pooling(folder: Path, path: str | None) -> tuple[tuple[str, ...], bool]:
    """Return the modes of a pooling, and whether it takes the tokens of a prompt in."""
    if path is None:
        return ("mean",), True
    name = _file(path, "config.json")
    config = read_companion(folder, name, dict)
    found = config.get("pooling_mode")
    if found is None:
        found = [mode for mode, key in POOLING_MODES.items() if config.get(key)] or "mean"
    modes = (found,) if isinstance(found, str) else tuple(found) if isinstance(found, list) else ()
    unknown = [mode for mode in modes if not isinstance(mode, str) or mode not in POOLING_MODES]
    unknown += [
        key.removeprefix("pooling_mode_")
        for key, on in config.items()
        if key.startswith("pooling_mode_") and on and key not in POOLING_MODES.values()
    ]
    if unknown or not modes:
        given = repr(unknown[0]) + did_you_mean(str(unknown[0]), POOLING_MODES) if unknown else repr(found)
        raise ModelError(f"{name}: pooling mode {given} is not covered; allowed: {', '.join(POOLING_MODES)}")
    return modes, bool(config.get("include_prompt", True))


def _module(folder: Path, kind: str, path: str, size: int | None) -> tuple[SentenceModule | None, int | None]:
    """Return a module behind the pooling, None where it does nothing, and the width of what it gives.

    Raises:
        ModelError: it is not covered, or its files are not what they must be.
    """
    name = _file(path, "config.json")
    config = read_companion(folder, name, dict) if (folder / name).is_file() else {}
    if kind == "Dropout":
        return None, size
    if kind not in ("Dense", "LayerNorm", "Normalize"):
        raise ModelError(
            f"{MODULES}: the module {kind} ({path}) is not covered; allowed after Pooling:"
            " Dense, LayerNorm, Dropout, Normalize"
        )
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, _EMBEDDING):
            raise ModelError(f"{name}: {key} is {config[key]!r}, which is not covered; allowed: {_EMBEDDING}")
    if kind == "Normalize":
        return SentenceModule(kind), size
    if not config:
        raise ModelError(f"{name} is missing, and {MODULES} names it")
    weights = _weights(folder, path)
    if kind == "LayerNorm":
        inner = _number(config, "dimension", name)
        _check_weights(weights, path, {"norm.weight": (inner,), "norm.bias": (inner,)})
        return SentenceModule(kind, weights), _fitting(inner, inner, size, name)
    inner, out = _number(config, "in_features", name), _number(config, "out_features", name)
    residual = bool(config.get("use_residual", False))
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (out, inner)}
    shapes |= {"linear.bias": (out,)} if config.get("bias", True) else {}
    shapes |= {"residual.weight": (out, inner)} if residual and out != inner else {}
    _check_weights(weights, path, shapes)
    return SentenceModule(kind, weights, _activation(config, name), residual), _fitting(inner, out, size, name)


def _file(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _number(config: dict[str, Any], key: str, name: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise ModelError(f"{name}: {key} is {value!r}; allowed: a positive whole number")
    return value


def _fitting(inner: int, out: int, size: int | None, name: str) -> int:
    if size is not None and size != inner:
        raise ModelError(f"{name}: takes {inner} values, and what comes before it gives {size}")
    return out


def _activation(config: dict[str, Any], name: str) -> str:
    stated = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    package, _, found = str(stated).rpartition(".")
    if not (package == "torch.nn" or package.startswith("torch.nn.modules.")) or found not in ACTIVATIONS:
        raise ModelError(
            f"{name}: activation_function is {stated!r}, which is not covered; allowed of torch.nn:"
            f" {', '.join(ACTIVATIONS)}"
        )
    return found


def _weights(folder: Path, path: str) -> Path:
    file = folder / path / SINGLE
    if file.is_file():
        return file
    if (folder / path / _PICKLE).is_file():
        raise ModelError(
            f"{path}/{_PICKLE} is a pickle, which can run code and is not read; allowed: {SINGLE}", hint=_RESAVE
        )
    raise ModelError(f"{path}/{SINGLE} is missing, and {MODULES} names its module", hint=_RESAVE)


def _check_weights(file: Path, path: str, shapes: dict[str, tuple[int, ...]]) -> None:
    found = {name: entry.shape for name, entry in read_header(file).items()}
    for name in sorted({*found, *shapes}):
        if found.get(name) != shapes.get(name):
            stated = list(shapes[name]) if name in shapes else "no such tensor"
            given = list(found[name]) if name in found else "no such tensor"
            raise ModelError(f"{path}/{SINGLE}: {name} is {given}; {path}/config.json describes {stated}")


def _settings(folder: Path) -> tuple[bool, int | None]:
    """Return whether text is lower-cased, and where sentences are cut off.

    Raises:
        ModelError: not the last hidden states are pooled.
    """
    if not (folder / _SETTINGS).is_file():
        return False, None
    config = read_companion(folder, _SETTINGS, dict)
    allowed = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    modality = config.get("modality_config")
    text = modality.get("text") if isinstance(modality, dict) else None
    stated = {**config, **(text if isinstance(text, dict) else {})}
    for key, value in {**allowed, "method": "forward", "method_output_name": "last_hidden_state"}.items():
        if stated.get(key) not in (None, value):
            raise ModelError(f"{_SETTINGS}: {key} is {stated[key]!r}, which is not covered; allowed: {value}")
    length = config.get("max_seq_length")
    if length is not None and (type(length) is not int or length < 1):
        raise ModelError(f"{_SETTINGS}: max_seq_length is {length!r}; allowed: null or a positive whole number")
    return bool(config.get("do_lower_case", False)), length


def _prompt(folder: Path) -> tuple[str, str]:
    """Return the prompt that stands before every sentence by default, and the name of the similarity."""
    if not (folder / _PROMPTS).is_file():
        return "", "cosine"
    config = read_companion(folder, _PROMPTS, dict)
    prompts, name = config.get("prompts") or {}, config.get("default_prompt_name")
    similarity = config.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise ModelError(
            f"{_PROMPTS}: similarity_fn_name is {similarity!r}, which is not covered;"
            f" allowed: {', '.join(SIMILARITIES)}"
        )
    if name is None:
        return "", similarity
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if not isinstance(prompt, str):
        raise ModelError(f"{_PROMPTS}: default_prompt_name is {name!r}, and there is no such prompt")
    return prompt, similarity
