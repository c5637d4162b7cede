from __future__ import annotations

import ast
import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from compressor.report.card import card, fenced
from compressor.report.facts import ArtifactFacts
from tests.report.samples import RECIPE, REPORTS, check, decoder, encoder, hostile, image

ONNX = ArtifactFacts("onnx", genai=True, decoder=True)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("kind", ["onnx", "safetensors"])
def test_card_is_complete_and_its_code_parses(name, kind):
    report = REPORTS[name]()
    facts = ArtifactFacts(kind, decoder=report["model"]["task"] == "text-generation", shaped=name == "image")
    text = card(report, RECIPE, facts)
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] and "compressor" in head["tags"]
    for title in ("## Figures", "## How to load it", "## Recipe", "## Limits", "## Verdict"):
        assert f"\n{title}\n" in text
    snippets = blocks(text, "python")
    assert snippets
    for snippet in snippets:
        ast.parse(snippet)
    for table in re.findall(r"(?:^\|.*\|$\n)+", text, flags=re.M):
        cells = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(cells) == 1, table


def test_the_recipe_is_quoted_word_for_word_even_with_fences_in_it():
    assert blocks(card(decoder(), RECIPE, ONNX), "yaml") == [RECIPE]
    assert fenced("a\n````\nb", "yaml") == "`````yaml\na\n````\nb\n`````\n"


def test_each_format_gets_the_loaders_that_can_read_it():
    decoder_card = card(decoder(), RECIPE, ONNX)
    assert "og.Model" in decoder_card and "past_key_values." in decoder_card
    assert "one prompt at a time" in decoder_card and "ORTModelForCausalLM" in decoder_card
    portable = card(decoder(), RECIPE, ArtifactFacts("onnx", decoder=True, portable=True))
    assert "ORTModelForCausalLM" in portable and "one prompt at a time" not in portable
    encoder_card = card(encoder(), RECIPE, ArtifactFacts("onnx"))
    assert "ORTModelForFeatureExtraction" in encoder_card and "og.Model" not in encoder_card
    assert "sentence_transformers" not in encoder_card
    sentences = card(encoder(), RECIPE, ArtifactFacts("onnx", sentences=True))
    assert 'SentenceTransformer(".", backend="onnx")' in sentences
    images = card(image(), RECIPE, ArtifactFacts("onnx", pixels=True))
    assert "AutoImageProcessor" in images and 'convert("RGB")' in images and "/model.onnx" in images
    grey = card(image(), RECIPE, ArtifactFacts("onnx", grey=True, pixels=True, graph="model.ort"))
    assert 'convert("L")' in grey and "/model.ort" in grey
    plain = card(decoder(), RECIPE, ArtifactFacts("safetensors", decoder=True))
    assert 'AutoModelForCausalLM.from_pretrained(".")' in plain and "InferenceSession" not in plain
    shaped = card(decoder(), RECIPE, ArtifactFacts("safetensors", decoder=True, shaped=True))
    assert "compressor.load" in shaped and "trust_remote_code=True" in shaped


def test_limits_name_the_operator_of_the_graph():
    assert "pad on the right" in card(decoder(), RECIPE, ONNX)
    portable = card(decoder(), RECIPE, ArtifactFacts("onnx", decoder=True, portable=True))
    assert "left or right padding" in portable and "GroupQueryAttention" not in portable


def test_verdict_and_reasons():
    text = card(REPORTS["failed"](), RECIPE, ONNX)
    assert "**not verified; do not ship it**" in text
    assert "| `bounds.speedup_decode` | the artifact is slower" in text


def test_no_path_of_the_machine():
    report = encoder()
    report["verdict"] = "failed"
    report["checks"].append(check("session.loads", None, False, reason="cannot open /home/someone/out/model.onnx"))
    report["environment"]["executable"] = "/home/someone/venv/bin/python"
    text = card(report, RECIPE, ArtifactFacts("onnx"))
    assert "/home" not in text
    assert "# all-MiniLM-L6-v2, compressed" in text and "cannot open model.onnx" in text
    assert "base\\_model" not in text and "base_model" not in text, "a local model has no hub id to point to"


def test_base_model_of_a_hub_model():
    assert yaml.safe_load(card(decoder(), RECIPE, ONNX).split("---")[1])["base_model"] == "HuggingFaceTB/SmolLM2-135M"


def test_names_from_outside_are_not_markup():
    report = decoder()
    report["model"]["id"] = "x|y\n# fake\n<b>[a](b)`"
    report["passes"][0]["name"] = 'q"\n---\nlicense: mit'
    text = card(report, RECIPE, ONNX)
    assert "\n# fake" not in text and "<b>" not in text.replace("\\<b\\>", "")
    head = yaml.safe_load(text.split("\n---\n")[0])
    assert "license" not in head


def test_no_place_of_the_card_reads_words_from_outside_as_markup():
    evil = "<script>alert(1)</script> {{ 7 * 7 }} {% raw %} | `x` --- [a](b)"
    text, plain = (card(hostile(word), RECIPE, ONNX) for word in (evil, "zebra"))
    assert text.count("{{ 7") == plain.count("zebra") > 10 and len(text.splitlines()) == len(plain.splitlines())
    head, body = re.split(r"^---$\n", text, flags=re.M)[1:]
    assert yaml.safe_load(head)["pipeline_tag"] == evil and evil in yaml.safe_load(head)["tags"]
    outside_code = re.sub(r"`<script>[^`]*`", "", body)
    assert "<script>" not in outside_code and "{{ 7 * 7 }}" not in outside_code
    assert outside_code.count(r"\<script\>") == outside_code.count(r"{{ 7 \* 7 }}") > 10
    for table in re.findall(r"(?:^\|.*\|$\n)+", body, flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


def test_a_recipe_is_no_template():
    recipe = f"{RECIPE}# {{{{ 7 * 7 }}}} {{% raw %}} {{# gone #}}\n"
    assert blocks(card(decoder(), recipe, ONNX), "yaml") == [recipe]


def test_metadata_says_what_hubs_look_for_and_nothing_that_is_not_known():
    head = ModelCard(card(decoder(), RECIPE, ONNX)).data.to_dict()
    assert head == {
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "library_name": "onnxruntime",
        "metrics": ["perplexity"],
        "pipeline_tag": "text-generation",
        "tags": ["compressor", "onnx", "cfsp", "rsq"],
    }
    bare = card(REPORTS["bare"](), RECIPE, ArtifactFacts("safetensors"))
    assert set(ModelCard(bare).data.to_dict()) == {"library_name", "tags"}


def test_facts_are_read_from_the_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"compression": {"version": 1}}))
    assert ArtifactFacts.of(tmp_path, "text-generation") == ArtifactFacts("safetensors", shaped=True, decoder=True)
    (tmp_path / "model.onnx").write_bytes(b"")
    names = {"input_ids": "input_ids", "position_ids": "position_ids"}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"inputs": names}}}))
    facts = ArtifactFacts.of(tmp_path, "text-generation")
    assert facts.format == "onnx" and facts.genai and facts.portable
    (tmp_path / "genai_config.json").write_text("[broken")
    assert not ArtifactFacts.of(tmp_path, "text-generation").genai
