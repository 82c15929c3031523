"""What a GGUF file loses, held against the file as transformers reads it."""

import pytest
import torch
from test_gguf import model_of, read_back
from transformers import AutoConfig

from dorakit.errors import GateError
from dorakit.export.gguf_file import as_in_llama_cpp, as_in_transformers, write_gguf
from dorakit.export.gguf_receipt import gguf_receipt
from dorakit.export.receipt import sample_rows
from dorakit.model.load import load_base

LEARNED = {"supervised": {"kl": 2.0}, "all": {"kl": 2.0}}


def receipt_of(directory, outtype, damage=None):
    model_of("llama", directory / "model", head_dim=16)
    file = directory / f"model-{outtype}.gguf"
    written = write_gguf(directory / "model", file, outtype, name="tiny")
    if damage:
        damage(file)
    (directory / "logits").mkdir()
    return gguf_receipt(
        directory / "model", file, written.packed, recipe=None, learned=LEARNED, scratch=directory / "logits"
    )


@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0", "q4_0"])
def test_the_divergence_is_that_of_the_file_as_transformers_reads_it(tmp_path, outtype):
    """Planted bugs caught: rows of q_proj left in llama.cpp's order; the source compared with itself."""
    found = receipt_of(tmp_path, outtype)
    before, after = load_base(str(tmp_path / "model"), dtype="float32"), read_back(tmp_path / f"model-{outtype}.gguf")
    samples, rows = sample_rows(None, before.tokenizer)
    parts = []
    for sample in samples:
        with torch.no_grad():
            p, q = (m(sample.ids[None]).logits[0].double().log_softmax(-1) for m in (before.model.eval(), after))
        parts.append((p.exp() * (p - q)).sum(-1))
    kl = float(torch.cat(parts).mean())
    assert kl > 1e-9 and found["all"]["kl"] == pytest.approx(kl, rel=1e-2)
    assert found["all"]["lost"] == pytest.approx(found["all"]["kl"] / 2.0)
    assert (found["rows"], found["compared_on"]) == (len(samples), rows)


def test_a_finer_type_loses_less(tmp_path):
    losses = [receipt_of(tmp_path / outtype, outtype)["all"]["kl"] for outtype in ("f16", "bf16", "q8_0", "q4_0")]
    assert losses == sorted(losses) and losses[-1] > 10 * losses[-2]


def test_a_file_that_is_not_what_was_written(tmp_path):
    """Planted bug caught: digests of what was packed compared with themselves."""

    def damage(file):
        content = bytearray(file.read_bytes())
        content[-100] ^= 1
        file.write_bytes(bytes(content))

    with pytest.raises(GateError, match="on the disk is not the tensor that was written"):
        receipt_of(tmp_path, "q8_0", damage)


def test_there_and_back():
    config = AutoConfig.for_model("llama", hidden_size=64, num_attention_heads=4, head_dim=16)
    for name, shape in (("q_proj.weight", (64, 64)), ("k_proj.bias", (32,)), ("v_proj.weight", (32, 64))):
        values = torch.randn(shape)
        stored = as_in_llama_cpp(name, values, config)
        assert torch.equal(stored, values) == name.startswith("v")
        assert torch.equal(as_in_transformers(name, stored, config), values)
