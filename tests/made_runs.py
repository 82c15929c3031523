"""Run directories made of files, without training, and a page taken apart."""

import json
from html.parser import HTMLParser
from pathlib import Path

RESOLVED = """\
# recipes/my.yaml, resolved: every value and where it came from
version: 1  # recipes/my.yaml:1
output_dir: "runs/{{name}}"  # default
model:
  base: tiny:llama  # recipes/my.yaml:3
adapter:
  mode: {mode}  # --set
  rank: {rank}  # recipes/my.yaml:6
  # magnitude: not read in mode lora
data:
  train:
    - path: rows.jsonl  # recipes/my.yaml:9
      # split: not read with a single file
      weight: 1.0  # default
optimizer:
  learning_rate: 0.001  # default
"""


def made_run(path: Path, *, mode: str = "lora", rank: int = 8, steps: int = 3, **facts) -> Path:
    """A finished run with a line of metrics per step; facts go into run.json."""
    path.mkdir(parents=True)
    (path / "recipe.resolved.yaml").write_text(RESOLVED.format(mode=mode, rank=rank), encoding="utf-8")
    known = {"schema": 1, "state": "finished", "base": {"name": "tiny:llama"}, "notes": [], "steps": steps}
    write(path / "run.json", {**known, **facts})
    write(path / "environment.json", {"python": "3.11.7", "versions": {"torch": "2.13.0"}})
    lines = [
        {
            "step": n,
            "train/loss": 3 / n,
            "train/learning_rate": 1e-3,
            "train/grad_norm": 0.5,
            "train/tokens_per_s": 100.0,
        }
        for n in range(1, steps + 1)
    ]
    write_lines(path / "metrics.jsonl", lines)
    return path


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, entries, mode: str = "w") -> None:
    with open(path, mode, encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def evaluation(variant: str, *, correct: int, answered: int, generated: str = "four", **values):
    """A result as `dorakit eval` writes it."""
    sample = {"prompt_tail": "two plus two =", "answer": "four", "generated": generated, "correct": generated == "four"}
    share = correct / answered
    return {
        "target": "runs/my", "variant": variant, "data": "test.jsonl", "data_path": "/rows/test.jsonl", "data_split": None,
        "rows": answered, "loss": 0.5, "perplexity": 1.6487, "metric": "exact_match", "accuracy": share,
        "accuracy_standard_error": (share * (1 - share) / answered) ** 0.5, "correct": correct, "answered": answered,
        "unparsed": 0, "unfinished": 2, "samples": [sample], **values,
    }  # fmt: skip


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text: in all, by section, and cell by cell of its tables."""

    _VOID = ("meta", "br", "wbr", "link", "img")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.sections: dict[str, str] = {}
        self.rows: list[list[str]] = []
        self._section = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self._VOID:
            self.open.append(tag)
        if tag == "section":
            self._section = dict(attributes)["id"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        self.sections[self._section] = self.sections.get(self._section, "") + data
        if self.rows and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        """The cells of the only table row that begins so."""
        (found,) = [row for row in self.rows if row and row[0].strip() == first]
        return [" ".join(cell.split()) for cell in found]
