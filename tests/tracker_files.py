"""What the trackers' own libraries wrote into a run directory, read back: figures, settings, and how the run ended."""

import json
import sqlite3
import struct
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Written:
    """`figures` holds (step, value) by name, in the order of writing; `runs` what the tracker calls its runs."""

    figures: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    ended: str = ""

    def add(self, step, figures):
        for name, value in figures.items():
            if not name.startswith("_"):
                self.figures.setdefault(name, []).append((step, value))


def tensorboard(run: Path) -> Written:
    """Through TensorBoard's reader, which leaves out what a later file takes back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    written = Written(runs=["tensorboard"])
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            written.add(event.step, {name: event.value})
    (text,) = [t for t in events.Tags()["tensors"] if t.startswith("recipe")]
    lines = events.Tensors(text)[-1].tensor_proto.string_val[0].decode().splitlines()
    written.settings = dict(line.strip().split(": ", 1) for line in lines)
    return written


def mlflow(run: Path) -> Written:
    """Through MLflow's client."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    written = Written(runs=[one.info.run_id for one in found], ended=found[0].info.status)
    written.settings = found[0].data.params
    for name in found[0].data.metrics:
        for metric in client.get_metric_history(found[0].info.run_id, name):
            written.add(metric.step, {name: metric.value})
    return written


def trackio(run: Path) -> Written:
    """From its database, since the library reads one directory per process."""
    (file,) = (run / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        written = Written(runs=[row[0] for row in database.execute("select distinct run_id from metrics")])
        for step, metrics in database.execute("select step, metrics from metrics order by id"):
            written.add(step, json.loads(metrics))
        written.settings = json.loads(database.execute("select config from configs").fetchone()[0])
    return written


def wandb(run: Path) -> Written:
    """From its transaction logs, one for each process: LevelDB's log format, in it wandb's own messages."""
    written = Written()
    for file in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for record in _records(file):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                values = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                written.add(record.history.step.num, values)
            elif kind == "run":
                written.runs.append(record.run.run_id)
                written.settings = {one.key: json.loads(one.value_json) for one in record.run.config.update}
                assert not record.run.host
            elif kind == "exit":
                written.ended = str(record.exit.exit_code)
    return written


def _records(file: Path):
    from wandb.proto import wandb_internal_pb2

    content, at, message = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # the rest of a block that holds no header
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        message += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            message = b""
            yield record


READERS = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow, "trackio": trackio}
