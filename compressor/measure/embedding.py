"""From a model's hidden states to the embedding of a sentence, as sentence-transformers computes it; in float64.

With h_t the hidden state of token t, m_t its mask (0 for padding), p_t its position behind left padding, from 1:

| mode | pooled |
|---|---|
| `cls` | h of the first real token |
| `max` | the greatest value of each feature over real tokens |
| `mean` | sum(m h) / sum(m) |
| `mean_sqrt_len_tokens` | sum(m h) / sqrt(sum(m)) |
| `weightedmean` | sum(m p h) / sum(m p) |
| `lasttoken` | h of the last real token |

Several modes are joined in the order in which they are named. Dense is y = f(W x + b), plus x or R x where it has a
residual; Normalize is x / |x|.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressor._lazy import lazy
from compressor.data.kinds import Inputs
from compressor.data.preprocessors import load_tokenizer
from compressor.measure.runner import Runner
from compressor.measure.statistics import F64
from compressor.storage.sentence import SentenceEncoder, SentenceModule, read_sentence_encoder
from compressor.storage.tensors import Checkpoint, read_header

torch = lazy("torch")

_SMALLEST_SUM, _SMALLEST_NORM = 1e-9, 1e-12
_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Embedder:
    """How the hidden states of a model become embeddings.

    Attributes:
        encoder: what the model's files state.
        prompt_tokens: tokens of the default prompt that every sentence begins with and the pooling leaves out.
        weights: tensors of each module, by its place in `encoder.modules`.
    """

    encoder: SentenceEncoder = SentenceEncoder()
    prompt_tokens: int = 0
    weights: tuple[dict[str, F64], ...] = field(default=(), repr=False)

    def embed(self, runner: Runner, inputs: Inputs) -> F64:
        """Return the embeddings [B, E] of one batch of tokenised sentences or of images."""
        own = runner.pooled(inputs)
        if own is not None:
            return own.astype(np.float64)
        hidden = runner.forward(inputs).astype(np.float64)
        mask = np.asarray(inputs.get("attention_mask", np.ones(hidden.shape[:2])), dtype=np.float64)
        with np.errstate(invalid="ignore"):  # a model that gives infinities is told of by its NaN
            found = pool(hidden, mask, self.encoder.modes, self.prompt_tokens)
            for module, weights in zip(self.encoder.modules, self.weights, strict=True):
                found = _applied(module, weights, found)
        return found


def open_embedder(folder: Path) -> Embedder:
    """Return how the model in a folder makes embeddings.

    Raises:
        ModelError: its files are damaged, or ask for what is not covered.
        DataError: pooling leaves out a prompt, and there is no tokenizer to count its tokens.
    """
    encoder = read_sentence_encoder(folder)
    skipped = _prompt_tokens(folder, encoder.prompt) if encoder.prompt and not encoder.include_prompt else 0
    return Embedder(encoder, skipped, tuple(_weights(module) for module in encoder.modules))


def _prompt_tokens(folder: Path, prompt: str) -> int:
    """Return how many tokens a prompt is, without a special token at its end."""
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - int(bool(ids) and ids[-1] in tokenizer.all_special_ids)


def _weights(module: SentenceModule) -> dict[str, F64]:
    if module.weights is None:
        return {}
    stored = Checkpoint(read_header(module.weights))
    found = {name: np.asarray(stored.tensor(name).to(torch.float64).numpy()) for name in stored.names()}
    stored.close()
    return found


def pool(hidden: F64, mask: F64, modes: tuple[str, ...] = ("mean",), prompt_tokens: int = 0) -> F64:
    """Pool hidden states [B, T, H] over the tokens of a mask [B, T]; several modes are joined: [B, modes · H].

    Args:
        hidden: hidden states.
        mask: 1 for real tokens, 0 for padding on either side.
        modes: names of `compressor.storage.sentence.POOLING_MODES`.
        prompt_tokens: real tokens at the start that are left out.
    """
    first = mask.argmax(axis=1)[:, None]
    places = np.arange(mask.shape[1])[None]
    kept = mask * (places >= first + prompt_tokens)
    return np.concatenate([_pooled(hidden, kept, places - first + 1, mode) for mode in modes], axis=1)


def _pooled(hidden: F64, mask: F64, positions: NDArray[np.int64], mode: str) -> F64:
    rows = np.arange(len(hidden))
    if mode == "cls":
        return np.asarray(hidden[rows, mask.argmax(axis=1)])
    if mode == "lasttoken":
        last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
        return np.where(mask.max(axis=1, keepdims=True) > 0, hidden[rows, last], 0.0)
    if mode == "max":
        return np.asarray(np.where(mask[:, :, None] > 0, hidden, -np.inf).max(axis=1), dtype=np.float64)
    weights = mask * positions if mode == "weightedmean" else mask
    total = np.maximum(weights.sum(axis=1, keepdims=True), _SMALLEST_SUM)
    # Hidden states of padding do not count, even where they are not finite.
    terms = np.where(mask[:, :, None] > 0, hidden * weights[:, :, None], 0.0)
    return np.asarray(terms.sum(axis=1) / (np.sqrt(total) if mode == "mean_sqrt_len_tokens" else total))


def _applied(module: SentenceModule, weights: dict[str, F64], x: F64) -> F64:
    """Return what a module behind the pooling makes of embeddings [B, E]."""
    if module.kind == "Normalize":
        return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _SMALLEST_NORM))
    if module.kind == "LayerNorm":
        centred = x - x.mean(axis=1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=1, keepdims=True) + _NORM_EPSILON)
        return np.asarray(centred / scale * weights["norm.weight"] + weights["norm.bias"])
    y = x @ weights["linear.weight"].T + weights.get("linear.bias", 0.0)
    activation = getattr(torch.nn, module.activation)()
    y = np.asarray(activation(torch.from_numpy(y)).numpy())
    if module.residual:
        y = y + (x @ weights["residual.weight"].T if "residual.weight" in weights else x)
    return y


def unit(x: F64) -> F64:
    """Return embeddings [B, E] at length one; NaN for one without a direction, so that no bound accepts it."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.asarray(x / np.where(norm > 0, norm, np.nan), dtype=np.float64)


def similarity(name: str, a: F64, b: F64) -> F64:
    """Return how alike the embeddings a and b [B, E] are, row by row: greater is more alike.

    Args:
        name: of `compressor.storage.sentence.SIMILARITIES`; distances are negated.
        a: embeddings.
        b: the same number of them.
    """
    with np.errstate(invalid="ignore"):
        if name == "dot":
            return np.asarray((a * b).sum(axis=1))
        if name == "euclidean":
            return np.asarray(-np.linalg.norm(a - b, axis=1))
        if name == "manhattan":
            return np.asarray(-np.abs(a - b).sum(axis=1))
        return np.asarray((unit(a) * unit(b)).sum(axis=1))
