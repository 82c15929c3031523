import json

import pytest
from made_tokenizers import byte_bpe

from dorakit.model.tiny import tiny_tokenizer
from dorakit.recipe.schema import DataSection, SourceSection


@pytest.fixture
def bytes_only():
    return tiny_tokenizer()


@pytest.fixture
def bpe():
    return byte_bpe()


@pytest.fixture
def write(tmp_path):
    """Write a file (objects become JSON) under the data root and give its name back."""

    def write_file(name, content):
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif isinstance(content, str):
            (tmp_path / name).write_text(content, encoding="utf-8")
        elif name.endswith(".jsonl"):
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        return name

    return write_file


@pytest.fixture
def section(tmp_path):
    """A DataSection rooted in the test's directory."""

    def make(*sources, **fields):
        return DataSection(root=str(tmp_path), train=[SourceSection(**source) for source in sources], **fields)

    return make
