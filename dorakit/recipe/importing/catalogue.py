"""LLaMA-Factory's dataset_info.json: what its names of data sets stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dorakit.errors import Problem, RecipeError
from dorakit.recipe.importing.conversions import carry_place
from dorakit.recipe.importing.keys import Keys
from dorakit.recipe.importing.ledger import Ledger

_COLUMNS = {
    "alpaca": {
        "instruction": "prompt",
        "input": "query",
        "output": "response",
        "system": "system",
        "history": "history",
    },
    "sharegpt": {"messages": "messages", "system": "system", "tools": "tools"},
}
# The tags of a turn that format chat reads by itself: OpenAI's and ShareGPT's.
_TAGS = {
    "role_tag": ("from", "role"),
    "content_tag": ("value", "content"),
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant", "model", "chatgpt"),
    "system_tag": ("system",),
    "observation_tag": ("observation", "tool", "function_response"),
    "function_tag": ("function_call",),
}


class Catalogue:
    """The data sets of one dataset_dir, looked up in the working directory and beside the configuration."""

    def __init__(self, folder: str, beside: Path):
        self.folder, self.is_online = folder, folder == "ONLINE"
        self.directory = Path(folder)
        self.facts: dict[str, Any] = {}
        for directory in () if self.is_online else (Path(folder), beside / folder):
            if (directory / "dataset_info.json").is_file():
                self.directory, self.facts = directory, _read(directory / "dataset_info.json")
                break

    def source(self, ledger: Ledger, key: str, name: str, limit: float | None) -> dict[str, Any]:
        """The source of rows that a name in `key` stands for; what has no counterpart is listed."""
        if name not in self.facts:
            reason = (
                f"not found in {self.folder}/dataset_info.json: give its file or hub id and its format in data.train"
            )
            ledger.leave(key, name, "its rows are taken for Alpaca's, as there" if self.is_online else reason)
        facts = ledger.inside(f"{key} {name}", self.facts.get(name, {}))
        source = self._place(facts, name)
        form = facts.take("formatting") or "alpaca"
        if form not in _COLUMNS:
            facts.leave("formatting", form, "no such form of rows here; taken as alpaca")
        source["format"] = "chat" if form == "sharegpt" else "instruction"
        if form != "sharegpt":  # its alpaca rows go through the chat template
            source["prompt"] = "chat"
        columns: dict[str, Any] = {}
        for column, theirs in _COLUMNS["sharegpt" if form == "sharegpt" else "alpaca"].items():
            value = facts.take(f"columns.{theirs}")
            # What is read by itself is not written, but for columns that are read only where they are named there.
            is_named = column in ("system", "history") and value is not None
            if is_named or (value not in (None, column) and (column, value) != ("messages", "conversations")):
                columns[column] = value
        if columns:
            source["columns"] = columns
        for tag, known in _TAGS.items():
            facts.drop_if(f"tags.{tag}", *known)
        carry_place(facts, source, name="subset", split="split", revision="revision", limit="num_samples")
        if limit:
            source["limit"] = min(int(limit), source.get("limit") or int(limit))
        facts.close("has no counterpart in data.train")
        return source

    def _place(self, facts: Keys, name: str) -> dict[str, Any]:
        file, hub = facts.take("file_name"), facts.take("hf_hub_url")
        if hub and file:
            facts.leave("file_name", file, "hf_hub_url stands beside it, and goes before")
        return {"path": hub or (str(self.directory / str(file)) if file else name)}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError([Problem(f"not JSON: {error}", str(file))]) from None
    if not isinstance(content, dict) or not all(isinstance(facts, dict) for facts in content.values()):
        raise RecipeError([Problem("expected names of data sets, each with its facts", str(file))])
    return content
