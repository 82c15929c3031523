"""Shared by all tests: one cache for tiny models, one thread, no hub."""

import os
import tempfile

os.environ["DORAKIT_CACHE"] = os.environ.get("DORAKIT_TEST_CACHE") or tempfile.mkdtemp(prefix="dorakit-cache-")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("COLUMNS", "120")
os.environ.setdefault("NO_COLOR", "1")
