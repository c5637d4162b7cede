"""Makes a small LLaVA model from nothing: pictures, questions, training, figures.

    python -m compressor.demo.train_llava --out FOLDER

Two CPU threads, fixed seeds: the same machine and versions give the same bytes. CLIP's image tower, projector and
language model are trained at once. The class token learns to tell what is on the picture, as in CLIP, so that its
attention means something, and every patch which digit it is a part of and where it is; the heads with which they do so
are thrown away.
The language model is shown the patches in random order: where a digit is then stands in the features themselves, as in
large models, and not in how many patches come before them, which a selection of patches would change. Beside the model
it leaves pictures that the training has not seen, and questions about them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from compressor.demo.muon import Muon
from compressor.demo.pictures import CELL, COLOURS, DIGITS, PATCH, SIDE, WORDS, Picture, pictures
from compressor.demo.rates import warm_cosine

PAD, END, IMAGE, ANSWER = "<pad>", "<end>", "<image>", "answer :"
VOCABULARY = (PAD, END, IMAGE, "answer", ":", *WORDS)
PATCHES = (SIDE // PATCH) ** 2
IGNORED = -100
_SHOWN = len(DIGITS) + len(COLOURS) + 9
"""What the class token tells: which digits, which colours and which cells are there."""


@dataclass(frozen=True)
class Plan:
    """How the model is trained.

    Attributes:
        steps: optimizer steps.
        batch: pictures per step; all their questions are asked at once.
        peak: highest learning rate, reached after `warmup` steps; it then falls along a cosine to a hundredth.
        shown: weight of what the class token and the patches tell.
        valid: pictures that are kept for questions.
    """

    steps: int = 1800
    batch: int = 32
    peak: float = 3e-3
    warmup: int = 100
    shown: float = 1.0
    valid: int = 200

    def rate(self, step: int) -> float:
        """Learning rate at a step, counted from zero."""
        return warm_cosine(step, self.steps, self.peak, self.warmup)


def build_tokenizer() -> Tokenizer:
    """Return a tokenizer of whole words."""
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(VOCABULARY)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([PAD, END, IMAGE])
    return tokenizer


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """Return the untrained model: an image tower of five blocks, of which four are read, and a decoder of three."""
    torch.manual_seed(seed)
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
        "projection_dim": 96,
    }
    text = {
        "model_type": "llama",
        "vocab_size": len(VOCABULARY),
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": VOCABULARY.index(END),
        "eos_token_id": VOCABULARY.index(END),
        "pad_token_id": VOCABULARY.index(PAD),
        "initializer_range": 0.05,
    }
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=VOCABULARY.index(IMAGE),
        image_seq_length=PATCHES,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return LlavaForConditionalGeneration(config)


def prepared(batch: Sequence[Picture]) -> Tensor:
    """Return pixels [pictures, 3, height, width] from -1 to 1, as the image processor makes them."""
    pixels = np.stack([picture.pixels for picture in batch]).transpose(0, 3, 1, 2)
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1)


def shown(batch: Sequence[Picture]) -> Tensor:
    """Return which digits, colours and cells are there, [pictures, 25] of 0 and 1."""
    found, names = torch.zeros(len(batch), _SHOWN), list(COLOURS)
    for row, picture in zip(found, batch, strict=True):
        for thing in picture.things:
            row[[thing.digit, len(DIGITS) + names.index(thing.colour), len(DIGITS) + len(names) + thing.cell]] = 1
    return found


def cells() -> Tensor:
    """Return the cell in which each patch lies, [patches]."""
    side, places = SIDE // PATCH, torch.arange(PATCHES)
    return places // side * PATCH // CELL * (SIDE // CELL) + places % side * PATCH // CELL


def inked(batch: Sequence[Picture]) -> Tensor:
    """Return which digit each patch shows a part of, [pictures, patches]; 10: none."""
    side, found = SIDE // PATCH, torch.full((len(batch), PATCHES), len(DIGITS))
    inside = cells().numpy()
    for row, picture in zip(found, batch, strict=True):
        patches = picture.pixels.reshape(side, PATCH, side, PATCH, 3).swapaxes(1, 2).reshape(PATCHES, -1, 3)
        for thing in picture.things:
            coloured = (patches == COLOURS[thing.colour]).all(-1).any(-1)
            row[torch.from_numpy(coloured & (inside == thing.cell))] = thing.digit
    return found


@dataclass(frozen=True)
class Asked:
    """All questions about some pictures: of each picture one row, its places first, then one question after another.

    Attributes:
        ids: tokens, [pictures, length]; the places of the picture, then of each question its words, `answer :`, the
            answer and the end.
        labels: what to learn of them, the answers and their ends, [pictures, length].
        positions: as if each question stood alone behind the picture, [pictures, length].
        owners: which question a token belongs to, counted from 1; 0 of the picture, -1 of padding, [pictures, length].
        kinds: of the questions of each picture.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    owners: Tensor
    kinds: tuple[tuple[str, ...], ...]

    @property
    def mask(self) -> Tensor:
        """Who sees whom, bool [pictures, 1, length, length]: a question the picture and itself, never another one."""
        owners, length = self.owners, self.owners.shape[1]
        own = owners[:, :, None] == owners[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        return ((own | (owners[:, None, :] == 0)) & causal)[:, None]


def encode(tokenizer: Tokenizer, batch: Sequence[Picture]) -> Asked:
    """Return the questions about pictures as tokens; the places of a picture serve all its questions."""
    pad, end, image = (VOCABULARY.index(word) for word in (PAD, END, IMAGE))
    rows = []
    for picture in batch:
        words, learned = [image] * PATCHES, [IGNORED] * PATCHES
        places, numbers = list(range(PATCHES)), [0] * PATCHES
        for number, (_, question, answer) in enumerate(picture.questions, start=1):
            asked, told = tokenizer.encode(f"{question} {ANSWER}").ids, [*tokenizer.encode(answer).ids, end]
            words += [*asked, *told]
            learned += [*[IGNORED] * len(asked), *told]
            places += range(PATCHES, PATCHES + len(asked) + len(told))
            numbers += [number] * (len(asked) + len(told))
        rows.append((words, learned, places, numbers))
    length = max(len(row[0]) for row in rows)
    ids, labels, positions, owners = (
        torch.tensor([[*part, *[filler] * (length - len(part))] for part in parts])
        for parts, filler in zip(zip(*rows, strict=True), (pad, IGNORED, 0, -1), strict=True)
    )
    kinds = tuple(tuple(kind for kind, _, _ in picture.questions) for picture in batch)
    return Asked(ids, labels, positions, owners, kinds)


def answered(
    model: LlavaForConditionalGeneration, pixels: Tensor, asked: Asked, order: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits of all tokens, and what the image tower gives.

    Args:
        model: the model.
        pixels: [pictures, 3, height, width].
        asked: the questions about them.
        order: in which the language model is shown the patches, [patches]; None: as they are.

    Returns:
        Logits [pictures, length, vocabulary], the class token's output [pictures, width], and the features of the
        patches that the language model reads [pictures, patches, width].
    """
    seen = model.model.get_image_features(pixels)
    features = torch.stack(list(seen.pooler_output))
    shuffled = features if order is None else features[:, order]
    embeds = torch.cat([shuffled, model.get_input_embeddings()(asked.ids)[:, PATCHES:]], dim=1)
    output = model(inputs_embeds=embeds, attention_mask=asked.mask, position_ids=asked.positions)
    return output.logits, seen.last_hidden_state[:, 0], features


def train(model: LlavaForConditionalGeneration, tokenizer: Tokenizer, plan: Plan, *, seed: int = 0) -> None:
    """Train in place, and report to stderr: Muon turns the matrices of blocks, AdamW everything else."""
    torch.manual_seed(seed)
    config: Any = model.config
    heads = nn.ModuleDict(
        {
            "classes": nn.Linear(config.vision_config.hidden_size, _SHOWN),
            "patches": nn.Linear(config.text_config.hidden_size, len(DIGITS) + 1),
            "cells": nn.Linear(config.text_config.hidden_size, (SIDE // CELL) ** 2),
        }
    )
    blocks = itertools.chain(model.model.language_model.layers, model.model.vision_tower.encoder.layers)
    matrices = [p for block in blocks for p in block.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in (*model.parameters(), *heads.parameters()) if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=plan.peak),
        torch.optim.AdamW(others, lr=plan.peak, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    source = pictures("train", seed)
    model.train()
    begin = time.process_time()
    for step in range(plan.steps):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = plan.rate(step)
        batch = list(itertools.islice(source, plan.batch))
        asked = encode(tokenizer, batch)
        logits, classes, patches = answered(model, prepared(batch), asked, torch.randperm(PATCHES))
        labels = asked.labels[:, 1:].flatten()
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=IGNORED)
        told = nn.functional.binary_cross_entropy_with_logits(heads["classes"](classes), shown(batch))
        read = nn.functional.cross_entropy(heads["patches"](patches).flatten(0, 1), inked(batch).flatten())
        placed = nn.functional.cross_entropy(heads["cells"](patches).flatten(0, 1), cells().repeat(len(batch)))
        model.zero_grad()
        heads.zero_grad()
        (loss + plan.shown * (told + read + placed)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 100 == 0:
            spent = time.process_time() - begin
            losses = f"loss {loss.item():.4f}, of patches {read.item():.4f}"
            sys.stderr.write(f"step {step + 1}/{plan.steps}  {losses}  {spent:.0f} s of CPU\n")
            sys.stderr.flush()
    model.eval()


@torch.no_grad()
def score(model: LlavaForConditionalGeneration, tokenizer: Tokenizer, batch: Sequence[Picture]) -> dict[str, float]:
    """Return the share of right answers by kind of question, and of `all`: every token of the answer most likely."""
    hits: dict[str, list[bool]] = {}
    for start in range(0, len(batch), 16):
        part = batch[start : start + 16]
        asked = encode(tokenizer, part)
        logits, _, _ = answered(model, prepared(part), asked)
        labels = asked.labels[:, 1:]
        wrong = (logits[:, :-1].argmax(-1) != labels) & (labels != IGNORED)
        for kinds, missed, owners in zip(asked.kinds, wrong, asked.owners[:, 1:], strict=True):
            for number, kind in enumerate(kinds, start=1):
                right = not bool(missed[owners == number].any())
                hits.setdefault(kind, []).append(right)
                hits.setdefault("all", []).append(right)
    return {kind: sum(right) / len(right) for kind, right in sorted(hits.items())}


def save(model: LlavaForConditionalGeneration, tokenizer: Tokenizer, folder: Path, figures: dict[str, Any]) -> None:
    """Write a plain Hugging Face folder, with the figures of the training beside it."""
    config: Any = model.config
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "bos_token": END,
        "pad_token": PAD,
        "model_max_length": config.text_config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE,
        "patch_size": PATCH,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    documents = {
        "tokenizer_config": settings,
        "preprocessor_config": images,
        "processor_config": processor,
        "training": figures,
    }
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def write_questions(batch: Iterable[Picture], folder: Path) -> None:
    """Write `images/N.png`, `questions.jsonl` (image, kind, question, answer), and `texts.txt` for a decoder alone."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines, texts = [], []
    for number, picture in enumerate(batch):
        name = f"{number:04d}.png"
        Image.fromarray(picture.pixels).save(images / name)
        for kind, question, answer in picture.questions:
            entry = {"image": name, "kind": kind, "question": question, "answer": answer}
            lines.append(json.dumps(entry) + "\n")
            texts.append(f"{question} {ANSWER} {answer} {END}\n")
    (folder / "questions.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "texts.txt").write_text("".join(texts), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Write model, pictures and questions; `--steps` serves quick trials."""
    parser = argparse.ArgumentParser(prog="python -m compressor.demo.train_llava", description=__doc__)
    parser.add_argument("--steps", type=int, default=Plan.steps, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for model, pictures and questions")
    options = parser.parse_args(arguments)
    plan = Plan(steps=options.steps)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    begin = time.process_time()
    tokenizer, model = build_tokenizer(), build_model()
    train(model, tokenizer, plan)
    unseen = list(itertools.islice(pictures("valid"), plan.valid))
    write_questions(unseen, options.out)
    right = {kind: round(share, 4) for kind, share in score(model, tokenizer, unseen).items()}
    figures = {"parameters": model.num_parameters(), "steps": plan.steps, "right": right}
    save(model, tokenizer, options.out / "model", figures)
    sys.stdout.write(json.dumps({**figures, "cpu_seconds": round(time.process_time() - begin, 1)}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
