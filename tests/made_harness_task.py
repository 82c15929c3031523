"""A task file of lm-evaluation-harness with rows of its own, for tests."""

import json
from pathlib import Path

ROWS = [
    {"question": "One and one?", "options": ["two", "three", "a dozen"], "label": 0},
    {"question": "What barks?", "options": ["cat", "dog"], "label": 1},
    {"question": "What is the colour of snow in winter?", "options": ["black", "white"], "label": 1},
    {"question": "Warm?", "options": ["ice", "fire", "snow"], "label": 1},
    {"question": "Is it so?", "options": ["yes it is", "no", "yes"], "label": 2},
]
TEMPLATE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{options}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def write_harness_task(directory: Path, name: str = "made_choice") -> Path:
    """NAME.yaml and its rows, in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = directory / f"{name}.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (directory / f"{name}.yaml").write_text(TEMPLATE.format(name=name, rows=rows))
    return directory
