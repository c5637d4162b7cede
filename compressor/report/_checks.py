"""What every check asks, in a sentence: the hint of the page, and docs/checks.md."""

from __future__ import annotations

import re
from collections.abc import Mapping

from compressor.architectures import PARTS
from compressor.recipe.metrics import BOUNDS, GATES

MEANINGS: Mapping[str, str] = {
    "bounds": "A measured figure lies within the bound that the recipe sets for it under `verify`.",
    "code": "The artifact's own modelling code could not be compared with what it should be.",
    "code.auto_map": "config.json sends transformers to no code but the modelling file that compressor wrote.",
    "code.modeling": "The modelling file is, byte for byte, the one that compressor writes.",
    "companions": "Tokenizer, processor and generation files could not be compared.",
    "companions.files": "Tokenizer, processor and generation files are as they were when the artifact was made.",
    "companions.same": "Tokenizer, processor and generation files are the dense model's.",
    "config": "config.json could not be compared.",
    "config.genai": "genai_config.json is the one that follows from config.json and the graph.",
    "config.attention": "Heads and attention windows in the graph are those that config.json states.",
    "config.norms": "The epsilon of every norm in the graph is the one that config.json states.",
    "config.ports": "The graph has the inputs and outputs that a model of this config.json has.",
    "config.recorded": "config.json says what it said when the artifact was made.",
    "config.rotation": "Positions are rotated in the graph as config.json states.",
    "config.same": "config.json says what the dense model's says, but for what the passes change.",
    "config.tensors": "The graph has the weights that a model of this config.json has.",
    "determinism.bits": "The same inputs give the same outputs twice, bit for bit.",
    "files": "The artifact's files could not be compared with its manifest.",
    "files.external": "Where the graph keeps its weights could not be read.",
    "files.external.inside": "The graph reads no weights from outside of the artifact folder.",
    "files.external.length": "The file of the graph's weights is as long as the graph needs.",
    "files.external.present": "The files of the graph's weights are there.",
    "files.inside": "The manifest names no file outside of the artifact folder.",
    "files.links": "No file is a link that leads out of the artifact folder.",
    "files.listed": "The manifest lists the files that it must list.",
    "files.manifest": "The manifest, compression.json, can be read.",
    "files.names": "The manifest lists no file that no export writes, such as Python modules or pickles.",
    "files.no_strangers": "Nothing lies in the folder that is not part of the artifact.",
    "files.present": "Every file that the manifest lists is there.",
    "files.seal": "The manifest has not been changed since it was written.",
    "files.signature": "The owner of the key has signed these files, and there are no others.",
    "files.unchanged": "Every file has the sha256 that the manifest lists.",
    "gain.dominated": "The artifact is not slower, worse and no smaller than the dense model, all at once.",
    "gain.effect": "The artifact is smaller or faster than the dense model.",
    "graph": "The graph could not be checked.",
    "graph.checker": "The ONNX checker accepts the graph.",
    "graph.inference": "The shapes of the graph's tensors agree with each other.",
    "graph.session": "The runtime loads the model.",
    "graph.task": "The artifact computes what its config.json and the dense model are for.",
    "joint.image_token": "The token that stands for an image in a prompt is the dense model's.",
    "joint.scalars": "The parts' embeddings are joined by the numbers by which the dense model joins them.",
    "parity": "The artifact gives the outputs of the compressed model in PyTorch, on recorded inputs.",
    "parity.argmax": "The best answer is the same as in PyTorch, at every position of the recorded inputs.",
    "parity.cosine": "Outputs point the way of those in PyTorch, on average over all tokens of the recorded inputs.",
    "parity.cosine_low": "So do those of all but one in a hundred tokens, or images, each by itself.",
    "parity.exact": "Without the rounding of activations, the graph is as close to PyTorch as a float export.",
    "parity.greedy": "Greedy generation gives the same tokens as in PyTorch.",
    "parity.ort": "model.ort and model.onnx give the same outputs.",
    "parity.precision": "The manifest states a precision for which the allowed error is known.",
    "parity.reference": "The recorded inputs and outputs can be read and were made for this model.",
    "parity.rank": "A model of one output puts the recorded inputs in the order in which PyTorch puts them.",
    "parity.relative_error": "One output, or several labels, differ from PyTorch far less than between inputs.",
    "precision": "The stated precision could not be compared with the stored weights.",
    "precision.stated": "The weights are stored in the precision that the manifest states.",
    "processor": "The image processor could not be tried.",
    "processor.pixels": "The image processor makes the same pixels of a recorded image as when the artifact was made.",
    "processor.shape": "The image processor makes images of the same size as when the artifact was made.",
    "quality": "The quality on held-out data could not be measured.",
    "quality.measured": "The quality on the evaluation data could be measured.",
    "recipe.recorded": "recipe.yaml, and the recipe in the card, say what the manifest records of the recipe.",
    "report": "Report, page, card and recipe say what the manifest and the files say.",
    "report.figures": "Figures and bounds in report.json are those of the manifest, the files and the recipe.",
    "report.greedy": "Greedy samples that are made now begin as those in report.json do.",
    "report.metrics": "Metrics that are measured now are near those in report.json.",
    "report.present": "The four reports are there.",
    "report.readable": "report.json is a report, and does not contradict itself.",
    "report.rendered": "Page, card and junit.xml are what report.json and the recipe give.",
    "report.seal": "None of the reports was changed since they were written, and they belong to this manifest.",
    "shapes": "The shapes of the weights could not be compared.",
    "shapes.config": "config.json describes a model that can be built.",
    "shapes.graph": "The weights in the graph have the shapes that config.json describes.",
    "shapes.layers": "Every layer has the widths that the manifest states.",
    "shapes.parameters": "The model has as many parameters as the manifest states.",
    "shapes.weights": "The stored weights have the shapes that config.json describes.",
    "source.recorded": "The model after `--against` is the one that was compressed, by its outputs on the probes.",
    "source.stock": "The model that was compressed is the one that stock transformers loads.",
    "speed.measured": "The artifact could be timed.",
    "tokenizer": "The tokenizer could not be tried.",
    "tokenizer.chat": "The chat template renders a recorded conversation as it did when the artifact was made.",
    "tokenizer.entries": "Entries from all of the vocabulary are the ones that were recorded.",
    "tokenizer.present": "The artifact has the tokenizer that its task needs.",
    "tokenizer.probe": "The tokenizer gives ids that the model has rows for.",
    "tokenizer.same": "The tokenizer is the one that the artifact was made with.",
    "tokenizer.texts": "Recorded texts give the recorded tokens.",
    "tokenizer.vocabulary": "The vocabulary is no larger than the embedding table.",
    "tokens.overlap": "The tokens that are kept are those that are kept in PyTorch, but for near ties.",
    "tokens.overlap.exact": "So they are without the rounding of activations.",
    "weights": "The stored weights could not be checked.",
    "weights.accuracy_level": "Weight-only products round their inputs as the manifest states.",
    "weights.codes": "Quantized weights stand for the floats that the compressed model has, bit for bit.",
    "weights.finite": "No weight is NaN or infinite.",
    "weights.inputs": "Calibrated input grids of quantized products are those that the manifest states.",
    "weights.nonzero": "No weight matrix is zero throughout.",
    "weights.ort": "model.ort was made from the model.onnx beside it.",
    "weights.readable": "The file of the weights can be read.",
    "weights.tables": "Every row of the embeddings of tokens and positions is the exported model's.",
    "weights.tied": "Weights that config.json calls tied are stored once, or are equal.",
}
"""Name of a check, or the first parts of several names -> what it asks."""


def meaning(name: str) -> str:
    """Return what a check asks: its own sentence, or that of the longest part of its name that has one.

    A check of one part of a model asks what it asks of a model without parts.
    """
    group, _, rest = name.partition(".")
    if group in PARTS:
        return meaning(rest)
    if group == "bounds" and rest in BOUNDS:
        return f"{MEANINGS[group]} {BOUNDS[rest].text}"
    if name in GATES:
        return GATES[name].text
    parts = name.split(".")
    known = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((MEANINGS[part] for part in known if part in MEANINGS), "")


def plain(text: str) -> str:
    """Return a sentence without the marks that Markdown has for code."""
    return re.sub(r"`([^`]*)`", r"\1", text)
