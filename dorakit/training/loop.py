"""The training loop: one, for every mode and method."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dorakit.build import build_model
from dorakit.data.asked import encode_asked
from dorakit.data.batches import Batch, documents_of_step, micro_batches, steps_per_epoch
from dorakit.data.documents import check_lengths
from dorakit.data.tokens import Document, Encoded, encode
from dorakit.errors import Interrupted, RunError
from dorakit.failpoints import reach
from dorakit.files import whole_directory
from dorakit.model.generate import check_prompts, generate_ids
from dorakit.model.load import Base, pick_dtype
from dorakit.recipe.resolved import settings
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.training.checkpoint import (
    Checkpoint,
    best_weights,
    load_tensors,
    named_checkpoint,
    newest_checkpoint,
    restore_trained,
    save_checkpoint,
    save_tensors,
    set_newer_aside,
    trained_tensors,
)
from dorakit.training.checks import (
    check_magnitudes_moved,
    check_packing,
    check_recomputed,
    check_room,
    check_trainable_dtype,
)
from dorakit.training.compiled import compile_layers_, not_compiled
from dorakit.training.device import computing, is_repeatable, peak_memory_bytes, repeatable, seed_draws
from dorakit.training.interruptions import out_of_memory_said, stop_requests
from dorakit.training.loss import SupervisedLoss, mean_loss
from dorakit.training.metrics import Metrics
from dorakit.training.nonfinite import is_finite, pass_over
from dorakit.training.optim import Updater, learning_rate, num_trained
from dorakit.training.result import check_adapter_moved, write_result
from dorakit.training.resume import Facts, compare, write_row_digests

_SAMPLE_TOKENS = 64
_SMALLER = "smaller at the same result: --set training.micro_batch_size=1 --set training.gradient_checkpointing=true"


@dataclass
class Progress:
    """What a checkpoint keeps besides tensors; everything else is a pure function of the step."""

    step: int = 0
    num_tokens: int = 0
    summed_rate: float = 0.0
    best_loss: float | None = None
    best_step: int = 0
    seconds: float = 0.0
    skipped: int = 0


def train(
    recipe: Recipe,
    *,
    resume: Run | None = None,
    checkpoint: str | None = None,
    accept_changes: Sequence[str] = (),
    quiet: bool = False,
) -> Run:
    """Train as the recipe says and return the finished run.

    Args:
        recipe: What to do; for a resumed run, the run's own recipe, or one with changes that a resumed run may have.
        resume: An unfinished run to go on with, from its newest valid checkpoint.
        checkpoint: Name of the checkpoint to go on from instead.
        accept_changes: What may have changed since: keys of the recipe, `data`, `base`, `template`.
        quiet: Show nothing.

    Raises:
        RunError: The run directory is taken, locked, changed or damaged.
        GateError: A loss or gradient is not finite; no step was taken.
        Interrupted: Stopped by a signal; a checkpoint was saved.
        DataError, ModelError, ResourceError: As their names say; nothing is left of a run that never began.
    """
    check_trainable_dtype(recipe.model.dtype)
    if resume is None:
        Run.place(recipe)  # refuse before minutes are spent on loading
    elif resume.state == "finished":
        raise RunError(f"{resume.path} is finished; `dorakit train RECIPE` starts another")
    with (
        contextlib.ExitStack() as held,
        repeatable(on_cuda=recipe.training.deterministic),
        out_of_memory_said(_SMALLER),
    ):
        vanished = held.enter_context(resume.writing()) if resume else ""
        base = build_model(recipe)
        if recipe.training.gradient_checkpointing:
            check_recomputed(base.model)
        data = encode(recipe.data, base.tokenizer, seed=recipe.training.seed, twin=recipe.origin.is_twin)
        # A row or a prompt that does not fit the model must not be found out after hours.
        check_lengths([*data.train, *data.validation], base.model.config)
        check_prompts(base.model, _sample_prompts(recipe, base.tokenizer), _SAMPLE_TOKENS)
        loss = SupervisedLoss(base.model, pick_dtype(recipe.model.dtype))
        if recipe.data.packing:
            check_packing(loss)
        check_room(
            resume.path if resume else Run.place(recipe),
            num_trained=num_trained(base.model),
            optimizer=recipe.optimizer.name,
            keep=recipe.training.keep_checkpoints,
        )
        if vanished:
            base.notes.append(
                f"the last writer of this run ({vanished}) vanished: killed, or out of memory. {_SMALLER}"
            )
        run = resume
        if run is None:
            run = Run.create(recipe, base=_base_facts(recipe, base))
            held.enter_context(run.writing())
        start = _Start(checkpoint, tuple(accept_changes))
        return _Training(recipe, run, base, data, loss, start, quiet=quiet).run()


def _base_facts(recipe: Recipe, base: Base) -> dict[str, Any]:
    return {"name": recipe.model.base, "revision": base.revision, "files": base.identity}


@dataclass(frozen=True)
class _Start:
    """Where a resumed run goes on: a checkpoint by name, or the newest; and which changes are accepted."""

    checkpoint: str | None
    accepted: tuple[str, ...]


class _Training:
    """One training: the parts, and the loop over steps in `run`."""

    def __init__(
        self, recipe: Recipe, run: Run, base: Base, data: Encoded, loss: SupervisedLoss, start: _Start, *, quiet: bool
    ):
        self.recipe, self.directory, self.base, self.data, self.loss = recipe, run, base, data, loss
        self.settings = recipe.training
        self.model = base.model
        self.updater = Updater(self.model, recipe.optimizer, recipe.adapter.magnitude)
        per_epoch = steps_per_epoch(len(data.train), self.settings.batch_size)
        self.total_steps = math.ceil(self.settings.epochs * per_epoch)
        if self.settings.max_steps is not None:
            self.total_steps = min(self.total_steps, self.settings.max_steps)
        self.progress = Progress()
        self.facts = Facts.gather(recipe, base.identity, data, base.tokenizer.chat_template)
        self.resumes_alike = True
        self._restore(start)
        self.metrics = Metrics(
            run, recipe.logging, total_steps=self.total_steps, start_step=self.progress.step, quiet=quiet
        )
        if self.settings.gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        if self.settings.compile:
            compile_layers_(self.model)

    def run(self) -> Run:
        """The loop."""
        try:
            self._announce()
            self.loss.train()
            with stop_requests() as stop:
                began = time.monotonic() - self.progress.seconds
                for step in range(self.progress.step, self.total_steps):
                    documents = self._documents(step)
                    batches = self._micro_batches(documents)
                    rate = learning_rate(step, self.total_steps, self.recipe.optimizer)
                    losses, grad_norm = self._accumulate(step, batches)
                    loss = sum(losses) / sum(batch.num_labels for batch in batches)
                    done = self.progress
                    if is_finite(losses, grad_norm):
                        self.updater.step(rate)
                        done.summed_rate += rate
                    else:
                        self._pass_over(step, batches, losses, grad_norm)
                    num_tokens = sum(map(len, documents))
                    done.step, done.num_tokens = step + 1, done.num_tokens + num_tokens
                    self.metrics.step(done.step, num_tokens)
                    if done.step % self.settings.log_every == 0 or done.step in (1, self.total_steps):
                        self.metrics.train(
                            done.step,
                            loss=loss,
                            rate=rate,
                            grad_norm=grad_norm,
                            num_tokens=done.num_tokens,
                            memory_bytes=peak_memory_bytes(),
                        )
                    if _due(done.step, self.settings.eval_every, self.total_steps):
                        self._validate()
                    reach("step")
                    done.seconds = time.monotonic() - began
                    saved = bool(stop) or _due(done.step, self.settings.save_every, self.total_steps)
                    if saved:
                        self._save()
                    # A signal that came since the question above waits for the next step unless this one is saved.
                    if saved and stop and done.step < self.total_steps:
                        raise Interrupted(
                            f"stopped after step {done.step} of {self.total_steps}; a checkpoint is saved.\n"
                            f"  go on with: dorakit train --resume {self.directory.path}",
                            stop[0],
                        )
            return self._finish()
        finally:
            self.metrics.close()

    def _accumulate(self, step: int, batches: list[Batch]) -> tuple[list[float], float]:
        """Gradient of the mean loss over the step's supervised tokens; returns the sums of losses and the gradient's norm."""
        num_labels = sum(batch.num_labels for batch in batches)
        self.updater.zero_grad()
        sums: list[Tensor] = []
        for micro, batch in enumerate(batches):
            seed_draws(self.settings.seed, "train", step, micro)
            total = self.loss(batch.input_ids, batch.labels, batch.position_ids)
            if reach("loss"):
                total = total * math.nan
            (total / num_labels).backward()
            sums.append(total.detach())
            reach("micro")
        grad_norm = self.updater.clip(self.settings.max_grad_norm)
        return torch.stack(sums).tolist(), grad_norm

    def _pass_over(self, step: int, batches: list[Batch], losses: list[float], grad_norm: float) -> None:
        line = pass_over(
            self.directory,
            self.settings.nonfinite,
            step=step + 1,
            skipped=self.progress.skipped,
            batches=batches,
            losses=losses,
            grad_norm=grad_norm,
        )
        self.progress.skipped += 1
        self._note(line)

    def _documents(self, step: int) -> list[Document]:
        chosen = documents_of_step(len(self.data.train), self.settings.batch_size, self.settings.seed, step)
        return [self.data.train[index] for index in chosen]

    def _micro_batches(self, documents: list[Document]) -> list[Batch]:
        # With FlashAttention transformers sees the borders of packed documents in a batch of one row only.
        one_row = self.recipe.data.packing and self.recipe.model.attention == "flash_attention_2"
        return micro_batches(
            documents,
            micro_batch_size=1 if one_row else self.settings.micro_batch_size,
            max_tokens=None if one_row else self.settings.micro_batch_tokens,
            packing=self.recipe.data.packing,
            max_seq_len=self.recipe.data.max_seq_len,
            pad_id=int(self.base.tokenizer.pad_token_id),
        )

    def _announce(self) -> None:
        for line in [
            *self.recipe.origin.notes,
            *self.base.notes,
            *self.data.notes,
            *self.loss.notes,
            *self.updater.notes,
        ]:
            self._note(line)
        trained = num_trained(self.model)
        # NF4 keeps two weights a byte.
        total = sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in self.model.parameters())
        self.metrics.say(
            f"{self.recipe.adapter.mode} on {self.recipe.model.base}: {trained:,} of {total:,} parameters"
            f" trained ({trained / total:.2%}), {len(self.data.train):,} rows, {self.total_steps:,} steps"
        )
        if self.progress.step:
            exactly = self.resumes_alike and is_repeatable(deterministic=self.settings.deterministic)
            self.metrics.say(
                f"going on after step {self.progress.step} ({'bitwise' if exactly else 'resumable, not bitwise'})"
            )

    def _note(self, line: str) -> None:
        self.metrics.say(line)
        self.directory.note(line)

    def _validate(self) -> None:
        done = self.progress
        entry: dict[str, Any] = {"step": done.step}
        if self.data.validation:
            batches = self._micro_batches(self.data.validation)
            with not_compiled():
                loss, num_labels = mean_loss(self.loss, batches)
            entry |= {"validation/loss": loss, "validation/tokens": num_labels}
            self.metrics.say(f"step {done.step}: validation loss {loss:.4f}")
            if math.isfinite(loss) and (done.best_loss is None or loss < done.best_loss):
                done.best_loss, done.best_step = loss, done.step
                if self.settings.keep_best:
                    with whole_directory(best_weights(self.directory, done.step)) as staging:
                        save_tensors(staging / "adapter.safetensors", trained_tensors(self.model))
        if self.settings.sample_prompts:
            entry["samples"] = self._samples()
            for sample in entry["samples"]:
                self.metrics.say(f"  {sample['prompt']!r} -> {sample['text']!r}")
        if len(entry) > 1:
            self.metrics.write(entry)
        self.loss.train()
        self.metrics.pause_clock()

    def _samples(self) -> list[dict[str, str]]:
        prompts = self.settings.sample_prompts
        ids = _sample_prompts(self.recipe, self.base.tokenizer)
        with self.loss.precision(), not_compiled():
            new = generate_ids(self.model, self.base.tokenizer, ids, max_new_tokens=_SAMPLE_TOKENS, batch_size=8)
        texts = self.base.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]

    def _save(self) -> None:
        tensors, numbers = self.updater.state()
        state = {
            **vars(self.progress),
            "optimizer": numbers,
            "computing": computing(self.loss.compute_dtype),
            "facts": vars(self.facts),
        }
        save_checkpoint(
            self.directory,
            trained=trained_tensors(self.model),
            optimizer=tensors,
            state=state,
            keep=self.settings.keep_checkpoints,
        )
        self.metrics.pause_clock()

    def _restore(self, start: _Start) -> None:
        run = self.directory
        if start.checkpoint:
            checkpoint: Checkpoint | None = named_checkpoint(run, start.checkpoint)
        else:
            checkpoint, rejected = newest_checkpoint(run)
            self.base.notes += [f"passed over: {reason}" for reason in rejected]
        if checkpoint is None:
            run.record(self.recipe)
            run.update(base=_base_facts(self.recipe, self.base))
            write_row_digests(run, self.data)
            return
        compared = compare(
            checkpoint.state["facts"],
            self.facts,
            run=run,
            data=self.data,
            accepted=start.accepted,
            validates_best=self.settings.keep_best,
        )
        if start.checkpoint:
            set_newer_aside(run, checkpoint.step)
        self.base.notes += compared.notes
        self.resumes_alike = compared.is_exact
        run.update(state="training")  # it may have failed before
        restore_trained(self.model, checkpoint.trained)
        self.updater.restore(checkpoint.optimizer, checkpoint.state["optimizer"])
        # Only now: what a refused resume asked for must not stand in the run.
        if compared.notes or settings(run.recipe) != self.facts.recipe:
            run.record(self.recipe)
            run.update(base=_base_facts(self.recipe, self.base))
            write_row_digests(run, self.data)
        known = {name: checkpoint.state[name] for name in vars(self.progress)}
        self.progress = Progress(**known)
        for what, now in computing(self.loss.compute_dtype).items():
            if (before := checkpoint.state["computing"][what]) != now:
                self.resumes_alike = False
                self.base.notes.append(f"{what} was {before} when the checkpoint was made and is {now}")

    def _finish(self) -> Run:
        recipe, run = self.recipe, self.directory
        if self.settings.keep_best and self.progress.best_step not in (0, self.progress.step):
            best = best_weights(run, self.progress.best_step)
            restore_trained(self.model, load_tensors(best / "adapter.safetensors"))
            self.metrics.say(f"keeping step {self.progress.best_step}, validation loss {self.progress.best_loss:.4f}")
        if still := check_adapter_moved(self.model, self.progress.summed_rate):
            self._note(f"{len(still)} adapted layers got no gradient and are as they were, the first is {still[0]}")
        check_magnitudes_moved(self.model, self.progress.summed_rate * recipe.adapter.magnitude.learning_rate_ratio)
        target = write_result(run, recipe, self.base, dtype=self.loss.compute_dtype)
        seconds = self.progress.seconds
        run.update(
            state="finished",
            data={"fingerprint": self.data.fingerprint},
            steps=self.progress.step,
            skipped_steps=self.progress.skipped,
            tokens=self.progress.num_tokens,
            trained_parameters=num_trained(self.model),
            best_step=self.progress.best_step,
            best_validation_loss=self.progress.best_loss,
            seconds=round(seconds, 1),
            peak_memory_bytes=peak_memory_bytes(),
        )
        self.metrics.say(f"finished {self.progress.step} steps in {seconds / 60:.1f} min -> {target}")
        return run


def _sample_prompts(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return encode_asked(recipe.training.sample_prompts, recipe.data, tokenizer, place="training.sample_prompts")


def _due(step: int, every: int, total: int) -> bool:
    return step == total or (every > 0 and step % every == 0)
