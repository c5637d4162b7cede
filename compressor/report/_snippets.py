"""Code of the model card: how to load the artifact with each runtime that can."""

from __future__ import annotations

from compressor.architectures import EMBEDDINGS
from compressor.architectures.tasks import TASKS
from compressor.report.facts import ArtifactFacts

DECODER = """\
import numpy as np
import onnxruntime as ort
from transformers import AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
session = ort.InferenceSession(f"{folder}/GRAPH", providers=["CPUExecutionProvider"])

ids = np.asarray([tokenizer("Once upon a time")["input_ids"]], dtype=np.int64)
feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
for entry in session.get_inputs():
    if entry.name.startswith("past_key_values."):  # an empty cache: [batch, heads, 0, head width]
        kind = np.float16 if "float16" in entry.type else np.float32
        feeds[entry.name] = np.zeros((1, entry.shape[1], 0, entry.shape[3]), kind)
    elif entry.name == "position_ids":
        feeds[entry.name] = np.arange(ids.shape[1], dtype=np.int64)[None]
logits = session.run(["logits"], feeds)[0]  # [batch, tokens, vocabulary]
print(tokenizer.decode([int(logits[0, -1].argmax())]))
"""

_TOKENS = (
    """feeds = {"input_ids": ids, """,
    """embedding = ort.InferenceSession(f"{folder}/EMBEDDINGS", providers=["CPUExecutionProvider"])
embeds = embedding.run(None, {"input_ids": ids})[0]  # image features take the places of those of image tokens
feeds = {"inputs_embeds": embeds, """,
)

GENAI = """\
import onnxruntime_genai as og

model = og.Model(".")  # this folder
tokenizer = og.Tokenizer(model)
params = og.GeneratorParams(model)
params.set_search_options(max_length=64, do_sample=False)
generator = og.Generator(model, params)
generator.append_tokens(tokenizer.encode("Once upon a time"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
"""

ENCODER = """\
import onnxruntime as ort
from transformers import AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
session = ort.InferenceSession(f"{folder}/GRAPH", providers=["CPUExecutionProvider"])

batch = tokenizer(["a first sentence", "a second one"], padding=True, return_tensors="np")
names = {entry.name for entry in session.get_inputs()}
outputs = session.run(None, {name: value for name, value in batch.items() if name in names})
print(outputs[0].shape)
"""

IMAGE = """\
import onnxruntime as ort
from PIL import Image
from transformers import AutoImageProcessor

folder = "."  # this folder
processor = AutoImageProcessor.from_pretrained(folder)
session = ort.InferenceSession(f"{folder}/GRAPH", providers=["CPUExecutionProvider"])

pixels = processor(Image.open("photo.jpg").convert("MODE"), return_tensors="np")["pixel_values"]
logits = session.run(None, {"pixel_values": pixels})[0]  # [batch, classes]
print(logits.argmax(-1))
"""

IMAGE_FEATURES = """\
import onnxruntime as ort
from PIL import Image
from transformers import AutoImageProcessor

folder = "."  # this folder
processor = AutoImageProcessor.from_pretrained(folder)
session = ort.InferenceSession(f"{folder}/GRAPH", providers=["CPUExecutionProvider"])

pixels = processor(Image.open("photo.jpg").convert("MODE"), return_tensors="np")["pixel_values"]
tokens, *embedding = session.run(None, {"pixel_values": pixels})
print(tokens.shape, *(array.shape for array in embedding))  # [batch, tokens, width], and one row for each image
"""

_QUESTION = (
    """tokens, *embedding = session.run(None, {"pixel_values": pixels})
""",
    """question = np.zeros((1, 0, WIDTH), np.float32)  # of its tokens, by embed_tokens.onnx of the language part
tokens, *embedding = session.run(None, {"pixel_values": pixels, "text_features": question})
""",
)

ZERO_SHOT = """\
import json

import numpy as np
import onnxruntime as ort
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

folder = "."  # this folder
labels = ["a photo of a cat", "a photo of a dog"]
(image, text) = (ort.InferenceSession(f"{folder}/{name}", providers=["CPUExecutionProvider"]) for name in GRAPHS)

processor, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
pixels = processor(Image.open("photo.jpg").convert("RGB"), return_tensors="np")["pixel_values"]
batch = tokenizer(labels, padding=True, return_tensors="np")
names = {entry.name for entry in text.get_inputs()}
images = image.run(["IMAGES"], {"pixel_values": pixels})[0]
texts = text.run(["TEXTS"], {name: value for name, value in batch.items() if name in names})[0]

cosine = (images / np.linalg.norm(images, axis=1)[:, None]) @ (texts / np.linalg.norm(texts, axis=1)[:, None]).T
scalars = json.load(open(f"{folder}/compression.json"))["scalars"]
logits = np.exp(scalars["logit_scale"]) * cosine + scalars.get("logit_bias", 0.0)
print(labels[int(logits[0].argmax())])
"""

SEEING = """\
import numpy as np
import onnxruntime as ort
from PIL import Image
from transformers import AutoProcessor

folder = "."  # this folder
processor = AutoProcessor.from_pretrained(folder)  # puts as many tokens into a prompt as an image has features
sessions = [ort.InferenceSession(f"{folder}/{name}", providers=["CPUExecutionProvider"]) for name in GRAPHS]
vision, embedding, decoder = sessions

prompt = f"{processor.image_token} what is on the picture ?"
batch = processor(images=Image.open("photo.jpg").convert("RGB"), text=prompt, return_tensors="np")
ids, made = batch["input_ids"].astype(np.int64), []
embeds = embedding.run(None, {"input_ids": ids})[0]
words = embedding.run(None, {"input_ids": ids[:, ids[0] != processor.image_token_id]})[0]
given = {"pixel_values": batch["pixel_values"], "text_features": words}  # words where features depend on them
features = vision.run(None, {entry.name: given[entry.name] for entry in vision.get_inputs()})[0]
embeds[ids == processor.image_token_id] = features.reshape(-1, features.shape[-1])
feeds = {"inputs_embeds": embeds, "attention_mask": np.ones_like(ids)}
inputs, outputs = ([entry.name for entry in side] for side in (decoder.get_inputs(), decoder.get_outputs()))
for entry in decoder.get_inputs():
    if entry.name.startswith("past_key_values."):  # an empty cache: [batch, heads, 0, head width]
        kind = np.float16 if "float16" in entry.type else np.float32
        feeds[entry.name] = np.zeros((1, entry.shape[1], 0, entry.shape[3]), kind)
while len(made) < 16:
    length = feeds["attention_mask"].shape[1]
    if "position_ids" in inputs:
        feeds["position_ids"] = np.arange(length, dtype=np.int64)[None, -feeds["inputs_embeds"].shape[1]:]
    found = dict(zip(outputs, decoder.run(None, feeds)))
    made.append(int(found.pop("logits")[0, -1].argmax()))
    feeds |= {name.replace("present", "past_key_values"): cache for name, cache in found.items()}
    feeds["inputs_embeds"] = embedding.run(None, {"input_ids": np.asarray([made[-1:]])})[0]
    feeds["attention_mask"] = np.ones((1, length + 1), np.int64)
print(processor.tokenizer.decode(made))
"""

SENTENCES = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".", backend="onnx")  # this folder; pools and normalizes as its modules.json says
print(model.encode(["a first sentence", "a second one"]).shape)
"""

OPTIMUM = """\
from optimum.onnxruntime import {kind}

model = {kind}.from_pretrained(".")  # this folder
"""

TRANSFORMERS = """\
from transformers import {kind}

model = {kind}.from_pretrained("."{remote})  # this folder
"""

LOAD = """\
import compressor

model = compressor.load(".")  # this folder; a torch module with its true widths
"""


def usage(task: str, facts: ArtifactFacts) -> str:
    """Return the Markdown of the section that tells how to load the artifact."""
    known = TASKS.get(task)  # a report may come from a version that knows other tasks
    if facts.format == "safetensors":
        kind = (known or TASKS["feature-extraction"]).auto_class
        kind = facts.kind if facts.kind and not facts.shaped else kind
        remote = ", trust_remote_code=True" if facts.shaped else ""
        parts = [("transformers", TRANSFORMERS.format(kind=kind, remote=remote))]
        if facts.shaped:
            parts.insert(0, ("compressor, without code from the folder", LOAD))
    else:
        parts = _graph_parts(task, facts)
    return "\n".join(f"{title}:\n\n```python\n{code}```\n" for title, code in parts)


def _graph_parts(task: str, facts: ArtifactFacts) -> list[tuple[str, str]]:
    """Return title and code of each way to load a graph."""
    known = TASKS.get(task)
    if facts.graphs:
        return [("ONNX Runtime", _seeing(facts) if facts.seeing else _zero_shot(facts))]
    image = IMAGE if known is None or known.output == "logit" else IMAGE_FEATURES
    plain = DECODER if facts.decoder else image if facts.pixels else ENCODER
    plain = plain.replace("padding=True", 'padding="max_length"') if facts.full_length else plain
    if facts.embeddings:
        plain = plain.replace(*_TOKENS).replace("EMBEDDINGS", facts.embeddings)
    if facts.question:
        plain = plain.replace(*_QUESTION).replace("WIDTH", str(facts.question))
        plain = plain.replace("import onnxruntime", "import numpy as np\nimport onnxruntime")
    code = plain.replace("GRAPH", facts.graph).replace("MODE", "L" if facts.grey else "RGB")
    parts = [("ONNX Runtime", code)]
    if facts.genai:
        parts.insert(0, ("onnxruntime-genai, with a generation loop", GENAI))
    if facts.sentences:
        parts.insert(0, ("sentence-transformers (with its extra `onnx`, in an environment of its own)", SENTENCES))
    if known and not facts.embeddings:
        where = "optimum (package `optimum-onnx`, in an environment of its own)"
        if facts.decoder and not facts.portable:
            where += ", one prompt at a time, as it pads batches on the left and this graph takes right padding alone"
        parts.append((where, OPTIMUM.format(kind=known.ort_class)))
    return parts


def _seeing(facts: ArtifactFacts) -> str:
    """Return the code that lets a language model read the image features of another graph."""
    by_name = dict(facts.graphs)
    vision, decoder = sorted(by_name, key=lambda name: name in EMBEDDINGS)
    return SEEING.replace("GRAPHS", f'("{vision}", "{EMBEDDINGS[decoder]}", "{decoder}")')


def _zero_shot(facts: ArtifactFacts) -> str:
    """Return the code that runs the graphs of both towers."""
    by_name = dict(facts.graphs)
    image, text = sorted(by_name, key=lambda name: "text" in name)
    code = ZERO_SHOT.replace("GRAPHS", f'("{image}", "{text}")')
    code = code.replace("IMAGES", by_name[image]).replace("TEXTS", by_name[text])
    return code.replace("padding=True", 'padding="max_length"') if facts.full_length else code
