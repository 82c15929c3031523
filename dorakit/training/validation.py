"""What is looked at between steps: the validation loss, the best weights so far, answers to prompts and held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dorakit.data.asked import AskedRow, encode_asked, held_out_questions
from dorakit.data.batches import Batch, padded
from dorakit.data.tokens import Document, Encoded
from dorakit.model.generate import check_prompts, generate_ids, num_positions
from dorakit.parallel.sharding import whole_tensors
from dorakit.parallel.world import World
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.training.checkpoint import save_best
from dorakit.training.compiled import not_compiled
from dorakit.training.metrics import Reporter
from dorakit.training.objectives.supervised import SupervisedLoss, summed_loss
from dorakit.training.restore import Progress
from dorakit.training.trained import trained_tensors

_SAMPLE_TOKENS = 64
# So that answering rows takes less memory than a step, and about as long as a few.
_MOST_ROW_TOKENS = 512
_SHOWN, _RECORDED = 120, 1000  # characters of a row's texts, on the terminal and in metrics.jsonl


class Validation:
    """Looks at the model between two steps, and leaves it as it was.

    Args:
        recipe: Says what to look at.
        run: Keeps the best weights.
        world: Shares the validation rows out; the first rank writes.
        objective: Has the model.
        tokenizer: The base's.
        data: Has the validation rows.
        in_batches: Puts documents into micro-batches, as those of training are.

    Raises:
        ModelError: A sample prompt has no room for its answer.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        world: World,
        objective: SupervisedLoss,
        tokenizer: PreTrainedTokenizerBase,
        data: Encoded,
        in_batches: Callable[[Sequence[Document]], list[Batch]],
    ):
        self._settings, self._run, self._world = recipe.training, run, world
        self._objective, self._tokenizer = objective, tokenizer
        self._documents, self._in_batches = data.validation, in_batches
        self._prompts = sample_prompts(recipe, objective.model, tokenizer)
        positions = num_positions(objective.model)
        room = _MOST_ROW_TOKENS if positions is None else min(_MOST_ROW_TOKENS, positions - _SAMPLE_TOKENS)
        self._rows, self.notes = held_out_questions(
            recipe, data, tokenizer, count=recipe.training.sample_rows, most_tokens=room
        )

    def look_before(self, progress: Progress, metrics: Reporter) -> None:
        """What the model answers before the first step, to set what it learns against; nothing without prompts and rows."""
        # A run that begins again has them already.
        if (self._prompts or self._rows) and progress.step == 0 and self._world.from_first(self._is_new):
            samples = self._answered_prompts(metrics)
            if self._rows:
                metrics.say(
                    f"held-out rows ({len(self._rows)}), answered before training (training.sample_rows: 0 leaves that out):"
                )
                samples += self._answered_rows(metrics)
            metrics.write({"step": 0, "samples": samples})
        self._objective.train()
        metrics.pause_clock()

    def look_after(self, progress: Progress, metrics: Reporter) -> None:
        """What the finished model answers to the held-out rows."""
        if self._rows:
            metrics.say("the same rows, answered after training:")
            metrics.write({"step": progress.step, "samples": self._answered_rows(metrics)})

    def _is_new(self) -> bool:
        return not self._run.metrics_file.stat().st_size

    def look(self, progress: Progress, metrics: Reporter) -> None:
        """Write what is seen to `metrics`, and a new best loss into `progress`."""
        entry: dict[str, Any] = {"step": progress.step}
        if self._documents:
            with not_compiled():
                batches = padded(self._in_batches(self._documents), self._world.size)
                shares = self._world.gather(summed_loss(self._objective, self._world.share(batches)))
            num_units = sum(units for _, units in shares)
            loss = sum(total for total, _ in shares) / max(1, num_units)
            entry |= {"validation/loss": loss, "validation/tokens": num_units}
            metrics.say(f"step {progress.step}: validation loss {loss:.4f}")
            if math.isfinite(loss) and (progress.best_loss is None or loss < progress.best_loss):
                progress.best_loss, progress.best_step = loss, progress.step
                if self._settings.keep_best:
                    trained = whole_tensors(trained_tensors(self._objective.model), keep=self._world.is_first)
                    if self._world.is_first:
                        save_best(self._run, progress.step, trained)
        if self._prompts:
            entry["samples"] = self._answered_prompts(metrics)
        if len(entry) > 1:
            metrics.write(entry)
        self._objective.train()
        metrics.pause_clock()

    def _answered_prompts(self, metrics: Reporter) -> list[dict[str, str]]:
        texts = self._answers(self._prompts)
        samples = [
            {"prompt": prompt, "text": text} for prompt, text in zip(self._settings.sample_prompts, texts, strict=True)
        ]
        for sample in samples:
            metrics.say(f"  {sample['prompt']!r} -> {sample['text']!r}")
        return samples

    def _answered_rows(self, metrics: Reporter) -> list[dict[str, str]]:
        texts = self._answers([row.prompt_ids for row in self._rows])
        for row, text in zip(self._rows, texts, strict=True):
            prompt, answer, expected = (_clipped(part, _SHOWN) for part in (row.prompt, text, row.expected))
            metrics.say(f"  {prompt!r} -> {answer!r}, expected {expected!r}")
        return [_recorded(row, text) for row, text in zip(self._rows, texts, strict=True)]

    def _answers(self, prompts: list[list[int]]) -> list[str]:
        if not prompts:
            return []
        with self._objective.precision(), not_compiled():
            new = generate_ids(
                self._objective.model, self._tokenizer, prompts, max_new_tokens=_SAMPLE_TOKENS, batch_size=8
            )
        return list(self._tokenizer.batch_decode(new, skip_special_tokens=True))


def _recorded(row: AskedRow, text: str) -> dict[str, str]:
    parts = {"prompt": row.prompt, "expected": row.expected, "text": text}
    return {"row": row.row, **{name: _clipped(part, _RECORDED) for name, part in parts.items()}}


def _clipped(text: str, limit: int) -> str:
    """Both ends of a text that is longer: what is asked often stands last."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def sample_prompts(recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the recipe's sample prompts.

    Raises:
        ModelError: One of them has no room for its answer.
    """
    prompts = encode_asked(recipe.training.sample_prompts, recipe.data, tokenizer, place="training.sample_prompts")
    check_prompts(model, prompts, _SAMPLE_TOKENS)
    return prompts
