"""Makes the demo model from nothing: stories, tokenizer, training, figures (`python -m compressor.demo.train`).

One CPU thread, fixed seeds: the same machine and versions give the same bytes. About ten minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from compressor.demo import MODEL_DIR, TRAIN_TEXT, VALID_TEXT
from compressor.demo.grammar import END, document
from compressor.demo.rates import warm_cosine

PACKAGED_TRAIN, PACKAGED_VALID = 300_000, 150_000
"""Characters of the packaged texts; the training text goes on where the packaged part ends."""


@dataclass(frozen=True)
class Plan:
    """How the demo model is trained.

    Attributes:
        steps: optimizer steps.
        batch: windows per step.
        window: tokens per window; also the model's context length.
        peak: highest learning rate, reached after `warmup` steps; it then falls along a cosine to a hundredth.
        vocabulary: entries of the tokenizer.
        characters: size of the generated training text.
    """

    steps: int = 4500
    batch: int = 4
    window: int = 256
    peak: float = 5e-3
    warmup: int = 100
    vocabulary: int = 768
    characters: int = 12_000_000

    def rate(self, step: int) -> float:
        """Learning rate at a step, counted from zero."""
        return warm_cosine(step, self.steps, self.peak, self.warmup)


def build_tokenizer(text: str, vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer; most words become one token, and every text begins with the end mark."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return tokenizer


def build_model(plan: Plan, seed: int = 0) -> LlamaForCausalLM:
    """Return the untrained model: 4 layers, 4 query heads on 2 key/value heads, tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=plan.vocabulary,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=plan.window,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.06,
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, ids: torch.Tensor, plan: Plan, *, seed: int = 0) -> None:
    """Train in place on windows drawn from `ids` [N], and report to stderr.

    Muon turns the matrices inside the blocks, AdamW everything else: AdamW alone needs several times the steps before
    attention learns to copy names from earlier sentences.
    """
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=plan.peak, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=plan.peak, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    openings = ids.eq(int(model.config.bos_token_id or 0)).nonzero()[:, 0]
    openings = openings[openings <= len(ids) - plan.window]
    last = int(openings[-1])
    generator = torch.Generator().manual_seed(seed)
    model.train()
    begin = time.process_time()
    for step in range(plan.steps):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = plan.rate(step)
        starts = torch.randint(last, (plan.batch,), generator=generator)
        whole = starts[::2]  # every other window begins with a story, so that nothing it refers to is cut off
        whole.copy_(openings[torch.searchsorted(openings, whole.contiguous())])
        batch = torch.stack([ids[s : s + plan.window] for s in starts.tolist()])  # [batch, window]
        loss = model(input_ids=batch, labels=batch).loss
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 100 == 0:
            spent = time.process_time() - begin
            sys.stderr.write(f"step {step + 1}/{plan.steps}  loss {loss.item():.4f}  {spent:.0f} s of CPU\n")
            sys.stderr.flush()
    model.eval()


@torch.no_grad()
def score(model: LlamaForCausalLM, ids: torch.Tensor, window: int) -> tuple[float, float]:
    """Return perplexity and next-token accuracy over non-overlapping windows of `ids` [N]."""
    rows = ids[: len(ids) // window * window].view(-1, window)
    losses, hits = 0.0, 0
    for part in rows.split(16):
        logits = model(input_ids=part).logits[:, :-1].flatten(0, 1)
        targets = part[:, 1:].flatten()
        losses += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        hits += int((logits.argmax(-1) == targets).sum())
    count = rows.shape[0] * (window - 1)
    return math.exp(losses / count), hits / count


def encode(tokenizer: Tokenizer, text: str) -> torch.Tensor:
    """Return the token ids [N] of stories, each behind one end mark; the lines that marks stand on are not text."""
    parts = (part.strip() for part in text.split(END))
    encodings = tokenizer.encode_batch([part for part in parts if part])
    return torch.tensor([token for encoding in encodings for token in encoding.ids], dtype=torch.long)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path, figures: dict[str, Any]) -> None:
    """Write a plain Hugging Face folder, with the figures of the training beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "model_max_length": model.config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Write the texts and the model; `--steps` and `--out` serve quick trials."""
    parser = argparse.ArgumentParser(prog="python -m compressor.demo.train", description=__doc__)
    parser.add_argument("--steps", type=int, default=Plan.steps, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=None, help="write model and texts here, not into the package")
    options = parser.parse_args(arguments)
    plan = Plan(steps=options.steps)
    folder, train_path, valid_path = MODEL_DIR, TRAIN_TEXT, VALID_TEXT
    if options.out is not None:
        folder, train_path, valid_path = (options.out / p.name for p in (folder, train_path, valid_path))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    begin = time.process_time()

    valid_text, information = document("valid", PACKAGED_VALID)
    train_path.parent.mkdir(parents=True, exist_ok=True)
    train_path.write_text(document("train", PACKAGED_TRAIN)[0], encoding="utf-8")
    valid_path.write_text(valid_text, encoding="utf-8")
    text = document("train", plan.characters)[0]
    tokenizer = build_tokenizer(text[:1_000_000], plan.vocabulary)
    ids, valid = encode(tokenizer, text), encode(tokenizer, valid_text)
    model = build_model(plan)
    train(model, ids, plan)
    perplexity, accuracy = score(model, valid, plan.window)
    figures = {
        "parameters": model.num_parameters(),
        "steps": plan.steps,
        "tokens_seen": plan.steps * plan.batch * plan.window,
        "valid_perplexity": round(perplexity, 4),
        "valid_next_token_accuracy": round(accuracy, 4),
        "perplexity_of_the_grammar": round(math.exp(information / len(valid)), 4),
    }
    save(model, tokenizer, folder, figures)
    sys.stdout.write(json.dumps({**figures, "cpu_seconds": round(time.process_time() - begin, 1)}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
