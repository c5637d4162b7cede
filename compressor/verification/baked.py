"""Whether config.json and genai_config.json say what the graph has built in.

Runtimes and libraries read sizes, the rotation of positions, the window of attention and special tokens from these
files, and nothing that is computed on the probes depends on them. So each is compared with the graph: with shapes, with
the attributes of its nodes, and with the tables that it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor._lazy import lazy
from compressor.architectures.tasks import TASKS
from compressor.exporters.onnx.genai_config import NAME as GENAI
from compressor.exporters.onnx.genai_config import genai_document
from compressor.model.folder import ModelFolder, open_model
from compressor.storage.json_files import read_json
from compressor.verification.companions import differing_keys, flat
from compressor.verification.verdict import Check, yes
from compressor.verification.weights import StoredWeights

onnx = lazy("onnx")
torch = lazy("torch")

_NORMS = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "LayerNormalization")
_EPSILONS = ("variance_epsilon", "eps", "epsilon")
_SHOWN = 3


def check_baked(folder: Path, weights: StoredWeights) -> list[Check]:
    """Compare config.json and genai_config.json with the graph.

    Raises:
        ModelError: config.json describes no model.
    """
    model = open_model(folder)
    skeleton = model.skeleton()
    problems = {
        "config.tensors": _tensors(weights, skeleton),
        "config.norms": _norms(weights, skeleton),
        "config.ports": _ports(weights, model),
        "config.attention": _attention(weights, model, skeleton),
        "config.rotation": _rotation(weights, model, skeleton),
    }
    checks = [yes(name, not found, "; ".join(found[:_SHOWN])) for name, found in problems.items()]
    if model.task == "text-generation" and not weights.apart and not model.blueprint.layer_reductions:
        checks.append(_check_genai(folder, model, weights))
    return checks


def _tensors(weights: StoredWeights, skeleton: Any) -> list[str]:
    """Return which tensors of the graph have other sizes than the same parameters of the described model."""
    described = {name: list(p.shape) for name, p in skeleton.named_parameters()}
    found = []
    for name, (_, *shape) in weights.table().items():
        wanted = described.get(name)
        if wanted is not None and sorted(shape) != sorted(wanted):
            found.append(f"{name} is {shape} in the graph, {wanted} by config.json")
    return found


def _norms(weights: StoredWeights, skeleton: Any) -> list[str]:
    """Return the norms whose epsilon in the graph is not the described model's."""
    modules = dict(skeleton.named_modules())
    found = []
    for node in weights.model.graph.node:
        names = [name.rpartition(".")[0] for name in node.input if name.endswith(".weight")]
        if node.op_type not in _NORMS or not names or names[0] not in modules:
            continue
        wanted = next((getattr(modules[names[0]], n) for n in _EPSILONS if hasattr(modules[names[0]], n)), None)
        stated = _attributes(node).get("epsilon")
        if wanted is not None and stated is not None and not np.isclose(stated, float(wanted), rtol=1e-4, atol=0):
            found.append(f"epsilon of {names[0]} is {stated:.3g} in the graph, {float(wanted):.3g} by config.json")
    return found


def _ports(weights: StoredWeights, model: ModelFolder) -> list[str]:
    """Return in what inputs and outputs differ from the described model."""
    config, ports = model.config, graph_ports(weights)
    wanted: dict[str, list[Any]] = {}
    if model.family.inputs == "pixels":
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        wanted["pixel_values"] = [None, config.num_channels, height, width]
        if any(reduction.select == "coverage" for reduction in model.blueprint.reductions):
            wanted["text_features"] = [None, None, config.projection_size]
    if model.task == "text-generation":
        wanted["logits"] = [None, None, config.vocab_size]
    elif TASKS[model.task].output == "logit":
        wanted["logits"] = [None, config.num_labels]
    for index, layer in enumerate(model.shapes.layers if model.task == "text-generation" else ()):
        for part in ("key", "value"):
            wanted[f"past_key_values.{index}.{part}"] = [None, layer.num_key_value_heads, None, model.shapes.head_dim]
    found = []
    for name, shape in wanted.items():
        given = ports.get(name)
        if given is None or len(given) != len(shape):
            found.append(f"the graph has no {name} of {len(shape)} dimensions, which config.json asks for")
        elif any(size is not None and size != real for size, real in zip(shape, given, strict=True)):
            found.append(f"{name} is {given} in the graph, {shape} by config.json")
    more = [n for n in ports if n.startswith("past_key_values.") and n not in wanted]
    return found + ([f"the graph has the cache {more[0]} of a layer that config.json does not have"] if more else [])


def graph_ports(weights: StoredWeights) -> dict[str, list[int | None]]:
    """Return the inputs and outputs of a graph by name, in order, with their sizes; None for one that varies."""
    values = [*weights.model.graph.input, *weights.model.graph.output]
    return {
        value.name: [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
        for value in values
    }


def _attention(weights: StoredWeights, model: ModelFolder, skeleton: Any) -> list[str]:
    """Return in what the GroupQueryAttention nodes differ from the described attention modules."""
    found = []
    for node in weights.model.graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        index = _layer_of(node)
        if index is None or index >= len(model.shapes.layers):
            found.append(f"{node.name or 'an attention node'} reads no cache of a layer that config.json has")
            continue
        layer, stated = model.shapes.layers[index], _attributes(node)
        module = _attention_module(model, skeleton, index)
        window = getattr(module, "sliding_window", getattr(model.config, "sliding_window", None))
        wanted = {
            "num_heads": layer.num_attention_heads,
            "kv_num_heads": layer.num_key_value_heads,
            "local_window_size": window or -1,
            "softcap": float(getattr(model.config, "attn_logit_softcapping", None) or 0.0),
            "scale": float(getattr(module, "scaling", model.shapes.head_dim**-0.5)),
        }
        found += [
            f"{key} of layer {index} is {stated.get(key)} in the graph, {value} by config.json"
            for key, value in wanted.items()
            if not np.isclose(stated.get(key, np.nan), value, rtol=1e-5)
        ]
    return found


def _layer_of(node: Any) -> int | None:
    for name in node.input:
        parts = name.split(".")
        if parts[0] == "past_key_values" and len(parts) == 3 and parts[1].isdigit():
            return int(parts[1])
    return None


def _attention_module(model: ModelFolder, skeleton: Any, index: int) -> Any:
    blocks = skeleton.base_model.get_submodule(model.family.blocks)
    return blocks[index].get_submodule(model.family.attention.module)


def _rotation(weights: StoredWeights, model: ModelFolder, skeleton: Any) -> list[str]:
    """Return in what the tables of rotary positions differ from those of the described model."""
    rotaries = [(name, m) for name, m in skeleton.named_modules() if name.rpartition(".")[2] == "rotary_emb"]
    found = []
    for name, rotary in rotaries if len(rotaries) == 1 else ():
        for stored, wanted in _tables(weights, model, name, rotary):
            table = weights.initializer(stored)
            if table is None:
                continue
            if table.shape != wanted.shape:
                found.append(f"{stored} is {list(table.shape)} in the graph, {list(wanted.shape)} by config.json")
                continue
            tolerance = 2e-3 if table.dtype == np.float16 else 1e-4
            if not np.allclose(table.astype(np.float32), wanted, rtol=tolerance, atol=tolerance):
                found.append(f"{stored} does not rotate positions as config.json says")
    return found


def _tables(
    weights: StoredWeights, model: ModelFolder, name: str, rotary: Any
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the initializers of the rotation and their described contents: frequencies, or cos and sin by position."""
    for key, buffer in rotary.named_buffers():
        yield f"{name}.{key}", buffer.float().numpy()
    pairs = {tuple(node.input[7:9]) for node in weights.model.graph.node if node.op_type == "GroupQueryAttention"}
    pairs.discard(())
    length = int(getattr(model.config, "max_position_embeddings", 0) or 0)
    if pairs and length:
        with torch.no_grad():
            angles = rotary(torch.zeros(1), torch.arange(length)[None])
        tables = [part[0, :, : part.shape[-1] // 2].float().numpy() for part in angles]
        for pair in sorted(pairs):
            yield from zip(pair, tables, strict=False)


def _check_genai(folder: Path, model: ModelFolder, weights: StoredWeights) -> Check:
    """Compare genai_config.json with the one that config.json, generation_config.json and the graph make."""
    stated = read_json(folder / GENAI)
    wanted = genai_document(folder, model.config, graph_ports(weights))
    keys = differing_keys(flat(stated), flat(wanted))
    return yes("config.genai", not keys, f"{GENAI} is not what config.json and the graph say: {', '.join(keys)}")


def _attributes(node: Any) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
