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

# the text of these modules comes to stand here
from compressor.exporters.modeling_ends import _handed_on
from compressor.exporters.modeling_llm import (
    _begin_prompt,
    _end_prompt,
    _given_to_fewer,
    _go_on,
    _hear_prompt,
    _holds_image,
    _kept_of_prompt,
    _prompt_attention,
    _transition,
)
from compressor.exporters.modeling_tokens import _begun, _graph, _reduced, _reduced_texts, _restored, _summed

OWN_TYPE = ""  # model_type of config.json where stock modules would compute something else
_KNOWN = {
    "score": ("mean_key", "random", "cls_attn", "received", "wpr", "diag_x_col", "value_norm", "cascade", "none")
    + ("cls_attn_layers", "flowcut", "hidden_state", "attention_entropy", "cls_similarity", "last_attn", "cls_sum")
    + ("unturned_attn", "transitions", "page_rank"),
    "select": ("bipartite", "topk", "topk_alike", "all", "most_distant", "rows", "neighbours", "topk_anchors")
    + ("regions", "k_center", "clusters", "coverage", "directions"),
    "dropped": ("merge", "drop", "fuse", "propagate", "transform", "cache", "restore", "exit", "recover"),
}


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
    """A block with the children of the stock one, run in two halves."""

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
        paths, norm = self._paths, self.get_submodule(self._paths["ffn_norm"])
        post = paths["residual"] == "post"
        written = hidden_states if post else norm(hidden_states)
        if paths["ffn_module"] is not None:
            written = self.get_submodule(paths["ffn_module"])(written)
        else:
            for name in (paths["ffn_readers"][0], paths["activation"], paths["ffn_writer"]):
                written = self.get_submodule(name)(written)
        if paths["ffn_scale"] is not None:
            written = written * self.get_parameter(paths["ffn_scale"])
        shortcut = getattr(self, "ffn_shortcut", None)
        written = (hidden_states if shortcut is None else shortcut(hidden_states)) + written
        return torch.as_tensor(norm(written) if post else written)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._written(self._attended(hidden_states, args, kwargs))


class _ShortcutBlock(_Block):
    """A pre-norm block whose residual stream changes width through two matrices."""

    def __init__(self, block: nn.Module, paths: dict[str, Any], widths: list[int]) -> None:
        super().__init__(block, paths)
        self.attention_shortcut = nn.Linear(widths[0], widths[1], bias=False)
        self.ffn_shortcut = nn.Linear(widths[1], widths[2], bias=False)


class _ReducedBlock(_Block):
    """A block in which tokens become fewer, or one before or behind such a block that must know of it.

    `tracks` is shared by the blocks of a model: what is known of the tokens behind the last block that ran.
    """

    def __init__(
        self,
        block: nn.Module,
        paths: dict[str, Any],
        head_dim: int,
        reduction: dict[str, Any] | None,
        traits: tuple[bool, bool, dict[str, Any] | None, bool, bool],
        tracks: list[Any],
    ) -> None:
        super().__init__(block, paths)
        self._head_dim, self._reduction, self._tracks = head_dim, reduction, tracks
        self._first, self._biased, self._sums, self._returns, self._restores = traits
        self._post = paths["residual"] == "post"
        self.shows: dict[str, torch.Tensor] | None = None

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        # before the first such block of a text encoder, what its model was called with: the mask
        track = self._tracks[-1] if self._tracks else None
        if self._first:
            track = _begun(hidden_states, track, self._post, self._returns)
        assert isinstance(track, dict)
        bias = track["sizes"].log().squeeze(2) if self._biased else torch.zeros_like(track["sizes"][..., 0])
        if "mask" in track:
            bias = bias.masked_fill(~track["mask"], torch.finfo(bias.dtype).min)
        norm = self.get_submodule(self._paths["attention_norm"])
        attended, seen = self._attention(hidden_states if self._post else norm(hidden_states), bias[:, None, None])
        seen |= {"mask": track["mask"]} if "mask" in track else {}
        if self.shows is not None:
            self.shows.update(seen)
        if self._sums is not None:
            received = _summed(self._sums, seen["attention"], seen.get("mask"))
            seen["importance"] = received + track.get("importance", 0)
            track = {**track, "importance": seen["importance"]}
        shortcut = getattr(self, "attention_shortcut", None)
        stream = (hidden_states if shortcut is None else shortcut(hidden_states)) + attended
        stream, reduction = norm(stream) if self._post else stream, self._reduction
        if reduction is not None:
            if reduction["dropped"] == "propagate" and "graph" not in track:
                track = {**track, "graph": _graph(hidden_states, reduction["protect"], reduction["columns"])}
            stream, track = (_reduced_texts if reduction.get("share") else _reduced)(reduction, seen, stream, track)
        self._tracks[:] = [track]
        out = self._written(stream)
        return _restored(out, track) if self._restores else out

    def _attention(self, normed: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return what attention adds to the stream, and its keys, values and probabilities."""
        query, key, value = (
            self.get_submodule(name)(normed).reshape(*normed.shape[:2], -1, self._head_dim)
            for name in self._paths["attention_readers"]
        )
        scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) * self._head_dim**-0.5
        attention = (scores + bias).softmax(-1)
        heads = (attention @ value.transpose(1, 2)).transpose(1, 2).reshape(*normed.shape[:2], -1)
        attended = self.get_submodule(self._paths["attention_output"])(heads)
        if self._paths["attention_scale"] is not None:
            attended = attended * self.get_parameter(self._paths["attention_scale"])
        return attended, {"keys": key, "values": value, "attention": attention}


class _OutputReduction(nn.Module):
    """Selects among the tokens behind the last block, by what some of the blocks have seen."""

    def __init__(self, reduction: dict[str, Any], seen: list[dict[str, torch.Tensor]]) -> None:
        super().__init__()
        self._reduction, self._seen = reduction, seen
        self._pixels: torch.Tensor | None = None

    def see(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Note the pixels that the model is called with: a hook to be called before it."""
        self._pixels = kwargs.get("pixel_values", args[0] if args else None)

    def forward(self, hidden: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        *earlier, last = self._seen
        given = {"hidden": hidden, "earlier": earlier, "pixels": self._pixels, "text": text}
        return _handed_on(self._reduction, {**last, **given}, hidden)


class _PromptBlock(_Block):
    """A block of a language model behind which image tokens become fewer, or one that follows such a block."""

    def __init__(
        self, block: nn.Module, section: dict[str, Any], index: int, inside: list[dict[str, Any]], call: dict[str, Any]
    ) -> None:
        super().__init__(block, section["paths"])
        before = [entry for entry in inside if entry["block"] < index]
        self._reduction = next((entry for entry in inside if entry["block"] == index), None)
        self._left, self._behind = before[-1]["keep"] if before else inside[0]["count"], bool(before)
        self._index, self._head_dim, self._call = index, section["head_dim"], call
        reading = (entry for entry in inside if entry["score"] == "transitions")
        self._adds = any(index in (entry["block"], *entry.get("also", ())) for entry in reading)
        self.first = self.last = False

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        call, cache, reduction = self._call, kwargs.get("past_key_values"), self._reduction
        if self.first:
            _begin_prompt(call, hidden_states)
        past = int(cache.get_seq_length(self._index)) if cache is not None else 0
        given = {**kwargs, **_given_to_fewer(call, kwargs, past)} if self._behind else kwargs
        projected: list[torch.Tensor] = []
        readers = [self.get_submodule(name) for name in self._paths["attention_readers"][:2]]
        handles = [reader.register_forward_hook(lambda _, __, out: projected.append(out)) for reader in readers]
        try:
            middle = self._attended(hidden_states, (), given)
        finally:
            for handle in handles:
                handle.remove()
        out = self._written(middle)
        if self._adds:
            sums = call["transitions"]
            call["transitions"] = _transition(hidden_states, out) + (0 if sums is None else sums)
        if reduction is not None and _holds_image(call, reduction):
            first, score = reduction.get("start", 0) - call["past"], reduction["score"]
            seen: dict[str, Any] = {"out": out, "first": first, "transitions": call["transitions"]}
            if score != "random":
                module = self.get_submodule(self._paths["attention_module"])
                seen["attention"] = _prompt_attention(module, self._head_dim, projected, given, self._index, score)
            kept = _kept_of_prompt(reduction, seen, self._left)
            _go_on(call, kept, out.shape[1])
            out = out.gather(1, kept[..., None].expand(-1, -1, out.shape[-1]))
        return _end_prompt(call, out) if self.last else out


def _change_prompts(base: nn.Module, section: dict[str, Any], inside: list[dict[str, Any]]) -> None:
    """Put blocks in the places of stock ones behind which image tokens become fewer, and of all that follow."""
    blocks, call = base.get_submodule(section["paths"]["blocks"]), _hear_prompt(base)
    inside = sorted(inside, key=lambda entry: entry["block"])
    first = min(block for entry in inside for block in (entry["block"], *entry.get("also", ())))
    for index in range(first, len(blocks)):  # type: ignore[arg-type]
        blocks[index] = _PromptBlock(blocks[index], section, index, inside, call)  # type: ignore[index,operator]
    blocks[first].first = True  # type: ignore[index]
    blocks[-1].last = True  # type: ignore[index]


def _loud(values: torch.Tensor, gate: dict[str, Any], threshold: Any) -> torch.Tensor:
    """Return values with 0 in the place of those that a gate silences."""
    size, count = values.abs(), gate.get("count", 0)
    if count:
        threshold = size.topk(count + 1, dim=-1).values[..., -1:] if count < size.shape[-1] else -1.0
    return torch.where(size <= threshold, torch.zeros_like(values), values)


class _GatedLinear(nn.Linear):
    """A linear module that takes inputs for 0 whose magnitude is at most a threshold."""

    gate: dict[str, Any]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(_loud(input, self.gate, self.gate["threshold"]))


class _GatedActivation(nn.Module):
    """An activation function whose small values are 0."""

    def __init__(self, activation: nn.Module, gate: dict[str, Any], channels: int) -> None:
        super().__init__()
        self.activation, self.gate = activation, gate
        if gate.get("per_channel"):
            self.threshold = nn.Parameter(torch.empty(channels), requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        threshold = self.threshold if self.gate.get("per_channel") else self.gate["threshold"]
        return _loud(self.activation(input), self.gate, threshold)


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
    blocks, tracks = base.get_submodule(section["paths"]["blocks"]), []  # type: ignore[var-annotated]
    post = section["paths"]["residual"] == "post"
    inside, outputs, prompts = (
        [entry for entry in stack["tokens"] if entry.get("site", "block") == site]
        for site in ("block", "output", "llm_layer")
    )
    reductions = {entry["block"]: entry for entry in inside}
    for entry in stack["tokens"]:
        if any(entry[key] not in known for key, known in _KNOWN.items()):
            raise ValueError(f"config.json: a token reduction that this file does not know: {entry}")
    if prompts:
        _change_prompts(base, section, prompts)
    first, returns = True, any(entry.get("returns") for entry in inside)
    full = returns or (bool(reductions) and post)
    for index in range(len(blocks)):
        before = [entry for block, entry in reductions.items() if block < index]
        biased = bool(before) and before[-1]["attention_bias"] == "log_size"
        reading = [entry for block, entry in reductions.items() if block >= index]
        sums = next((entry for entry in reading if entry["score"] in ("cascade", "cls_sum")), None)
        shown = any(index in (entry["block"], *entry.get("also", ())) for entry in outputs)
        restores = full and index == len(blocks) - 1
        if biased or sums is not None or shown or restores or index in reductions or (before and post):
            traits = (first, biased, sums, returns, restores)
            blocks[index] = _ReducedBlock(
                blocks[index], section["paths"], section["head_dim"], reductions.get(index), traits, tracks
            )
            first = False
        if shown:
            blocks[index].shows = {}
    for entry in outputs:
        seen = [blocks[block].shows for block in (*entry.get("also", ()), entry["block"])]
        selector = _OutputReduction(entry, seen)
        place = "feature_selector" if entry["select"] == "coverage" else "selector"
        setattr(model, section["paths"][place], selector)
        model.register_forward_pre_hook(selector.see, with_kwargs=True)
    if reductions and post:

        def hear(_: nn.Module, args: Any, kwargs: Any) -> None:
            tracks[:] = [kwargs.get("attention_mask", args[1] if len(args) > 1 else None)]

        base.register_forward_pre_hook(hear, with_kwargs=True)
    for name, gate in stack["gates"].items():
        module, (parent, _, leaf) = model.get_submodule(name), name.rpartition(".")
        if isinstance(module, nn.Linear):
            module.__class__, module.gate = _GatedLinear, gate
        else:
            index = next(int(part) for part in name.split(".") if part.isdigit())
            channels = stack["layers"][index]["intermediate_size"]
            setattr(model.get_submodule(parent), leaf, _GatedActivation(module, gate, channels))


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
