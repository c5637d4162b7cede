"""Image tokens that become fewer inside a language model: the choice, the cache, the graph and the checkpoint."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from compressor.errors import CompressorError, ModelError, UsageError
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.exporters.safetensors import export_safetensors
from compressor.measure.onnx_runner import OnnxRunner
from compressor.measure.runner import Runner
from compressor.measure.torch_runner import TorchRunner
from compressor.model.cost import count_flops
from compressor.model.folder import ModelFolder, open_model
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.base import Target
from compressor.verification.cases import Case, cases_of, rows_of_text
from tests.core.toy import batches_of
from tests.methods.llm_papers import computed

Pico = Callable[..., Path]
START, COUNT, LAYERS = 2, 16, 4
LAYERED = {"image": {"start": START, "count": COUNT}, "layers": [1, 2], "counts": [9, 4]}
IDS: NDArray[np.int64] = np.random.default_rng(3).integers(2, 320, (2, 30))


def compressed(source: ModelFolder, work: Path, name: str, **options: Any) -> ModelFolder:
    """Return a model after a pass."""
    method = methods()[name]
    setting = Setting(work=work, fingerprint="llm", cache_bytes=1 << 30)
    return apply_pass(method(method.Options(**options)), source, batches_of(source), setting)[0]


@dataclass(frozen=True)
class Made:
    """A model with FastV, as PyTorch computes it and as a graph, and its folder as safetensors."""

    dense: ModelFolder
    torch: TorchRunner
    graph: OnnxRunner
    folder: Path


@pytest.fixture(scope="module")
def made(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("fastv")
    dense = open_model(pico("llama", num_hidden_layers=LAYERS))
    model = compressed(dense, root / "pass", "fastv", **LAYERED)
    for name in ("graph", "folder"):
        (root / name).mkdir()
    export_onnx(model, root / "graph")
    export_safetensors(model, root / "folder")
    return Made(dense, TorchRunner(root / "folder"), OnnxRunner(root / "graph"), root / "folder")


def run(runner: Runner, ids: NDArray[np.int64], *chunks: int) -> NDArray[np.float32]:
    """Return the logits of tokens [batch, tokens] in calls of so many each."""
    past, parts, end = None, [], 0
    for size in chunks:
        step = ids[:, end : end + size]
        end += size
        part, past = runner.extend({"input_ids": step, "attention_mask": np.ones((len(ids), end), np.int64)}, past)
        parts.append(part)
    return np.concatenate(parts, axis=1)


def fastv(shown: dict[str, Any]) -> NDArray[np.float64]:
    """FastV (arXiv 2403.06764, section 4.1) of one prompt."""
    return np.asarray(shown["attention"][:, -1].mean(0)[shown["image"]])


def feather(shown: dict[str, Any]) -> NDArray[np.float64]:
    """FEATHER (arXiv 2412.13180), the first stage with a third of six evenly spaced."""
    scores = np.asarray(shown["unturned"][:, -1].mean(0)[shown["image"]])
    if shown["layer"] == 0:
        scores[[0, 8]] = 9.0
    return scores


def transprune(shown: dict[str, Any]) -> NDArray[np.float64]:
    """TransPrune (arXiv 2507.20630, section 3) with two layers summed up."""
    image = shown["image"]
    behind = range(image[-1] + 1, shown["attention"].shape[1])
    changed = shown["changes"][:, image].sum(0)
    asked = np.stack([shown["attention"][:, place, image].mean(0) for place in behind]).mean(0)
    return np.asarray(changed / changed.sum() + asked / asked.sum())


def aim(shown: dict[str, Any]) -> NDArray[np.float64]:
    """AIM (arXiv 2412.03248, section 3): three rounds from equal ranks."""
    graph = shown["attention"].mean(0)
    ranks = np.ones(len(graph))
    for _ in range(3):
        ranks = graph.T @ ranks
    return np.asarray(ranks[shown["image"]])


def most(scores: NDArray[np.float64]) -> int:
    """ZipVL (arXiv 2410.08584): the fewest tokens that have 0.8 of the attention."""
    ranked = np.sort(scores)[::-1]
    return next(count for count in range(1, len(ranked) + 1) if ranked[:count].sum() >= 0.8 * ranked.sum())


PAPERS: dict[str, tuple[dict[str, Any], dict[int, Any], Any]] = {
    "feather": ({"layers": [1, 2], "counts": [6, 3], "spaced": 0.33}, {0: 6, 1: 3}, feather),
    "transprune": ({"layers": [2, 3], "counts": [9, 4], "summed": 2}, {1: 9, 2: 4}, transprune),
    "aim": ({"layers": [2], "counts": [5]}, {1: 5}, aim),
    "zipvl": ({"layers": [2], "mass": 0.8}, {1: most}, fastv),
    "todre-late": ({"layers": [3]}, {2: 0}, fastv),
    "p-sigmoid": ({"layers": [1, 2, 3], "sigmoid": [8.0, 0.4]}, {0: 13, 1: 5, 2: 1}, fastv),
}


@dataclass(frozen=True)
class Reduced:
    """A pico-model with a preset, and its folder as safetensors."""

    model: ModelFolder
    folder: Path


@pytest.fixture(scope="module")
def reduced(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reduced]:
    @functools.cache
    def make(name: str) -> Reduced:
        root = tmp_path_factory.mktemp(name)
        (root / "folder").mkdir()
        source = open_model(pico("llama", num_hidden_layers=LAYERS))
        model = compressed(source, root / "pass", name, image={"start": START, "count": COUNT}, **PAPERS[name][0])
        export_safetensors(model, root / "folder")
        return Reduced(model, root / "folder")

    return make


@pytest.mark.parametrize("name", PAPERS)
def test_each_preset_keeps_what_its_paper_says_in_both_forms(
    reduced: Callable[[str], Reduced], pico: Pico, name: str
) -> None:
    stock = transformers.AutoModelForCausalLM.from_pretrained(pico("llama", num_hidden_layers=LAYERS))
    _, counts, score = PAPERS[name]
    made = reduced(name)
    assert count_flops(made.model, 30) < count_flops(open_model(pico("llama", num_hidden_layers=LAYERS)), 30)
    wanted, left = computed(stock, IDS[0].tolist(), START, COUNT, counts, score)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(made.folder, trust_remote_code=True).eval()
    for model in (made.model.load(), theirs):
        with torch.no_grad():
            out = model(torch.from_numpy(IDS[:1]), use_cache=True)
        np.testing.assert_allclose(out.logits[0, left].numpy(), wanted, atol=1e-4)
        assert out.past_key_values.layers[-1].keys.shape[2] == len(left)


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("feather", "transprune")), "zipvl"]
)
def test_graphs_of_presets_compute_what_pytorch_does(
    reduced: Callable[[str], Reduced], tmp_path: Path, name: str
) -> None:
    made = reduced(name)
    export_onnx(made.model, tmp_path)
    for chunks in ((26, 1), (10, 3)):
        ours, theirs = run(OnnxRunner(tmp_path), IDS[:1], *chunks), run(TorchRunner(made.folder), IDS[:1], *chunks)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_the_choice_is_the_papers_and_what_is_left_sees_only_itself(made: Made) -> None:
    stock = transformers.AutoModelForCausalLM.from_pretrained(made.dense.path)
    found = made.torch.forward({"input_ids": IDS})
    for ids, logits in zip(IDS, found, strict=True):
        wanted, left = computed(stock, ids.tolist(), START, COUNT, {0: 9, 1: 4}, fastv)
        assert len(left) == 30 - COUNT + 4
        np.testing.assert_allclose(logits[left], wanted, atol=1e-4)
        gone = [place for place in range(START, START + COUNT) if place not in left]
        stands = [max(place for place in left if place < lost) for lost in gone]
        np.testing.assert_array_equal(logits[gone], logits[stands])


@pytest.mark.parametrize(
    ("batch", "chunks"),
    [(1, (24, 1, 1)), (2, (25, 4, 1)), (1, (19, 1)), (1, (18, 1)), (2, (9,)), (1, (2, 26)), (1, (3, 26)), (1, (9, 13))],
)
def test_the_graph_computes_what_pytorch_does_with_a_cache(made: Made, batch: int, chunks: tuple[int, ...]) -> None:
    ids = IDS[:batch]
    np.testing.assert_allclose(run(made.graph, ids, *chunks), run(made.torch, ids, *chunks), atol=1e-4)


@pytest.mark.parametrize("chunks", [(18,), (10, 8), (3, 27), (12, 1, 1, 1, 1, 1, 1, 1)])
def test_calls_without_all_image_tokens_and_one_behind_drop_none(made: Made, chunks: tuple[int, ...]) -> None:
    dense = TorchRunner(made.dense.path)
    np.testing.assert_allclose(run(made.graph, IDS, *chunks), run(dense, IDS, *chunks), atol=1e-4)


def test_layers_behind_have_shorter_caches_and_names_for_their_lengths(made: Made) -> None:
    past = made.graph.extend({"input_ids": IDS})[1]
    assert [layer.shape[2] for layer in past[::2]] == [30, 23, 18, 18]
    cache = made.torch.extend({"input_ids": IDS})[1]
    assert [layer.keys.shape[2] for layer in cache.layers] == [30, 23, 18, 18]
    shapes = {name: value.shape for name, value in made.graph._inputs.items()}
    assert [name for name in shapes if not name.startswith("past")] == ["input_ids", "attention_mask", "position_ids"]
    names = [shapes[f"past_key_values.{layer}.key"][2] for layer in range(4)]
    assert names == ["past_sequence_length", "past_sequence_length_1", *["past_sequence_length_2"] * 2]


def test_padding_where_image_tokens_go_fails_in_both_and_elsewhere_changes_nothing(made: Made) -> None:
    mask = np.ones((2, 24), np.int64)
    mask[1, :3] = 0
    for runner in (made.graph, made.torch):
        with pytest.raises(Exception, match=r"padding_is_not_supported|are padded"):
            runner.forward({"input_ids": IDS[:, :24], "attention_mask": mask})
    short = {"input_ids": IDS[:, :12], "attention_mask": mask[:, :12]}
    np.testing.assert_allclose(
        made.graph.forward(short)[mask[:, :12] > 0], made.torch.forward(short)[mask[:, :12] > 0], atol=1e-4
    )


def test_transformers_generates_with_the_modelling_file_what_the_graph_does(made: Made) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(made.folder, trust_remote_code=True).eval()
    np.testing.assert_allclose(
        model(torch.from_numpy(IDS)).logits.detach().numpy(), made.torch.forward({"input_ids": IDS}), atol=1e-5
    )
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    found = model.generate(torch.from_numpy(IDS), **options)[:, IDS.shape[1] :].numpy()
    np.testing.assert_array_equal(found, made.graph.generate(IDS, 6))
    np.testing.assert_array_equal(found, made.torch.generate(IDS, 6))
    with pytest.raises(ValueError, match="padded"):
        model(torch.from_numpy(IDS), attention_mask=torch.from_numpy(np.arange(30) > 1).long().expand(2, -1))
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoModelForCausalLM.from_pretrained(made.folder, trust_remote_code=False)


def test_passes_that_follow_are_calibrated_on_fewer_tokens(made: Made, tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []
    reduced = open_model(made.folder)
    method = methods()["gptq"]
    quantize: Any = method(method.Options(bits=8))
    change = quantize.change_block

    def looked(block: Any) -> Any:
        seen.append(tuple(block.current_in(0).shape[:2]))
        return change(block)

    quantize.change_block = looked
    setting = Setting(work=tmp_path, fingerprint="llm", cache_bytes=1 << 30)
    model, _ = apply_pass(quantize, reduced, batches_of(reduced), setting)
    assert seen == [(2, 24), (2, 17), (2, 12), (2, 12)]
    found = model.load()(torch.from_numpy(IDS)).logits.detach().numpy()
    wanted = made.torch.forward({"input_ids": IDS})
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("family", "options", "kind", "said"),
    [
        ("llama", {"keep": 0.5}, ModelError, "image.count"),
        ("llama", {"keep": 0.5, "image": {"count": 16}, "layers": [3]}, UsageError, "behind the last layer"),
        ("llama", {"keep": 0.5, "image": {"count": 300}, "layers": [1]}, UsageError, "positions"),
        ("llama", {"counts": [12, 14], "image": {"count": 16}, "layers": [1, 2]}, UsageError, "at most the one before"),
        ("opt", {"keep": 0.5, "image": {"count": 16}}, ModelError, "opt"),
        ("bert", {"keep": 0.5, "image": {"count": 16}}, ModelError, "bert"),
    ],
)
def test_what_cannot_be_done_is_refused(
    pico: Pico, family: str, options: dict[str, Any], kind: type[CompressorError], said: str
) -> None:
    method = methods()["fastv"]
    with pytest.raises(kind, match=said) as error:
        method(method.Options(**options)).plan(open_model(pico(family)), Target())
    assert error.value.hint


@pytest.mark.parametrize(
    "options", [{}, {"keep": 0.5, "tokens": 3}, {"keep": 0.5, "layers": [2, 1]}, {"counts": [3], "layers": [1, 2]}]
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="layers|exactly one"):
        methods()["fastv"].Options(**options)


def test_the_language_part_of_llava_knows_its_image_tokens_and_takes_embeddings(pico: Pico, tmp_path: Path) -> None:
    method = methods()["random-llm-tokens"]
    source = open_model(pico("llava"), part="language")
    instance = method(method.Options(keep=0.25, layers=[1]))
    export_safetensors(source, tmp_path)
    for model in (source, open_model(tmp_path)):  # taken out of the whole, as a run does
        (reduction,) = instance.plan(model, Target()).reductions
        assert (reduction.count, reduction.keep) == (16, 4)
    model = compressed(source, tmp_path / "pass", "random-llm-tokens", keep=0.25, layers=[1])
    (tmp_path / "graph").mkdir()
    names = OnnxOptions(name="decoder_model_merged.onnx", embeddings="embed_tokens.onnx")
    export_onnx(model, tmp_path / "graph", names)
    graph = OnnxRunner(tmp_path / "graph")
    np.testing.assert_allclose(run(graph, IDS, 20, 1), run(TorchRunner(model.path), IDS, 20, 1), atol=1e-4)
    assert not (tmp_path / "graph" / "genai_config.json").exists()


def test_probes_hold_the_image_unpadded_and_rows_of_image_tokens_are_told_apart(pico: Pico, tmp_path: Path) -> None:
    config = json.loads((pico("llama") / "config.json").read_text())
    entry = {"site": "llm_layer", "start": START, "count": COUNT}
    config["compression"] = {"version": 2, "stacks": {"": {"tokens": [entry]}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    runner: Any = SimpleNamespace(folder=tmp_path, inputs="tokens", task="text-generation")
    cases = {case.name: case for case in cases_of(runner)}
    assert cases["image"].chunks == (START + COUNT + 9, 1, 1, 3) and "padding" in cases
    assert all(case.padding == "none" or max(case.chunks) <= START + COUNT for case in cases.values())
    rows = rows_of_text(Case("some", 2, (20, 2)), (START, COUNT))
    np.testing.assert_array_equal(rows, [0, 1, 18, 19, 20, 21, 22, 23, 40, 41, 42, 43])
    assert rows_of_text(Case("short", 2, (18,)), (START, COUNT)) == slice(None)
    assert rows_of_text(cases["padding"], (0, 2)) == slice(None)
