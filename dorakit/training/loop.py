"""The training loop: one, for every mode and method."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dorakit.data.batches import Batch, documents_of_step, micro_batches, padded
from dorakit.data.tokens import Document
from dorakit.errors import Interrupted
from dorakit.failpoints import reach
from dorakit.interruptions import explain_out_of_memory, stop_requests
from dorakit.parallel.sharding import whole_tensors
from dorakit.parallel.world import World, joined
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.terminal import typed
from dorakit.training.checkpoint import disk_full_message, load_best, save_checkpoint
from dorakit.training.checks import check_moved, check_trainable_dtype
from dorakit.training.compiled import compile_layers_
from dorakit.training.device import as_found, computing, is_repeatable, peak_memory_bytes, repeatable, seed_draws
from dorakit.training.metrics import Metrics, NullMetrics, Reporter
from dorakit.training.nonfinite import is_finite, pass_over
from dorakit.training.opening import SMALLER, base_facts, new_run, resumed
from dorakit.training.optim import learning_rate, num_trained
from dorakit.training.prepare import Prepared, prepare
from dorakit.training.restore import Progress, Restored, Start, restore
from dorakit.training.result import whole_model, write_result
from dorakit.training.resume import Facts
from dorakit.training.same_start import agree, put_in_, put_in_trained_
from dorakit.training.trained import trained_tensors
from dorakit.training.validation import Validation
from dorakit.words import counted, duration


def train(
    recipe: Recipe,
    *,
    start_from: Path | str | None = None,
    resume: Run | None = None,
    checkpoint: str | None = None,
    accept_changes: Sequence[str] = (),
    quiet: bool = False,
) -> Run:
    """Train, as `training/start.py: train` says: it looks first for what can be refused without torch, and calls this."""
    check_trainable_dtype(recipe.model.dtype)
    with (
        joined(timeout_s=60 * recipe.parallel.timeout_minutes) as world,
        as_found(),
        contextlib.ExitStack() as held,
        repeatable(on_cuda=recipe.training.deterministic),
        explain_out_of_memory(SMALLER),
    ):
        place = None
        if world.is_first:
            place = resume.path if resume else Run.place(recipe)  # refuse before minutes are spent on loading
            if resume:
                held.enter_context(resumed(resume, recipe, checkpoint, accept_changes, quiet=quiet))
        prepared = prepare(recipe, place, world, start_from=start_from, resume=resume)
        path = world.from_first(
            lambda: str((resume or held.enter_context(new_run(prepared, accept_changes, world.member))).path)
        )
        start = Start(checkpoint, tuple(accept_changes), has_adapter=prepared.predecessor is not None)
        return _Training(prepared, Run(Path(path)), world, start, quiet=quiet).run()


class _Training:
    """One training: the parts, and the loop over steps in `run`. Every rank has one; the first one's alone writes."""

    def __init__(self, prepared: Prepared, run: Run, world: World, start: Start, *, quiet: bool):
        self.world = world
        self.recipe, self.directory = prepared.recipe, run
        self.base, self.data, self.updater = prepared.base, prepared.data, prepared.updater
        self.objective = prepared.objective
        self.total_steps, self.saves_start = prepared.total_steps, start.has_adapter
        self.settings, self.model = self.recipe.training, self.base.model
        self.facts = Facts.gather(self.recipe, self.base.identity, self.data, self.base.tokenizer.chat_template)
        self.computing = computing(self.objective.compute_dtype, ranks=world.size)
        agree(world, self.facts, self.model)
        restored = Restored()
        if world.is_first:
            restored = restore(
                run,
                self.recipe,
                start,
                model=self.model,
                data=self.data,
                facts=self.facts,
                base=base_facts(prepared),
                computing=self.computing,
                total_steps=self.total_steps,
            )
        put_in_(world, self.model, self.updater, restored.checkpoint)
        self.progress = Progress(**world.from_first(lambda: vars(restored.progress)))
        self.base.notes += restored.notes
        self.validation = Validation(
            self.recipe, run, world, self.objective, self.base.tokenizer, self.data, self._micro_batches
        )
        self.metrics: Reporter = (
            Metrics(run, self.recipe, total_steps=self.total_steps, start_step=self.progress.step, quiet=quiet)
            if world.is_first
            else NullMetrics()
        )
        if self.settings.gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        if self.settings.compile:
            compile_layers_(self.model)

    def run(self) -> Run:
        """The loop."""
        with self.metrics:
            self._announce()
            self.metrics.start_trackers()
            self.objective.train()
            with stop_requests() as stop:
                if self.saves_start:
                    self._save()
                self.validation.look_before(self.progress, self.metrics)
                began = time.monotonic() - self.progress.seconds
                for step in range(self.progress.step, self.total_steps):
                    self._step(step)
                    done = self.progress
                    if _due(done.step, self.settings.eval_every, self.total_steps):
                        self.validation.look(done, self.metrics)
                    reach("step")
                    done.seconds = time.monotonic() - began
                    if self._asked(stop) or _due(done.step, self.settings.save_every, self.total_steps):
                        self._save()
                        # A signal that came since the question above waits for the next step unless this one is saved.
                        stops = self._asked(stop)
                        if not stops or done.step == self.total_steps:
                            continue
                        raise Interrupted(
                            f"stopped after step {done.step} of {self.total_steps}; a checkpoint is saved.\n"
                            f"  go on with: dorakit train --resume {typed(self.directory.path)}",
                            stops[0],
                        )
            return self._finish()

    def _asked(self, stop: list[int]) -> list[int]:
        """The signals that any rank was sent, the same on all."""
        return [number for numbers in self.world.gather(stop[:1]) for number in numbers]

    def _step(self, step: int) -> None:
        """One update, or one passed over; `step` counts from 0."""
        documents = self._documents(step)
        batches = self._micro_batches(documents)
        rate = learning_rate(step, self.total_steps, self.recipe.optimizer)
        losses, grad_norm = self._accumulate(step, batches)
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
                loss=sum(losses) / sum(batch.num_units for batch in batches),
                rate=rate,
                grad_norm=grad_norm,
                num_tokens=done.num_tokens,
                memory_bytes=peak_memory_bytes(),
            )

    def _accumulate(self, step: int, batches: list[Batch]) -> tuple[list[float], float]:
        """Gradient of the mean loss over the step's units; returns each batch's sum of losses and the gradient's norm."""
        num_units = sum(batch.num_units for batch in batches)
        self.updater.zero_grad()
        sums: list[Tensor] = []
        for micro, batch in self.world.share(list(enumerate(padded(batches, self.world.size)))):
            seed_draws(self.settings.seed, "train", step, micro)
            total = self.objective(batch)
            if reach("loss"):
                total = total * math.nan
            (total / num_units).backward()
            sums.append(total.detach())
            reach("micro")
        self.world.sum_(self.updater.gradients)
        grad_norm = self.updater.clip(self.settings.max_grad_norm)
        return self.world.collected(torch.stack(sums).tolist())[: len(batches)], grad_norm

    def _pass_over(self, step: int, batches: list[Batch], losses: list[float], grad_norm: float) -> None:
        line = self.world.from_first(
            lambda: pass_over(
                self.directory,
                self.settings.nonfinite,
                step=step + 1,
                skipped=self.progress.skipped,
                batches=batches,
                losses=losses,
                grad_norm=grad_norm,
            )
        )
        self.progress.skipped += 1
        self.metrics.note(line)

    def _documents(self, step: int) -> list[Document]:
        chosen = documents_of_step(len(self.data.train), self.settings.batch_size, self.settings.seed, step)
        return [self.data.train[index] for index in chosen]

    def _micro_batches(self, documents: Sequence[Document]) -> list[Batch]:
        # With FlashAttention transformers sees the borders of packed documents in a batch of one row only.
        one_row = self.recipe.data.packing and self.recipe.model.attention == "flash_attention_2"
        return micro_batches(
            documents,
            # No more than leaves something to every rank.
            micro_batch_size=1
            if one_row
            else min(self.settings.micro_batch_size, -(-len(documents) // self.world.size)),
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
            *self.objective.notes,
            *self.updater.notes,
            *self.validation.notes,
        ]:
            self.metrics.note(line)
        trained = num_trained(self.model)
        # NF4 keeps two weights a byte.
        total = sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in self.model.parameters())
        self.metrics.say(
            f"{self.recipe.adapter.mode} on {self.recipe.model.base}: {trained:,} of {total:,} parameters"
            f" trained ({trained / total:.2%}), {counted(len(self.data.train), 'row')}, {counted(self.total_steps, 'step')}"
        )
        if self.progress.step:
            exactly = self.progress.is_exact and is_repeatable(deterministic=self.settings.deterministic)
            self.metrics.say(
                f"going on after step {self.progress.step} ({'bitwise' if exactly else 'resumable, not bitwise'})"
            )

    def _save(self) -> None:
        keep = self.world.is_first
        trained = whole_tensors(trained_tensors(self.model), keep=keep)
        tensors, numbers = self.updater.state(keep=keep)
        if not keep:
            return
        state = {**vars(self.progress), "optimizer": numbers, "computing": self.computing, "facts": vars(self.facts)}
        keep_checkpoints = self.settings.keep_checkpoints
        save_checkpoint(self.directory, trained=trained, optimizer=tensors, state=state, keep=keep_checkpoints)
        self.metrics.pause_clock()

    def _finish(self) -> Run:
        done, keep = self.progress, self.world.is_first
        # Of the last step, which the rates add up to; the best one may be of before they amounted to anything.
        ratio = self.recipe.adapter.magnitude.learning_rate_ratio
        for line in self.world.from_first(lambda: check_moved(self.model, done.summed_rate, ratio)):
            self.metrics.note(line)
        if self.settings.keep_best and done.best_step not in (0, done.step):
            put_in_trained_(self.world, self.model, load_best(self.directory, done.best_step) if keep else None)
            self.metrics.say(f"keeping step {done.best_step}, validation loss {done.best_loss:.4f}")
        self.validation.look_after(done, self.metrics)
        whole: dict[str, Tensor] = {}
        if self.recipe.trains_whole:
            whole = whole_model(self.model.to(self.objective.compute_dtype), keep=keep)
        self.world.from_first(lambda: self._write(whole))
        return self.directory

    def _write(self, whole: dict[str, Tensor]) -> None:
        run = self.directory
        with disk_full_message(run, run.path, (whole or trained_tensors(self.model)).values()):
            target = write_result(run, self.recipe, self.base, whole)
            run.update(
                state="finished",
                data={"fingerprint": self.data.fingerprint},
                steps=self.progress.step,
                skipped_steps=self.progress.skipped,
                tokens=self.progress.num_tokens,
                trained_parameters=num_trained(self.model),
                best_step=self.progress.best_step,
                best_validation_loss=self.progress.best_loss,
                seconds=round(self.progress.seconds, 1),
                peak_memory_bytes=peak_memory_bytes(),
                computing=self.computing,
            )
        self.metrics.say(
            f"finished {counted(self.progress.step, 'step')} in {duration(self.progress.seconds)} -> {target}"
        )


def _due(step: int, every: int, total: int) -> bool:
    return step == total or (every > 0 and step % every == 0)
