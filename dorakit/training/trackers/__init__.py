"""Programs that keep the figures of many runs: each a class in a file of its own, and a line of `TRACKERS`.

No tracker's library is imported before a training that names it begins, and none by this package itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from dorakit.errors import MachineError
from dorakit.training.trackers.mlflow import MlflowTracker
from dorakit.training.trackers.tensorboard import TensorBoardTracker
from dorakit.training.trackers.tracker import Tracker
from dorakit.training.trackers.trackio import TrackioTracker
from dorakit.training.trackers.wandb import WandbTracker

# By the name that `logging.to` has for it, which is the name of its extra too.
TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is not installed, before anything is loaded.

    Raises:
        MachineError: It is not.
    """
    for name in names:
        for module in TRACKERS[name].needs:
            if importlib.util.find_spec(module) is None:
                wrong = "is not installed" if module == name else f"works here only with {module}"
                raise MachineError(f"logging.to: {name} {wrong}\n  pip install 'dorakit[{name}]'")
