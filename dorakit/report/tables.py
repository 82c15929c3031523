"""What a page says of runs in words and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dorakit.report.content import Content, as_dict, as_list
from dorakit.report.numbers import count, duration, figure, finite, percent, size
from dorakit.report.scores import main_score, scores

Rows = list[tuple[str, str]]
# As `data/tokens.py` notes it in every run.
_IN_BOTH = re.compile(r"(\d+) of (\d+) validation documents are in the training rows too")
_STATES = {"training": "unfinished", "finished": "finished", "failed": "failed"}
_TRAINED_ON = "validation rows trained on too"
_NUMBERS = {
    "train/loss": "loss",
    "validation/loss": "validation loss",
    "train/learning_rate": "learning rate",
    "train/grad_norm": "gradient norm",
    "train/tokens_per_s": "tokens/s",
}


def headline(content: Content) -> str:
    """What was trained: mode, rank, base."""
    settings = content.settings
    mode = settings.get("adapter.mode", "a run")
    rank = f", rank {settings['adapter.rank']}" if "adapter.rank" in settings else ""
    base = as_dict(content.facts.get("base")).get("name") or settings.get("model.base")
    return f"{mode}{rank}" + (f" on {base}" if base else "")


def state(content: Content) -> str:
    """`finished`, `unfinished` or `failed`."""
    found = str(content.facts.get("state"))
    return _STATES.get(found, found)


def result_line(content: Content) -> str:
    """How far it came and what came out, in a line."""
    facts = content.facts
    steps = facts.get("steps") if state(content) == "finished" else last_step(content)
    parts = [
        f"{state(content).capitalize()} after {count(steps)} {'step' if steps == 1 else 'steps'}"
        if steps is not None
        else state(content)
    ]
    if finite(facts.get("seconds")) is not None:
        parts[0] += f" in {duration(facts['seconds'])}"
    if losses := content.series.get("train/loss"):
        parts.append(f"loss {figure(losses[0][1])} → {figure(losses[-1][1])}")
    if (loss := content.last("validation/loss")) is not None:
        both = in_both(content)
        parts.append(f"validation {figure(loss)}" + (f" ({both} rows were trained on too)" if both else ""))
    parts += main_score(content.evaluations)
    return " · ".join(parts)


def tiles(content: Content) -> Rows:
    """The figures that one looks for first."""
    facts = content.facts
    shown = [
        ("trained parameters", count(facts.get("trained_parameters"))),
        ("steps", count(facts.get("steps", last_step(content)))),
        ("tokens", count(facts.get("tokens", content.last("train/tokens")))),
        ("time", duration(facts.get("seconds"))),
        ("throughput", _speed(content)),
        ("peak memory", size(facts.get("peak_memory_bytes", content.last("train/memory_bytes")))),
        ("best validation loss", _best(content)),
        (_TRAINED_ON, in_both(content) or "–"),
        ("skipped steps", count(facts.get("skipped_steps", content.num_nonfinite))),
    ]
    return [(name, value) for name, value in shown if value != "–"]


def comparison(contents: Sequence[Content]) -> list[tuple[str, list[str]]]:
    """Runs side by side: a name, and a value of each run; without rows in which no run has a value."""
    rows = [
        ("state", [state(c) for c in contents]),
        ("last loss", [figure(c.last("train/loss")) for c in contents]),
        ("last validation loss", [figure(c.last("validation/loss")) for c in contents]),
        ("best validation loss", [_best(c) for c in contents]),
    ]
    tables = [{(s.variant, s.data, s.metric): f"{s.accuracy} {s.told}" for s in scores(c) if s.told} for c in contents]
    for key in dict.fromkeys(key for table in tables for key in table):
        rows.append((" · ".join(key), [table.get(key, "–") for table in tables]))
    named = [dict(tiles(c)) for c in contents]
    for name in (
        _TRAINED_ON,
        "trained parameters",
        "steps",
        "tokens",
        "time",
        "throughput",
        "peak memory",
        "skipped steps",
    ):
        rows.append((name, [values.get(name, "–") for values in named]))
    return [row for row in rows if any(value != "–" for value in row[1])]


def differences(contents: Sequence[Content]) -> list[tuple[str, list[str]]]:
    """The settings that are not the same in all runs; where a run leaves one unread, it is a dash."""
    settings = [content.settings for content in contents]
    keys = dict.fromkeys(key for one in settings for key in one if key not in ("output_dir", "extends"))
    rows = [(key, [one.get(key, "–") for one in settings]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def numbers_table(content: Content, limit: int) -> tuple[list[str], list[list[str]]]:
    """The curves in numbers: column names, and rows of about `limit` steps with the first and the last among them."""
    by_step: dict[float, dict[str, float]] = {}
    names = [name for name in _NUMBERS if name in content.series]
    for name in names:
        for step, value in content.series[name]:
            by_step.setdefault(step, {})[name] = value
    steps = sorted(by_step)
    every = max(1, -(-len(steps) // limit))
    chosen = [*steps[: -1 if len(steps) > 1 else 1 : every], *steps[1:][-1:]]
    rows = [[count(step), *(figure(by_step[step].get(name)) for name in names)] for step in chosen]
    return ["step", *(_NUMBERS[name] for name in names)], rows


def merge_rows(content: Content) -> Rows:
    """What merge.json says, the comparison with the live adapter first."""
    known = content.merge
    if not known:
        return []
    rows = [
        ("onto", f"{known.get('onto', '–')} base, written in {known.get('dtype', '–')}"),
        ("size", size(known.get("bytes"))),
    ]
    receipt = known.get("receipt")
    if not isinstance(receipt, dict):
        return [*rows, ("compared with the model before merging", "no")]
    rows.append(("compared on", f"{count(receipt.get('rows'))} rows: {receipt.get('compared_on', '–')}"))
    for name, where in (("supervised", "trained tokens"), ("all", "tokens, prompts among them")):
        if measured := as_dict(receipt.get(name)):
            rows += _divergence(measured, where, receipt.get("max_lost"))
    if other := as_dict(as_dict(receipt.get("versus_trained_model")).get("all")):
        rows += _divergence(other, "tokens, against the model as it was trained", None)
    return rows


def quantize_rows(content: Content) -> Rows:
    """What quantize.json says."""
    known = content.quantize
    if not known:
        return []
    before, after = finite(known.get("bytes_before")), finite(known.get("bytes_after"))
    share = f" ({after / before:.0%})" if before and after else ""
    errors, perplexity = as_dict(known.get("relative_error")), as_dict(known.get("perplexity"))
    rows = [
        (
            "format",
            f"{known.get('format', '–')}, blocks of {known.get('block_size', '–')}, the rest in {known.get('dtype', '–')}",
        ),
        ("made from", str(known.get("source", "–"))),
        ("size", f"{size(before)} → {size(after)}{share}"),
        (
            "relative error per layer",
            f"mean {figure(errors.get('mean'))}, largest {figure(errors.get('max'))} ({errors.get('worst', '–')})",
        ),
    ]
    if finite(perplexity.get("before")) is not None:
        told = f"{figure(perplexity['before'])} → {figure(perplexity.get('after'))}"
        rows.append(
            ("perplexity", f"{told} over {count(perplexity.get('tokens'))} tokens of {perplexity.get('data', '–')}")
        )
    elif perplexity:
        rows.append(("perplexity", f"not measured: {perplexity.get('reason', '–')}"))
    kept = as_list(known.get("unquantized_layers"))
    return [*rows, ("layers left as they are", ", ".join(map(str, kept)) or "none")]


def environment_rows(content: Content) -> Rows:
    """The machine and the versions of libraries."""
    known = content.environment
    rows = [
        (name.replace("_", " "), str(value)) for name, value in known.items() if not isinstance(value, (dict, list))
    ]
    rows += [(name, str(version)) for name, version in as_dict(known.get("versions")).items()]
    base = as_dict(content.facts.get("base"))
    if base.get("revision"):
        rows.append(("revision of the base", str(base["revision"])))
    return rows + [(f"sha256 of {name}", str(digest)) for name, digest in as_dict(base.get("files")).items()]


def nonfinite_rows(content: Content) -> list[tuple[str, str, str]]:
    """Step, gradient norm and rows of each step that was not taken."""
    rows = []
    for record in content.nonfinite:
        batches = [as_dict(batch) for batch in as_list(record.get("micro_batches"))]
        bad = [b for b in batches if str(b.get("loss")) in ("nan", "inf", "-inf")] or batches
        names = [str(row) for batch in bad for row in as_list(batch.get("rows"))]
        rows.append((str(record.get("step", "–")), str(record.get("grad_norm", "–")), ", ".join(names)))
    return rows


def last_step(content: Content) -> int | None:
    """The last step that was logged."""
    steps = [points[-1][0] for points in content.series.values()]
    return int(max(steps)) if steps else None


def in_both(content: Content) -> str:
    """How many validation rows are training rows too, as "5 of 20"; nothing where none is."""
    found = [match for note in as_list(content.facts.get("notes")) if (match := _IN_BOTH.fullmatch(str(note)))]
    return f"{found[-1][1]} of {found[-1][2]}" if found else ""


def _best(content: Content) -> str:
    known = figure(content.facts.get("best_validation_loss"))
    step = finite(content.facts.get("best_step"))
    return f"{known} (step {count(step)})" if step and known != "–" else known


def _speed(content: Content) -> str:
    tokens, seconds = finite(content.facts.get("tokens")), finite(content.facts.get("seconds"))
    speed = tokens / seconds if tokens and seconds else content.last("train/tokens_per_s")
    return "–" if speed is None else f"{figure(speed if speed < 1000 else round(speed))} tokens/s"


def _divergence(measured: dict[str, Any], where: str, limit: Any) -> Rows:
    lost = ""
    if (share := finite(measured.get("lost"))) is not None:
        bound = "" if finite(limit) is None else f" (limit {percent(limit)})"
        lost = f"{percent(share)} of what was learned is lost{bound}, "
    told = (
        f"{lost}KL {figure(measured.get('kl'))}, top-1 agreement {percent(measured.get('top1_agreement'))}, "
        f"largest logit difference {figure(measured.get('max_logit_difference'))}"
    )
    return [(f"over {count(measured.get('positions'))} {where}", told)]
