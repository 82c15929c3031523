"""Commands that serve what was exported, and the text before an answer as Ollama's templates write it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from dorakit.terminal import typed

# What Ollama's converter takes from safetensors, of causal language models.
_OLLAMA_IMPORTS = {
    "LlamaForCausalLM", "MixtralForCausalLM", "Ministral3ForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM",
    "Gemma3ForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Olmo3ForCausalLM", "CohereForCausalLM",
    "GptOssForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM", "Lfm2ForCausalLM",
}  # fmt: skip
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes for --max-lora-rank


def served_name(name: str) -> str:
    """A run's name as Ollama and vLLM take it."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "model"


def gguf_lines(directory: Path, file: str, name: str) -> list[str]:
    """What serves a GGUF file with its Modelfile."""
    return [
        f"llama-server -m {typed(directory / file)}",
        f"ollama create {served_name(name)} -f {typed(directory / 'Modelfile')}",
    ]


def merged_lines(directory: Path, name: str, architecture: str) -> list[str]:
    """What serves a plain model directory.

    Args:
        directory: Of the model.
        name: Of the run or the adapter.
        architecture: The class that its config.json names; Ollama imports some.
    """
    lines = [f"vllm serve {typed(directory)}", f"python -m sglang.launch_server --model-path {typed(directory)}"]
    if architecture in _OLLAMA_IMPORTS:
        enter = "" if directory == Path(".") else f"cd {typed(directory)} && "
        lines.append(f"{enter}echo 'FROM .' > Modelfile && ollama create {served_name(name)}")
    return lines


def merged_use(*, is_raw: bool, as_gguf: str | None) -> list[str]:
    """Markdown for the card of a plain model directory: how transformers answers, and the way to llama.cpp.

    Args:
        is_raw: Prompts go in as they are: the model was trained on rows without a chat template.
        as_gguf: The command that makes a GGUF file of the same model, where there is one.
    """
    prompt = "'PROMPT', return_tensors='pt'"
    turn = "[{'role': 'user', 'content': 'PROMPT'}], add_generation_prompt=True, return_dict=True, return_tensors='pt'"
    asked = f"tokenizer({prompt})" if is_raw else f"tokenizer.apply_chat_template({turn})"
    lines = [
        "In Python:",
        "",
        "    from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        "    model, tokenizer = AutoModelForCausalLM.from_pretrained('.'), AutoTokenizer.from_pretrained('.')",
        f"    inputs = {asked}",
        "    answer = model.generate(**inputs, max_new_tokens=200)[0, inputs['input_ids'].shape[1] :]",
        "    print(tokenizer.decode(answer, skip_special_tokens=True))",
        "",
        "For llama.cpp, its converter makes one GGUF file of this directory:",
        "",
        "    python convert_hf_to_gguf.py . --outfile model.gguf",
        "    llama-server -m model.gguf",
        "",
    ]
    if as_gguf is not None:
        lines += [f"Where the adapter is at hand, `{as_gguf}` makes one too, with a Modelfile for Ollama.", ""]
    return lines


def adapter_lines(directory: Path, name: str, base: str | None, config: dict[str, Any]) -> list[str]:
    """What serves a PEFT adapter directory; nothing for one that no server reads.

    Args:
        directory: Of the adapter.
        name: What requests call it.
        base: A hub id or a directory; None where servers cannot load the base.
        config: Its adapter_config.json.
    """
    if (
        config.get("peft_type", "LORA") != "LORA"
        or config.get("use_dora")
        or config.get("modules_to_save")
        or base is None
    ):
        return []
    highest = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    rank = next((rank for rank in _RANKS if rank >= highest), highest)
    return [
        f"vllm serve {typed(base)} --enable-lora --max-lora-rank {rank} --lora-modules {served_name(name)}={typed(directory)}"
    ]


def gguf_adapter_lines(adapter: Path, base: str) -> list[str]:
    """What serves a LoRA as a GGUF file beside the GGUF file of its base."""
    return [f"llama-server -m {base} --lora {typed(adapter)}"]


@dataclass(frozen=True)
class Frame:
    """What stands around the turns of a conversation, the same at every place of it: (before, after) by role.

    `default_system` is what the template says where nobody gave a system turn; `generation` begins the answer.
    """

    turns: dict[str, tuple[str, str]]
    default_system: str
    generation: str

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation with the beginning of the next answer."""
        if self.default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default_system}, *messages]
        framed = [f"{self.turns[m['role']][0]}{m['content']}{self.turns[m['role']][1]}" for m in messages]
        return "".join(framed) + self.generation


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame | None:
    """Find the frame of a tokenizer's chat template from conversations with marked turns.

    The template is Jinja and Ollama's are Go's, so it is not translated: what it writes is taken apart, and put together
    for other conversations. None where that gives another text, as with templates that put the system turn into the
    user's. Without the token that the tokenizer itself puts first.
    """
    system, user, answer, more = (
        {"role": role, "content": f"dorakit{number}marks"}
        for number, role in enumerate(("system", "user", "assistant", "user"))
    )

    def render(messages: list[dict[str, str]], *, generation: bool = False) -> str:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))
        first = tokenizer.bos_token
        is_put_first = first is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        return text.removeprefix(first) if is_put_first and first is not None else text

    try:
        before_user, after_user = render([user]).split(user["content"])
        close_answer = render([user, answer]).split(answer["content"])[1]
        open_user = render([user, answer, more]).split(answer["content"])[1].split(more["content"])[0]
        open_user = open_user.removeprefix(close_answer)
        generation = render([user], generation=True).split(user["content"])[1].removeprefix(after_user)
        open_system, between = render([system, user]).split(user["content"])[0].split(system["content"])
        close_system = between.removesuffix(open_user)
        default = before_user.removesuffix(open_user)
        if default and not (default.startswith(open_system) and default.endswith(close_system)):
            return None
        turns = {
            "system": (open_system, close_system),
            "user": (open_user, after_user),
            "assistant": (generation, close_answer),
        }
        said = default.removeprefix(open_system).removesuffix(close_system) if default else ""
        frame = Frame(turns, said, generation)
        others = ([user], [user, answer, more], [system, user], [system, user, answer, more])
        same = all(frame.render(messages) == render(messages, generation=True) for messages in others)
    except (ValueError, IndexError, TemplateError):  # a turn is left out, twice there, or not allowed
        return None
    return frame if same else None


def modelfile(file: str, frame: Frame | None, stops: Sequence[str], *, is_raw: bool) -> str:
    """Ollama's description of a model, beside its GGUF file.

    Args:
        file: Name of the GGUF file.
        frame: Of the chat template; without one Ollama looks for its own that is like the file's.
        stops: Texts that end an answer.
        is_raw: Prompts go in as they are: the model was trained on rows without a chat template.
    """
    lines = [f"FROM ./{file}"]
    template = "{{ .Prompt }}" if is_raw else _go_template(frame)
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    if (
        frame is not None
        and frame.default_system
        and template is not None
        and not is_raw
        and '"""' not in frame.default_system
    ):
        lines.append(f'SYSTEM """{frame.default_system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if '"' not in stop and "\n" not in stop]
    return "\n".join(lines) + "\n"


def _go_template(frame: Frame | None) -> str | None:
    """The frame as a Go template over .Messages; None where its text would be read as part of the template."""
    if frame is None:
        return None
    texts = [text for pair in frame.turns.values() for text in pair] + [frame.generation, frame.default_system]
    if any("{{" in text or '"""' in text for text in texts):
        return None
    cases = [
        f'{{{{ {"else if" if number else "if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
        for number, (role, (before, after)) in enumerate(frame.turns.items())
    ]
    return "{{ range .Messages }}" + "".join(cases) + "{{ end }}{{ end }}" + frame.generation
