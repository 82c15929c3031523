"""A recipe without a mistake, for tests to put some in."""

GOOD = """\
version: 1
model:
  base: tiny:llama
adapter:
  mode: qdora
  rank: 16
data:
  train:
    - path: train.jsonl
      format: chat
optimizer:
  learning_rate: 2e-4
"""
