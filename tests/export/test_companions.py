"""What other programs read of a base goes with the model that is made of it, while it is true."""

import json

import pytest
from tiny_runs import tiny_run

from dorakit import merge, quantize
from dorakit.model.tiny import tiny_model, tiny_tokenizer

FILES = {
    "tokenizer.model": "stands for a SentencePiece model",
    "vocab.json": "{}",
    "merges.txt": "",
    "added_tokens.json": "{}",
    "special_tokens_map.json": json.dumps({"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}),
    "preprocessor_config.json": "{}",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    place = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    for name, content in FILES.items():
        (place / name).write_text(content)
    (place / "README.txt").write_text("of the base")
    return str(place)


def test_they_go_with_every_model_directory(base, tmp_path):
    """Planted bug caught: a merged or quantized directory without them."""
    lora, full = (tiny_run(tmp_path / mode, mode, ("training.max_steps=1",), base=base) for mode in ("lora", "full"))
    for directory in (merge(lora, quiet=True), full.model, quantize(full, quiet=True)):
        there = {path.name: path for path in directory.iterdir()}
        assert FILES.keys() <= there.keys() and "README.txt" not in there
        assert {name: there[name].read_text() for name in FILES} == FILES
        assert "eos_token" in there["tokenizer_config.json"].read_text()


def test_those_of_another_vocabulary_are_left_out_by_name(base, tmp_path):
    """Planted bug caught: a SentencePiece model without the tokens that were added."""
    added = ("model.added_tokens=[<tool>]", "adapter.modules_to_save=[embed_tokens, lm_head]", "training.max_steps=1")
    merged = merge(tiny_run(tmp_path, "lora", added, base=base), quiet=True)
    there = {path.name for path in merged.iterdir()}
    assert there & FILES.keys() == {"preprocessor_config.json"}
    notes = json.loads((merged / "merge.json").read_text())["notes"]
    assert any("tokenizer.model" in note and "left out" in note for note in notes)
