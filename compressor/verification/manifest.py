"""compression.json: what an artifact says about itself, and whether its files agree.

`seal` writes it at export time; the keys below are the ones that verification reads, others are kept as they are.

| key | meaning |
|---|---|
| `precision` | `float32`, `float16`, `bfloat16`, `int8-dynamic`, `int8-weights` or `int4`: chooses the parity gate |
| `parameters` | parameters of the model, tied weights once |
| `layers` | per layer: `intermediate_size`, `num_attention_heads`, `num_key_value_heads`, `residual` |
| `source` | what stock transformers' model gave on the probes of the source gate (`compressor.verification.source`) |
| `outputs` | relative path -> sha256 of every file that the artifact consists of |
| `parts` | of several graphs: name of a part -> the manifest that it has as an artifact of its own |
| `scalars` | of several graphs: name -> number by which the parts' embeddings are joined |
| `weights` | stored tensor name -> [dtype, shape...] |
| `tokenizer` | `text`, and the `ids` that the tokenizer gave for it |
| `seal` | sha256 of all the rest of the manifest |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from compressor.errors import ModelError
from compressor.model.parts import PARTS
from compressor.storage.artifact import BESIDE, SIGNATURE
from compressor.storage.files import is_inside, own_file
from compressor.storage.json_files import read_json
from compressor.storage.tensors import sha256_of
from compressor.verification.strangers import REFERENCE as REFERENCE
from compressor.verification.strangers import check_names, strangers
from compressor.verification.tokens import probe_record
from compressor.verification.verdict import Check, failed, yes
from compressor.verification.weights import StoredWeights, open_weights

MANIFEST = "compression.json"
_WRITTEN_LATER = {MANIFEST, "report.json", "report.html", "junit.xml", "README.md", SIGNATURE}
"""Files that are written after the verdict, or that hold it: they cannot be part of what is sealed."""
_MODELS = (".onnx", ".ort", ".safetensors")


def seal(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a manifest with what is in the folder, write it as compression.json and return it.

    Call it last, when all files that belong to the artifact (the reference too) are there.

    Raises:
        ModelError: a file of the artifact cannot be read.
    """
    sealed = {"version": 1, "precision": "float32", **manifest}
    sealed["outputs"] = {str(path): sha256_of(folder / path) for path in output_files(folder)}
    if PARTS not in sealed:  # those of an artifact of several graphs stand in the manifests of its parts
        sealed["weights"] = open_weights(folder).table()
    sealed["tokenizer"] = probe_record(folder)
    sealed["seal"] = _digest(sealed)
    (folder / MANIFEST).write_text(json.dumps(sealed, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return sealed


def output_files(folder: Path) -> list[PurePosixPath]:
    """Return the relative paths of the files that make up the artifact, sorted."""
    files = (path for path in folder.rglob("*") if path.is_file())
    relative = (PurePosixPath(path.relative_to(folder).as_posix()) for path in files)
    return sorted(path for path in relative if str(path) not in _WRITTEN_LATER and path.parts[0] not in BESIDE)


def artifact_files(manifest: Mapping[str, Any]) -> frozenset[str]:
    """Return the relative paths of all files that a run has written: those that the manifest lists, and the reports."""
    outputs = manifest.get("outputs")
    return frozenset(map(str, outputs if isinstance(outputs, dict) else ())) | _WRITTEN_LATER


def is_sealed(manifest: Mapping[str, Any]) -> bool:
    """Tell whether a manifest is one that `seal` wrote, unchanged since."""
    return manifest.get("seal") == _digest(manifest)


def check_files(folder: Path, manifest: Mapping[str, Any]) -> list[Check]:
    """Check that the manifest is whole, and that every file it lists is inside the folder, there, and unchanged."""
    checks = [yes("files.seal", is_sealed(manifest), f"{MANIFEST} was edited: its seal does not match its content")]
    outputs = manifest.get("outputs")
    if not isinstance(outputs, dict) or not outputs:
        return [*checks, yes("files.listed", False, f"{MANIFEST} lists no outputs with their sha256")]
    outside = [str(name) for name in outputs if not is_inside(folder, str(name))]
    checks.append(
        yes("files.inside", not outside, f"{MANIFEST} names {', '.join(outside)}, which lies outside the folder")
    )
    model_files = [name for name in outputs if name.endswith(_MODELS) and "/" not in name]
    if not model_files:
        checks.append(yes("files.listed", False, f"{MANIFEST} lists no model file"))
    missing = [n for n in outputs if n not in outside and not (folder / n).is_file()]
    checks.append(yes("files.present", not missing, f"missing from the folder: {', '.join(missing)}", damaged=True))
    changed = [
        name
        for name, expected in outputs.items()
        if name not in outside and name not in missing and sha256_of(folder / name) != expected
    ]
    checks.append(
        yes("files.unchanged", not changed, f"sha256 differs from the one in {MANIFEST}: {', '.join(sorted(changed))}")
    )
    checks.append(check_names(map(str, outputs), folder))
    extra = strangers(folder, {*map(str, outputs), *_WRITTEN_LATER})
    checks.append(yes("files.no_strangers", not extra, f"not listed in {MANIFEST}: {', '.join(extra)}"))
    return checks


def check_shapes(folder: Path, manifest: Mapping[str, Any], weights: StoredWeights) -> list[Check]:
    """Check that manifest, config.json and the stored tensors state the same shapes."""
    recorded, real = manifest.get("weights"), weights.table()
    if not isinstance(recorded, dict):
        checks = [yes("shapes.weights", False, f"{MANIFEST} records no weight shapes")]
    else:
        names = sorted(n for n in set(recorded) | set(real) if recorded.get(n) != real.get(n))
        shown = names[0] if names else ""
        reason = (
            f"{len(names)} tensors differ from {MANIFEST}; {shown} is {real.get(shown)}, recorded {recorded.get(shown)}"
        )
        checks = [yes("shapes.weights", not names, reason)]
    try:
        checks += _check_config(folder, manifest, weights)
    except ModelError as error:
        checks.append(failed("shapes.config", error))
    return checks


def _check_config(folder: Path, manifest: Mapping[str, Any], weights: StoredWeights) -> list[Check]:
    from compressor.model.cost import recorded_layers
    from compressor.model.folder import open_model

    model = open_model(folder)
    expected = parameter_count(model)
    stated = manifest.get("parameters")
    checks = [
        Check(
            "shapes.parameters",
            stated == expected,
            stated if isinstance(stated, int) else None,
            {"equal": expected},
            "parameters",
            "" if stated == expected else f"{MANIFEST} states {stated} parameters, config.json describes {expected}",
        )
    ]
    layers = manifest.get("layers")
    if isinstance(layers, list):
        differing = _differing_layers(layers, recorded_layers(model))
        checks.append(
            yes("shapes.layers", not differing, f"{MANIFEST} and config.json differ at layer {', '.join(differing)}")
        )
    if weights.is_onnx:
        vocabulary = int(getattr(model.config, "vocab_size", 0) or 0)
        problems = weights.disagreements(model.shapes, parameter_count(model, without="pooler."), vocabulary)
    else:
        problems = _module_disagreements(model)
    checks.append(yes("shapes.graph", not problems, "; ".join(problems)))
    return checks


def _module_disagreements(model: Any) -> list[str]:
    try:
        model.weights.names()
    except ModelError as error:
        return [error.message]
    return []


def _differing_layers(stated: list[Any], real: list[dict[str, Any]]) -> list[str]:
    if len(stated) != len(real):
        return [f"count ({len(stated)} against {len(real)})"]
    differing = []
    for index, (entry, layer) in enumerate(zip(stated, real, strict=True)):
        for key in entry if isinstance(entry, dict) else ():
            if entry[key] != layer.get(key):
                differing.append(f"{index} ({key} {entry[key]} against {layer.get(key)})")
    return differing


def parameter_count(model: Any, *, without: str | None = None) -> int:
    """Return the parameters that a `ModelFolder` describes, tied weights counted once; reads no weights.

    Args:
        model: the folder.
        without: leave out parameters with this in their name. An encoder's graph, for example, returns the hidden
            states and so has no pooler.
    """
    total = int(model.parameters)
    if without is not None:
        total -= sum(int(p.numel()) for name, p in model.skeleton().named_parameters() if without in name)
    return total


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read compression.json.

    Raises:
        ModelError: it is missing or cannot be read.
    """
    return read_json(own_file(folder, MANIFEST) or folder / MANIFEST)


def _digest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
