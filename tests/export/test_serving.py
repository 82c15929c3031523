"""The lines that serve an export, and a chat template in Ollama's form."""

import re

import pytest

from dorakit.export.serving import adapter_lines, frame_of, gguf_lines, merged_lines, modelfile, served_name
from dorakit.model.tiny import tiny_tokenizer

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}{% if loop.index0 == 1 %}{{ messages[0]['content'] }}"
    "{% endif %}{{ m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}{{ m['content'] }}{% endif %}{% endfor %}"
)
# Turns that differ with their place: the last one only has an end.
UNEVEN = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% if loop.last %}{{ '<end>' }}{% endif %}"
    "{% endfor %}"
)


def tokenizer(template):
    found = tiny_tokenizer()
    found.chat_template = template
    return found


def rendered_by_go(template, system, messages):
    """What Ollama makes of the few words of Go's template language that are written."""
    cases, tail = re.fullmatch(
        r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", template, re.DOTALL
    ).groups()
    frames = dict(
        re.findall(
            r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?\{\{ \.Content \}\}.*?)(?=\{\{ else|\Z)', cases, re.DOTALL
        )
    )
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return "".join(frames[m["role"]].replace("{{ .Content }}", m["content"]) for m in messages) + tail


def test_ollama_writes_what_the_chat_template_writes():
    """Planted bugs caught: the standing system turn left out; the beginning of the answer doubled after other answers."""
    own = tokenizer(CHATML)
    text = modelfile("model-f16.gguf", frame_of(own), ["<|im_end|>"], is_raw=False)
    found = re.fullmatch(
        r'FROM \./model-f16\.gguf\nTEMPLATE """(.*?)"""\nSYSTEM """(.*?)"""\nPARAMETER stop "<\|im_end\|>"\n',
        text,
        re.DOTALL,
    )
    assert found[2] == "Be brief."
    turns = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
    ]
    for messages in (turns[:1], turns, [{"role": "system", "content": "Be long."}, *turns]):
        expected = own.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert rendered_by_go(found[1], found[2], messages) == expected


@pytest.mark.parametrize(
    "template", [LLAMA2, UNEVEN, "{{ raise_exception('no') }}", "{{ messages[0]['content'] | upper }}"]
)
def test_a_template_without_a_frame_is_left_to_ollama(template):
    """Planted bug caught: a frame taken from one conversation and not tried on others."""
    assert frame_of(tokenizer(template)) is None
    assert modelfile("m.gguf", None, ["</s>"], is_raw=False) == 'FROM ./m.gguf\nPARAMETER stop "</s>"\n'


def test_text_that_would_be_template_is_not_written():
    """Planted bug caught: braces of a chat template run as Go's."""
    frame = frame_of(tokenizer(CHATML.replace("<|im_start|>", "{{x")))
    assert frame is not None
    assert "TEMPLATE" not in modelfile("m.gguf", frame, [], is_raw=False)


def test_raw_prompts_stay_raw():
    """Planted bug caught: the base's template around prompts of a model that was trained without one."""
    assert (
        modelfile("m.gguf", frame_of(tokenizer(CHATML)), [], is_raw=True)
        == 'FROM ./m.gguf\nTEMPLATE """{{ .Prompt }}"""\n'
    )


def test_lines(tmp_path):
    """Planted bugs caught: vLLM told to load a DoRA adapter; the smallest rank taken instead of the largest."""
    directory = tmp_path / "my run"
    assert gguf_lines(directory, "m.gguf", "My run!")[1].startswith("ollama create my-run -f '")
    served = [f"vllm serve '{directory}'", f"python -m sglang.launch_server --model-path '{directory}'"]
    assert merged_lines(directory, "My run!", "Qwen3ForCausalLM") == served
    imported = f"cd '{directory}' && echo 'FROM .' > Modelfile && ollama create my-run"
    assert merged_lines(directory, "My run!", "LlamaForCausalLM") == [*served, imported]
    config = {"r": 4, "rank_pattern": {"q_proj": 24}, "use_dora": False, "modules_to_save": None}
    lines = adapter_lines(tmp_path, "Run", "org/name", config)
    assert lines == [f"vllm serve org/name --enable-lora --max-lora-rank 32 --lora-modules run={tmp_path}"]
    for changes, base in (({"use_dora": True}, "org/name"), ({"modules_to_save": ["lm_head"]}, "org/name"), ({}, None)):
        assert adapter_lines(tmp_path, "Run", base, config | changes) == []
    assert served_name("***") == "model"
