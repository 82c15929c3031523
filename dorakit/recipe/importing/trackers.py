"""logging.to from the names of trackers, their switches, and the keys that say where in them."""

from __future__ import annotations

from typing import get_args

from dorakit.recipe.importing.keys import asks_for_nothing
from dorakit.recipe.importing.ledger import Ledger
from dorakit.recipe.schema import LoggingSection

TRACKERS: tuple[str, ...] = get_args(get_args(LoggingSection.model_fields["to"].annotation)[0])
_PROJECT = "which project is said by the environment: WANDB_PROJECT (docs/trackers.md)"
_PLACES = (  # key, its tracker, what says this here
    ("wandb_project", "wandb", _PROJECT),
    ("logging.wandb_project", "wandb", _PROJECT),
    ("metric_logger.project", "wandb", _PROJECT),
    ("wandb_entity", "wandb", "whose account is said by the environment: WANDB_ENTITY"),
    ("mlflow_tracking_uri", "mlflow", "which store is said by the environment: MLFLOW_TRACKING_URI (docs/trackers.md)"),
    ("mlflow_experiment_name", "mlflow", "which experiment is said by the environment: MLFLOW_EXPERIMENT_NAME"),
)


def set_trackers(ledger: Ledger) -> None:
    """Carry the trackers that there are here; list the others."""
    sources: dict[str, str] = {}
    off: set[str] = set()
    for key in ("report_to", "metric_logger._component_"):
        for name in ledger.texts(key):
            word = name.rsplit(".", 1)[-1].lower().removesuffix("logger")
            if word in TRACKERS:
                sources.setdefault(word, key)
            elif word in ("none", "disk", "stdout", "false"):  # metrics.jsonl and the terminal are always told
                ledger.settle(key)
            else:
                ledger.leave(key, name, f"the trackers here are {', '.join(TRACKERS)}")
    for tracker in TRACKERS:
        for key in (f"use_{tracker}", f"logging.enable_{tracker}"):
            value = ledger.take(key)
            if not asks_for_nothing(value):
                sources.setdefault(tracker, key)
            elif value is not None:
                ledger.settle(key)
                off.add(tracker)
    for key, tracker, where in _PLACES:
        if value := ledger.take(key):
            if tracker not in off:
                sources.setdefault(tracker, key)
            ledger.leave(key, value, where)
    if sources:
        ledger.set("logging.to", list(sources), ", ".join(dict.fromkeys(sources.values())))
