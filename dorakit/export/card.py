"""The model card of an export: README.md as the hub reads it, with base, data, licence, results and the recipe.

Nothing in it names a place on this machine: of absolute paths the last name stays.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from dorakit.errors import DorakitError, shown
from dorakit.export.trained import Trained, is_hub_id
from dorakit.model.source import gguf_file
from dorakit.recipe.resolved import read_resolved
from dorakit.recipe.schema import Recipe
from dorakit.run import Run

_RELATIONS = {"peft": "adapter", "lora": "adapter", "merged": "finetune", "gguf": "quantized"}
_LIBRARIES = {"peft": "peft", "lora": "peft", "merged": "transformers", "gguf": "gguf"}
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,40}")
_MOST_MEASURES = 40
_UNKNOWN = (
    "Exported from an adapter directory, which does not say on what data it was trained or for how long: add it here."
)


@dataclass(frozen=True)
class Card:
    """Content of a card.

    Attributes:
        trained: What was exported.
        to: The form.
        serve: Commands that serve it.
        use: Further lines of Markdown on its use.
        file: Name of a GGUF file.
    """

    trained: Trained
    to: str
    serve: list[str]
    use: list[str] = field(default_factory=list)
    file: str = ""


@dataclass(frozen=True)
class _Measure:
    variant: str
    data: str
    metric: str
    value: float
    rows: Any


def shareable_base(of: Run | Trained | str) -> str:
    """The base's name, of a run, something to export or as it is; of a path the last part."""
    if isinstance(of, Run):
        is_on_hub, base = bool(of.read("run.json").get("base", {}).get("revision")), of.recipe.model.base
    elif isinstance(of, Trained):
        is_on_hub, base = of.is_hub_base, of.base
    else:
        is_on_hub, base = is_hub_id(of), of
    return base if is_on_hub or base.startswith(("pkg:", "tiny:")) else Path(base).name


def shareable_directory(of: Trained) -> str | None:
    """As `served_base`, for what is published: a directory is a place on this machine, so only its name is kept."""
    return of.served_base if of.is_hub_base or of.served_base is None else f"PATH/TO/{Path(of.served_base).name}"


def base_in_words(of: Trained) -> str:
    """What keeps other programs from loading a base that has no `served_base`."""
    if of.base.startswith("tiny:"):
        return f"the base is {of.base}, a random model that only dorakit makes"
    return f"the base is the GGUF file {shareable_base(of)}, and vLLM and PEFT put no adapter on one"


def card_text(card: Card) -> str:
    """The content of README.md."""
    trained = card.trained
    licence = base_licence(trained)
    measures = list(_measures(trained.run)) if trained.run else []
    own = "full" if trained.adapter is None else "adapter"
    data = ModelCardData(
        base_model=trained.base if trained.is_hub_base else None,
        base_model_relation=_RELATIONS[card.to] if trained.is_hub_base else None,
        license=licence or "other",
        library_name=_LIBRARIES[card.to],
        pipeline_tag="text-generation",
        tags=["dorakit", trained.mode, *(["gguf"] if card.to == "gguf" else [])],
        datasets=(_hub_data(trained.recipe) if trained.recipe else []) or None,
        model_name=shown(trained.name),
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=measure.data,
                dataset_name=measure.data,
                metric_type=measure.metric,
                metric_value=round(measure.value, 6),
            )
            for measure in measures
            if measure.variant == own
        ]
        or None,
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{_body(card, licence, measures)}"
    ModelCard(text)  # reads its own front matter back, as the hub will
    return text


def base_licence(trained: Trained) -> str | None:
    """What the base says of its licence: in its card, or in the header of a GGUF file. None where it says nothing."""
    base, revision = trained.base, trained.revision
    stated: Any = None
    try:
        if (origin := gguf_file(base)) is not None:
            from gguf import GGUFReader

            field = GGUFReader(origin).get_field("general.license")
            stated = None if field is None else field.contents()
        else:
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


def _hub_data(recipe: Recipe) -> list[str]:
    """Names of data sets of the hub that a run was trained on."""
    data = recipe.data
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
                    # Perplexity is of all rows; answered are none of them where no metric was asked for.
                    rows = part.get("answered", part.get("rows")) if key == "accuracy" else part.get("rows")
                    found.append(_Measure(variant, name, shown(metric), float(value), rows))
    return found[:_MOST_MEASURES]


def _body(card: Card, licence: str | None, measures: list[_Measure]) -> str:
    trained = card.trained
    base = _plain(shareable_base(trained))
    lines = [
        f"# {_plain(trained.name)}",
        "",
        f"`{base}`, fine-tuned{' with dorakit' if trained.run else ''}: {trained.shape}.",
        "",
        "| | |",
        "| --- | --- |",
        f"| base | `{base}` |",
        *_facts(trained),
        f"| form | {card.to}{f', `{card.file}`' if card.file else ''} |",
        "",
        *([] if trained.run else [_UNKNOWN, ""]),
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
        *_table(measures, trained.run),
        "",
    ]
    if trained.run is not None:
        recipe = shareable_recipe(trained.run).rstrip().replace("```", "'''")
        lines += [
            "## Recipe",
            "",
            "Every value in force; of absolute paths the last name.",
            "",
            "```yaml",
            recipe,
            "```",
            "",
        ]
    return "\n".join(lines)


def _facts(trained: Trained) -> list[str]:
    """Rows on the training of a run."""
    if trained.run is None or trained.recipe is None:
        return []
    facts = trained.run.read("run.json")
    sources = ", ".join(f"`{_plain(Path(source.path).name)}`" for source in trained.recipe.data.train)
    return [f"| trained on | {sources} |", f"| steps, tokens | {facts.get('steps', '?')}, {facts.get('tokens', '?')} |"]


def _use(card: Card) -> list[str]:
    lines = [*(f"    {line}" for line in card.serve), *([""] if card.serve else []), *card.use]
    if card.to not in ("peft", "lora"):
        return lines
    trained = card.trained
    base = shareable_directory(trained)
    if base is None:
        whole = " or ".join(f"`dorakit export RUN --to {to}`" for to in ("merged", "gguf"))
        words = base_in_words(trained)
        return [
            *lines,
            f"{words[0].upper()}{words[1:]}. {whole} writes the whole model, which other programs load.",
            "",
        ]
    four_bits = (
        ", quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', "
        f"bnb_4bit_use_double_quant={trained.storage.double_quant})"
        if trained.storage
        else ""
    )
    lines += [
        "    from peft import PeftModel",
        f"    from transformers import AutoModelForCausalLM{', BitsAndBytesConfig' if trained.storage else ''}",
        "",
        f"    base = AutoModelForCausalLM.from_pretrained('{base}'{four_bits})",
        "    model = PeftModel.from_pretrained(base, '.')",
        "",
    ]
    if not trained.is_hub_base:
        lines += [f"`{_plain(base)}` is the directory of the base, which is no model of the hub.", ""]
    return lines


def _table(measures: list[_Measure], run: Run | None) -> list[str]:
    if run is None:
        return ["Nothing is known here: write down what was measured, and on what."]
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
