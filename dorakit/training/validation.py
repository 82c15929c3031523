"""What is looked at between steps: the validation loss, the best weights so far, answers to sample prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from dorakit.data.asked import encode_asked
from dorakit.data.batches import Batch, evened
from dorakit.data.tokens import Document
from dorakit.model.generate import check_prompts, generate_ids
from dorakit.parallel.sharding import whole_tensors
from dorakit.parallel.world import World
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.training.checkpoint import save_best
from dorakit.training.compiled import not_compiled
from dorakit.training.loss import SupervisedLoss, summed_loss
from dorakit.training.metrics import Metrics
from dorakit.training.restore import Progress
from dorakit.training.trained import trained_tensors

_SAMPLE_TOKENS = 64


class Validation:
    """Looks at the model between two steps, and leaves it as it was.

    Args:
        recipe: Says what to look at.
        run: Keeps the best weights.
        world: Shares the validation rows out; the first rank writes.
        loss: Has the model.
        tokenizer: The base's.
        documents: The validation rows.
        in_batches: Puts documents into micro-batches, as those of training are.

    Raises:
        ModelError: A sample prompt has no room for its answer.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        world: World,
        loss: SupervisedLoss,
        tokenizer: PreTrainedTokenizerBase,
        documents: Sequence[Document],
        in_batches: Callable[[Sequence[Document]], list[Batch]],
    ):
        self._settings, self._run, self._world = recipe.training, run, world
        self._loss, self._tokenizer = loss, tokenizer
        self._documents, self._in_batches = documents, in_batches
        self._prompts = sample_prompts(recipe, loss, tokenizer)

    def look_before(self, progress: Progress, metrics: Metrics) -> None:
        """What the model answers before the first step, to set what it learns against; nothing without sample prompts."""
        # A run that begins again has them already.
        if self._prompts and progress.step == 0 and self._world.from_first(self._is_new):
            self._write_samples({"step": 0}, metrics)
        self._loss.train()
        metrics.pause_clock()

    def _is_new(self) -> bool:
        return not self._run.metrics_file.stat().st_size

    def look(self, progress: Progress, metrics: Metrics) -> None:
        """Write what is seen to `metrics`, and a new best loss into `progress`."""
        entry: dict[str, Any] = {"step": progress.step}
        if self._documents:
            with not_compiled():
                batches = evened(self._in_batches(self._documents), self._world.size)
                shares = self._world.gather(summed_loss(self._loss, self._world.share(batches)))
            num_labels = sum(labels for _, labels in shares)
            loss = sum(total for total, _ in shares) / max(1, num_labels)
            entry |= {"validation/loss": loss, "validation/tokens": num_labels}
            metrics.say(f"step {progress.step}: validation loss {loss:.4f}")
            if math.isfinite(loss) and (progress.best_loss is None or loss < progress.best_loss):
                progress.best_loss, progress.best_step = loss, progress.step
                if self._settings.keep_best:
                    trained = whole_tensors(trained_tensors(self._loss.model), keep=self._world.is_first)
                    if self._world.is_first:
                        save_best(self._run, progress.step, trained)
        if self._prompts:
            self._write_samples(entry, metrics)
        elif len(entry) > 1:
            metrics.write(entry)
        self._loss.train()
        metrics.pause_clock()

    def _write_samples(self, entry: dict[str, Any], metrics: Metrics) -> None:
        samples = self._samples()
        for sample in samples:
            metrics.say(f"  {sample['prompt']!r} -> {sample['text']!r}")
        metrics.write({**entry, "samples": samples})

    def _samples(self) -> list[dict[str, str]]:
        with self._loss.precision(), not_compiled():
            new = generate_ids(
                self._loss.model, self._tokenizer, self._prompts, max_new_tokens=_SAMPLE_TOKENS, batch_size=8
            )
        texts = self._tokenizer.batch_decode(new, skip_special_tokens=True)
        prompts = self._settings.sample_prompts
        return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]


def sample_prompts(recipe: Recipe, loss: SupervisedLoss, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the recipe's sample prompts.

    Raises:
        ModelError: One of them has no room for its answer.
    """
    prompts = encode_asked(recipe.training.sample_prompts, recipe.data, tokenizer, place="training.sample_prompts")
    check_prompts(loss.model, prompts, _SAMPLE_TOKENS)
    return prompts
