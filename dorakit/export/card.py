"""The model card of an export: README.md as the hub reads it, with base, data, licence, results and the recipe.

Nothing in it names a place on this machine: of absolute paths the last name stays.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from dorakit.errors import DorakitError, shown
from dorakit.files import write_whole
from dorakit.model.source import gguf_file
from dorakit.recipe.resolved import read_resolved
from dorakit.run import Run

_RELATIONS = {"peft": "adapter", "lora": "adapter", "merged": "finetune", "gguf": "quantized"}
_LIBRARIES = {"peft": "peft", "lora": "peft", "merged": "transformers", "gguf": "gguf"}
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,40}")
_MOST_MEASURES = 40


@dataclass(frozen=True)
class Card:
    """What a card is about: a run, the form that it was exported to, the commands that serve it, a GGUF file's name."""

    run: Run
    to: str
    serve: list[str]
    file: str = ""


@dataclass(frozen=True)
class _Measure:
    variant: str
    data: str
    metric: str
    value: float
    rows: Any


def is_hub_id(run: Run) -> bool:
    """Whether the run's base came from the hub: only then does its record name a commit."""
    return bool(run.read("run.json").get("base", {}).get("revision"))


def shareable_base(run: Run) -> str:
    """The base's name; of a path the last part."""
    base = run.recipe.model.base
    return base if is_hub_id(run) or base.startswith(("pkg:", "tiny:")) else Path(base).name


def write_card(directory: Path, card: Card) -> None:
    """Write README.md."""
    run, recipe = card.run, card.run.recipe
    licence = base_licence(run)
    measures = list(_measures(run))
    trained = "full" if recipe.method is None else "adapter"
    data = ModelCardData(
        base_model=recipe.model.base if is_hub_id(run) else None,
        base_model_relation=_RELATIONS[card.to] if is_hub_id(run) else None,
        license=licence or "other",
        library_name=_LIBRARIES[card.to],
        pipeline_tag="text-generation",
        tags=["dorakit", recipe.adapter.mode, *(["gguf"] if card.to == "gguf" else [])],
        datasets=_hub_data(run) or None,
        model_name=shown(run.name),
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=measure.data,
                dataset_name=measure.data,
                metric_type=measure.metric,
                metric_value=round(measure.value, 6),
            )
            for measure in measures
            if measure.variant == trained
        ]
        or None,
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{_body(card, licence, measures)}"
    ModelCard(text)  # reads its own front matter back, as the hub will
    write_whole(directory / "README.md", text)


def base_licence(run: Run) -> str | None:
    """What the base says of its licence: in its card, or in the header of a GGUF file. None where it says nothing."""
    base = run.recipe.model.base
    stated: Any = None
    try:
        if (origin := gguf_file(base)) is not None:
            from gguf import GGUFReader

            field = GGUFReader(origin).get_field("general.license")
            stated = None if field is None else field.contents()
        else:
            revision = run.read("run.json").get("base", {}).get("revision")
            cached = (
                try_to_load_from_cache(base, "README.md", revision=revision) if revision else Path(base, "README.md")
            )
            if isinstance(cached, (str, Path)) and Path(cached).is_file():
                stated = ModelCard.load(cached).data.get("license")
    except (OSError, ValueError, DorakitError):  # a card of any content; the licence is then for the user to fill in
        return None
    return stated if isinstance(stated, str) and _LICENCE.fullmatch(stated) else None


def shareable_recipe(run: Run) -> str:
    """The resolved recipe as YAML without the places its values came from; of absolute paths the last name stays."""
    text = (run.path / "recipe.resolved.yaml").read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            continue
        rows = read_resolved(line)
        key, value = line.partition(":")[0], rows[0][1] if rows else ""
        if re.match(r'"?[/~]', value):
            value = Path(value.strip('"')).name or "."
        lines.append(f"{key}: {value}" if rows else line)
    return "\n".join(lines) + "\n"


def _hub_data(run: Run) -> list[str]:
    """Names of data sets of the hub that the run was trained on."""
    data = run.recipe.data
    names = [source.path for source in data.train]
    return [
        name
        for name in dict.fromkeys(names)
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).suffix and not Path(data.root, name).exists()
    ]


def _measures(run: Run) -> Iterable[_Measure]:
    """What RUN/eval holds, whatever wrote it: numbers under the names that evaluations give them."""
    found = []
    for file in sorted(run.eval.glob("*.json")) if run.eval.is_dir() else []:
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(values, dict):
            continue
        variant = str(values.get("variant") or "")
        tasks = values.get("tasks")
        parts = [part for part in tasks if isinstance(part, dict)] if isinstance(tasks, list) else [values]
        for part in parts:
            name = shown(Path(str(part.get("task") or values.get("data") or file.stem)).name)
            for key in ("accuracy", "perplexity"):
                value = part.get(key)
                if isinstance(value, (int, float)) and math.isfinite(value):
                    metric = str(part.get("metric") or "accuracy") if key == "accuracy" else key
                    found.append(
                        _Measure(variant, name, shown(metric), float(value), part.get("answered", part.get("rows")))
                    )
    return found[:_MOST_MEASURES]


def _body(card: Card, licence: str | None, measures: list[_Measure]) -> str:
    run, recipe = card.run, card.run.recipe
    adapter = recipe.adapter
    facts = run.read("run.json")
    base = shareable_base(run)
    how = f"mode {adapter.mode}" + ("" if recipe.method is None else f", rank {adapter.rank}, alpha {adapter.alpha:g}")
    sources = ", ".join(f"`{_plain(Path(source.path).name)}`" for source in recipe.data.train)
    lines = [
        f"# {_plain(run.name)}",
        "",
        f"`{_plain(base)}`, fine-tuned with dorakit: {how}.",
        "",
        "| | |",
        "| --- | --- |",
        f"| base | `{_plain(base)}` |",
        f"| trained on | {sources} |",
        f"| steps, tokens | {facts.get('steps', '?')}, {facts.get('tokens', '?')} |",
        f"| form | {card.to}{f', `{card.file}`' if card.file else ''} |",
        "",
        "## Use",
        "",
        *_use(card),
        "## Licence",
        "",
        f"{licence}, as the base says of itself. Check that the data allow it too."
        if licence
        else "Not known: the base does not say. Fill in `license` above, by the base's terms and those of the data.",
        "",
        "## Evaluation",
        "",
        *_table(measures),
        "",
        "## Recipe",
        "",
        "Every value in force; of absolute paths the last name.",
        "",
        "```yaml",
        shareable_recipe(run).rstrip().replace("```", "'''"),
        "```",
        "",
    ]
    return "\n".join(lines)


def _use(card: Card) -> list[str]:
    lines = [*(f"    {line}" for line in card.serve), *([""] if card.serve else [])]
    if card.to not in ("peft", "lora"):
        return lines
    recipe = card.run.recipe
    base = recipe.model.base if is_hub_id(card.run) else "BASE"
    four_bits = ", quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', " + (
        f"bnb_4bit_use_double_quant={recipe.quantization.double_quant})" if recipe.is_quantized else ""
    )
    lines += [
        "    from peft import PeftModel",
        f"    from transformers import AutoModelForCausalLM{', BitsAndBytesConfig' if recipe.is_quantized else ''}",
        "",
        f"    base = AutoModelForCausalLM.from_pretrained('{base}'{four_bits if recipe.is_quantized else ''})",
        "    model = PeftModel.from_pretrained(base, '.')",
        "",
    ]
    if base == "BASE":
        lines += [f"BASE are the weights of `{_plain(shareable_base(card.run))}` as transformers reads them.", ""]
    return lines


def _table(measures: list[_Measure]) -> list[str]:
    if not measures:
        return ["Nothing was measured: `dorakit eval RUN` before exporting puts its results here."]
    rows = [
        f"| {_plain(m.variant)} | {_plain(m.data)} | {_plain(m.metric)} | {m.value:.4g} | {_plain(str(m.rows))} |"
        for m in measures
    ]
    return ["| model | data | measure | value | rows |", "| --- | --- | --- | --- | --- |", *rows]


def _plain(text: str) -> str:
    """A text that Markdown takes as it is, on one line."""
    return re.sub(r"[`|<>\[\]\n]", " ", shown(text))
