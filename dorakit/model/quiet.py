"""The voice of transformers and of the hub's client: silent while they work for us, and afterwards the caller's again."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

import transformers


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """In the block transformers prints errors only and no bars, which would interleave with ours."""
    logging = transformers.utils.logging
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # transformers switches the bars of huggingface_hub too, for all groups at once.
    groups = importlib.import_module("huggingface_hub.utils.tqdm").progress_bar_states
    groups_before = dict(groups)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
        groups.clear()
        groups.update(groups_before)
