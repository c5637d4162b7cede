"""Loads this model in transformers with `trust_remote_code=True`: the stock class with what compression has changed.

The `compression` section of config.json states the true widths of every layer and the places of the matrices, where
tokens become fewer, and which inputs count as silent. No weight is padded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig as BaseConfig
from transformers import PreTrainedModel as Base
from transformers import conversion_mapping

OWN_TYPE = ""  # model_type of config.json where stock modules would compute something else


def _sized(module: Any, rows: int | None, columns: int | None) -> None:
    """Give a linear, embedding, convolution or norm module a weight of another size."""
    shape = list(module.weight.shape)
    if isinstance(module, nn.Embedding):
        shape[1] = rows if rows is not None else shape[1]
        module.embedding_dim = shape[1]
    else:
        shape[0] = rows if rows is not None else shape[0]
        if columns is not None:
            shape[1] = columns
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(shape)
    elif isinstance(module, nn.Conv2d):
        module.out_channels = shape[0]
    module.weight = nn.Parameter(module.weight.new_empty(shape))
    if getattr(module, "bias", None) is not None:
        module.bias = nn.Parameter(module.bias.new_empty(shape[0]))


def _sized_vector(holder: nn.Module, path: str, width: int) -> None:
    """Give a vector parameter another width."""
    parent, _, name = path.rpartition(".")
    owner = holder.get_submodule(parent)
    setattr(owner, name, nn.Parameter(getattr(owner, name).new_empty(width)))


class _Block(nn.Module):
    """A pre-norm block with the children of the stock one, run in two halves."""

    def __init__(self, block: nn.Module, paths: dict[str, Any]) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        self._paths = paths

    def _attended(self, hidden_states: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
        normed = self.get_submodule(self._paths["attention_norm"])(hidden_states)
        attended = self.get_submodule(self._paths["attention_module"])(normed, *args, **kwargs)[0]
        if self._paths["attention_scale"] is not None:
            attended = attended * self.get_parameter(self._paths["attention_scale"])
        shortcut = getattr(self, "attention_shortcut", None)
        return torch.as_tensor((hidden_states if shortcut is None else shortcut(hidden_states)) + attended)

    def _written(self, hidden_states: torch.Tensor) -> torch.Tensor:
        paths = self._paths
        written = self.get_submodule(paths["ffn_norm"])(hidden_states)
        if paths["ffn_module"] is not None:
            written = self.get_submodule(paths["ffn_module"])(written)
        else:
            for name in (paths["ffn_readers"][0], paths["activation"], paths["ffn_writer"]):
                written = self.get_submodule(name)(written)
        if paths["ffn_scale"] is not None:
            written = written * self.get_parameter(paths["ffn_scale"])
        shortcut = getattr(self, "ffn_shortcut", None)
        return torch.as_tensor((hidden_states if shortcut is None else shortcut(hidden_states)) + written)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._written(self._attended(hidden_states, args, kwargs))


class _ShortcutBlock(_Block):
    """A pre-norm block whose residual stream changes width through two matrices."""

    def __init__(self, block: nn.Module, paths: dict[str, Any], widths: list[int]) -> None:
        super().__init__(block, paths)
        self.attention_shortcut = nn.Linear(widths[0], widths[1], bias=False)
        self.ffn_shortcut = nn.Linear(widths[1], widths[2], bias=False)


class _ReducedBlock(_Block):
    """A pre-norm block in which tokens become fewer (ToMe, arXiv 2210.09461), or one behind such a block.

    `sizes` is shared by the blocks of a model: how many of the first tokens each token stands for, [batch, tokens, 1].
    """

    def __init__(
        self,
        block: nn.Module,
        paths: dict[str, Any],
        head_dim: int,
        reduction: dict[str, Any] | None,
        biased: bool,
        first: bool,
        sizes: list[torch.Tensor],
    ) -> None:
        super().__init__(block, paths)
        self._head_dim, self._reduction, self._biased, self._first = head_dim, reduction, biased, first
        self._sizes = sizes

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        sizes = hidden_states.new_ones(*hidden_states.shape[:2], 1) if self._first else self._sizes[-1]
        if self._biased:
            # in place of the mask, which a stock block passes first and which images do not have
            args, kwargs["attention_mask"] = args[1:], sizes.log().reshape(hidden_states.shape[0], 1, 1, -1)
        seen: list[torch.Tensor] = []
        key = self.get_submodule(self._paths["attention_readers"][1])
        handle = key.register_forward_hook(lambda _, __, out: seen.append(out))
        try:
            stream = self._attended(hidden_states, args, kwargs)
        finally:
            handle.remove()
        if self._reduction is not None:
            keys = seen[0].reshape(*hidden_states.shape[:2], -1, self._head_dim).mean(2)
            features = keys if self._reduction["score"] == "mean_key" else _hashed(keys)
            chosen = _matched(features, self._reduction["keep"], self._reduction["protect"])
            stream, sizes = _merge(stream, sizes, *chosen)
        self._sizes[:] = [sizes]
        return self._written(stream)


def _hashed(keys: torch.Tensor) -> torch.Tensor:
    """Return numbers that have nothing to do with the tokens, [batch, tokens, 8]."""
    batch, tokens = keys.shape[:2]
    places = torch.arange(1, tokens * 8 + 1, device=keys.device).reshape(1, tokens, 8)
    hashed = (places * 2654435761) % 4294967296 // 65536
    return (hashed.to(keys.dtype) / 32768 - 1).expand(batch, -1, -1)


def _matched(features: torch.Tensor, keep: int, protect: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the tokens [batch, n] that stay, those that go, and which of the former each of the latter joins."""
    unit = features / features.norm(dim=-1, keepdim=True)
    likeness = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    likeness[:, :, : protect // 2] = -torch.inf
    nearest, partner = likeness.max(-1)
    nearest[:, : (protect + 1) // 2] = -torch.inf
    even = nearest.topk(features.shape[1] - keep, dim=-1).indices.sort(dim=-1).values
    gone, target = even * 2, partner.gather(1, even) * 2 + 1
    places = torch.arange(keep, device=features.device)
    before = gone - torch.arange(gone.shape[1], device=features.device)
    kept = places + (before[:, None, :] <= places[None, :, None]).sum(-1)
    return kept, gone, target - (gone[:, None, :] < target[:, :, None]).sum(-1)


def _merge(
    x: torch.Tensor, sizes: torch.Tensor, kept: torch.Tensor, gone: torch.Tensor, into: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stream [batch, kept, width] and sizes after a weighted merge of tokens."""
    weighted, width = x * sizes, x.shape[-1]
    places = torch.arange(kept.shape[1], device=x.device)[None, :, None]
    joins = (into[:, None, :] == places).to(x.dtype)
    total = sizes.gather(1, kept[..., None]) + joins @ sizes.gather(1, gone[..., None])
    stay = weighted.gather(1, kept[..., None].expand(-1, -1, width))
    return (stay + joins @ weighted.gather(1, gone[..., None].expand(-1, -1, width))) / total, total


class _GatedLinear(nn.Linear):
    """A linear module that takes inputs for 0 whose magnitude is at most a threshold."""

    threshold: float

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.where(input.abs() > self.threshold, input, torch.zeros_like(input)))


def _size_block(block: nn.Module, paths: dict[str, Any], layer: dict[str, Any], head_dim: int) -> None:
    before, middle, after = layer["residual"]
    heads, groups = layer["num_attention_heads"], layer["num_key_value_heads"]
    norms = (middle, after) if paths["residual"] == "post" else (before, middle)
    _sized(block.get_submodule(paths["attention_norm"]), norms[0], None)
    _sized(block.get_submodule(paths["ffn_norm"]), norms[1], None)
    for name, count in zip(paths["attention_readers"], (heads, groups, groups), strict=True):
        _sized(block.get_submodule(name), count * head_dim, before)
    _sized(block.get_submodule(paths["attention_output"]), middle, heads * head_dim)
    for name in paths["ffn_readers"]:
        _sized(block.get_submodule(name), layer["intermediate_size"], middle)
    _sized(block.get_submodule(paths["ffn_writer"]), after, layer["intermediate_size"])
    for name, width in ((paths["attention_scale"], middle), (paths["ffn_scale"], after)):
        if name is not None:
            _sized_vector(block, name, width)
    attention = block.get_submodule(paths["attention_module"])
    if hasattr(attention, "num_key_value_groups"):
        attention.num_key_value_groups = heads // groups


def _size_model(model: Any, section: dict[str, Any], stack: dict[str, Any]) -> None:
    paths, layers = section["paths"], stack["layers"]
    base = getattr(model, model.base_model_prefix, model)
    first, last = layers[0]["residual"][0], layers[-1]["residual"][2]
    modules, names = dict(base.named_modules()), dict(model.named_modules())
    for name in paths["embeddings"]:
        if name in modules:
            _sized(modules[name], first, None)
    for name in paths["vectors"]:
        holder_name, _, own = name.rpartition(".")
        vector = getattr(modules.get(holder_name), own, None)
        if vector is not None:
            setattr(modules[holder_name], own, nn.Parameter(vector.new_empty((*vector.shape[:-1], first))))
    if paths["final_norm"]:
        _sized(modules[paths["final_norm"]], last, None)
    for name in paths["heads"]:
        if name in names and not getattr(model.config, "tie_word_embeddings", False):
            _sized(names[name], None, last * paths["head_reads"])
    blocks = modules[paths["blocks"]]
    for index, layer in enumerate(layers):
        _size_block(blocks[index], paths, layer, section["head_dim"])
        if stack["shortcuts"]:
            blocks[index] = _ShortcutBlock(blocks[index], paths, layer["residual"])


def _change_computation(model: Any, section: dict[str, Any], stack: dict[str, Any]) -> None:
    """Put modules of other computation in the places of stock ones."""
    base = getattr(model, model.base_model_prefix, model)
    blocks, sizes = base.get_submodule(section["paths"]["blocks"]), []  # type: ignore[var-annotated]
    reductions = {entry["block"]: entry for entry in stack["tokens"]}
    for entry in reductions.values():
        how = (entry["select"], entry["dropped"])
        if entry["score"] not in ("mean_key", "random") or how != ("bipartite", "merge"):
            raise ValueError(f"config.json: a token reduction that this file does not know: {entry}")
    for index in range(len(blocks)):
        before = [entry for block, entry in reductions.items() if block < index]
        biased = bool(before) and before[-1]["attention_bias"] == "log_size"
        if biased or index in reductions:
            blocks[index] = _ReducedBlock(
                blocks[index], section["paths"], section["head_dim"], reductions.get(index), biased, not before, sizes
            )
    for name, gate in stack["gates"].items():
        linear = model.get_submodule(name)
        linear.__class__, linear.threshold = _GatedLinear, gate["threshold"]


class CompressedConfig(BaseConfig):
    """The stock config, under a name that stock transformers refuses without this file."""

    model_type = OWN_TYPE or BaseConfig.model_type


class CompressedModel(Base):
    """The stock model with what compression has changed."""

    config_class = CompressedConfig if OWN_TYPE else BaseConfig

    def __init__(self, config: Any) -> None:
        """Build the stock model, then give every matrix its true size and every changed module its place."""
        super().__init__(config)
        (stack,) = config.compression["stacks"].values()
        _size_model(self, config.compression, stack)
        _change_computation(self, config.compression, stack)


# Checkpoints of some stock classes have older names, which transformers looks up by the name of the class.
for _key in (Base.__name__, BaseConfig.model_type):
    if _names := conversion_mapping.get_checkpoint_conversion_mapping(_key):
        conversion_mapping.register_checkpoint_conversion_mapping("CompressedModel", _names, overwrite=True)
        break
