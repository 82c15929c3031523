"""The loop: nothing but the recipe moves the result."""

import itertools
import json
import resource

import pytest
import torch
from safetensors.torch import load_file

from dorakit import Run, train
from dorakit.data.tokens import encode
from dorakit.errors import GateError, Interrupted, ModelError, RunError
from dorakit.model.generate import generate_ids
from dorakit.target import open_target
from dorakit.training import loop, optim, prepare, validation
from dorakit.training.objectives import supervised

MODES = ["full", "lora", "dora", "qlora", "qdora"]
OPTIMIZERS = ["adamw", "sgd", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit"]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(next(run.result.glob("*.safetensors")))


def same(a: Run, b: Run) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def stop_after(monkeypatch, step: int) -> None:
    """Make the loop see a SIGTERM once `step` steps are done."""
    original = optim.Updater.step
    count = 0

    def counted(self, rate):
        nonlocal count
        original(self, rate)
        count += 1
        if count == step:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(optim.Updater, "step", counted)


OTHER_METHODS = {
    "vera": ("qdora", ["adapter.update=vera"]),
    "miss": ("qlora", ["adapter.update=miss"]),
    "hira": ("qdora", ["adapter.update=hira"]),
    "bat": ("qlora", ["adapter.update=bat"]),
    "mora": ("dora", ["adapter.update=mora"]),
    "lora-plus": ("dora", ["optimizer.rule=lora-plus"]),
    "lora-pro": ("qdora", ["optimizer.rule=lora-pro"]),
    "pissa": ("qdora", ["adapter.start=pissa"]),
    "olora": ("lora", ["adapter.start=olora"]),
}


@pytest.mark.parametrize("method", [*MODES, *OTHER_METHODS])
def test_a_resumed_run_ends_with_the_same_bytes(monkeypatch, make_recipe, method):
    """Dropout and an 8-bit optimizer included. Dies if the optimizer's state or the step is not restored."""
    mode, settings = OTHER_METHODS.get(method, (method, []))
    extra = ["optimizer.name=adamw_8bit", "training.save_every=2", *([] if mode == "full" else ["adapter.dropout=0.2"])]
    extra += settings
    unbroken = train(
        make_recipe(f"adapter.mode={mode}", *extra, "output_dir=" + str(_place(make_recipe, "a"))), quiet=True
    )
    stop_after(monkeypatch, 3)
    recipe = make_recipe(f"adapter.mode={mode}", *extra, "output_dir=" + str(_place(make_recipe, "b")))
    with pytest.raises(Interrupted) as stopped:
        train(recipe, quiet=True)
    assert stopped.value.exit_code == 143
    monkeypatch.undo()
    run = Run.open(_place(make_recipe, "b"))
    assert run.state == "training" and not run.adapter.exists() and not run.model.exists()
    assert run.read("run.json")["base"] == unbroken.read("run.json")["base"] != {}
    with pytest.raises(RunError, match="--resume"):
        train(recipe, quiet=True)
    resumed = train(run.recipe, resume=run, quiet=True)
    assert resumed.state == "finished"
    assert same(unbroken, resumed)
    assert _lines(unbroken) == _lines(resumed)


def _place(make_recipe, name: str) -> str:
    from pathlib import Path

    return Path(make_recipe().origin.path).parent / name


def _lines(run: Run) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [(entry["step"], entry["train/loss"]) for entry in entries if "train/loss" in entry]


@pytest.mark.parametrize(
    "changed",
    [
        "training.eval_every=1",
        "training.save_every=1",
        "training.log_every=3",
        'training.sample_prompts=["Say 3: "]',
        "training.sample_rows=3",
    ],
)
def test_looking_does_not_touch(make_recipe, changed):
    """Validation, saving, logging and samples change no trained byte. Dies if a draw depends on what came before."""
    plain = train(make_recipe("adapter.dropout=0.2", f"output_dir={_place(make_recipe, 'a')}"), quiet=True)
    looked = train(make_recipe("adapter.dropout=0.2", changed, f"output_dir={_place(make_recipe, 'b')}"), quiet=True)
    assert same(plain, looked)


@pytest.mark.parametrize(
    "split",
    [
        "training.micro_batch_size=1",
        "training.micro_batch_size=8",
        "training.micro_batch_tokens=100",
        "data.packing=true",
    ],
)
def test_the_split_into_micro_batches_does_not_matter(make_recipe, split):
    """Dies if the loss is a mean of means, or if packed documents see each other."""
    one = train(make_recipe(f"output_dir={_place(make_recipe, 'a')}"), quiet=True)
    two = train(make_recipe(split, f"output_dir={_place(make_recipe, 'b')}"), quiet=True)
    for (_, a), (_, b) in zip(_lines(one), _lines(two), strict=True):
        assert a == pytest.approx(b, rel=2e-5)


def test_gradient_checkpointing_changes_no_byte(make_recipe):
    """With dropout: dies if the recomputation draws anew."""
    one = train(make_recipe("adapter.dropout=0.2", f"output_dir={_place(make_recipe, 'a')}"), quiet=True)
    two = train(
        make_recipe(
            "adapter.dropout=0.2", "training.gradient_checkpointing=true", f"output_dir={_place(make_recipe, 'b')}"
        ),
        quiet=True,
    )
    assert same(one, two)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(make_recipe, name):
    """And says what it uses where nothing can be paged."""
    rate = {"sgd": "2.0", "lion_8bit": "1e-3"}.get(name, "1e-2")
    overrides = [
        f"optimizer.name={name}",
        f"optimizer.learning_rate={rate}",
        "training.max_steps=12",
        "training.epochs=4",
    ]
    run = train(make_recipe(*overrides), quiet=True)
    losses = [loss for _, loss in _lines(run)]
    assert losses[-1] < losses[0] - 0.05
    notes = run.read("run.json")["notes"]
    assert any("no CUDA device to page from" in note for note in notes) == name.startswith("paged")


@pytest.mark.parametrize("mode", ["qlora", "qdora"])
def test_base_bytes_never_change(monkeypatch, make_recipe, mode):
    """Dies if anything writes to the frozen base, evaluation included."""
    seen = {}
    original = prepare.build_model

    def keep(recipe, **how):
        base = original(recipe, **how)
        frozen = {n: t for n, t in [*base.model.named_parameters(), *base.model.named_buffers()] if not t.requires_grad}
        seen["tensors"], seen["before"] = frozen, {n: t.clone() for n, t in frozen.items()}
        return base

    monkeypatch.setattr(prepare, "build_model", keep)
    train(make_recipe(f"adapter.mode={mode}", "training.eval_every=2"), quiet=True)
    assert len(seen["tensors"]) > 20
    for name, tensor in seen["tensors"].items():
        assert torch.equal(tensor, seen["before"][name]), name


def test_keep_best(make_recipe):
    """Ends with the weights of the lowest validation loss. Dies if the last step's are written."""
    # A rate that first helps and then harms.
    ruinous = [
        "training.max_steps=2",
        "training.keep_best=true",
        "training.eval_every=1",
        "optimizer.schedule=constant",
        "optimizer.learning_rate=3",
    ]
    run = train(make_recipe(*ruinous, f"output_dir={_place(make_recipe, 'a')}"), quiet=True)
    entries = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    losses = {e["step"]: e["validation/loss"] for e in entries if "validation/loss" in e}
    best = min(losses, key=losses.get)
    facts = run.read("run.json")
    assert facts["best_step"] == best < max(losses) == 2
    short = train(
        make_recipe(
            *ruinous, f"training.max_steps={best}", f"output_dir={_place(make_recipe, 'b')}", "optimizer.warmup_steps=1"
        ),
        quiet=True,
    )
    assert same(run, short)


def test_the_best_weights_are_those_that_the_checkpoint_names(monkeypatch, make_recipe):
    """Planted bug caught: one best/ for all, overwritten by a better step that the resumed run does not know of."""
    overrides = ["training.epochs=2", "training.keep_best=true", "training.eval_every=1", "training.save_every=2"]
    unbroken = train(make_recipe(*overrides, f"output_dir={_place(make_recipe, 'a')}"), quiet=True)
    recipe = make_recipe(*overrides, f"output_dir={_place(make_recipe, 'b')}")
    monkeypatch.setattr(loop._Training, "_save", _fail_after(4, loop._Training._save))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, quiet=True)
    monkeypatch.undo()
    run = Run.open(recipe.output_dir)
    # Steps 5 and 6 were better and no checkpoint knows of them; 2 and 4 are named by the two that are kept.
    assert {p.name for p in run.best.iterdir()} == {f"step-{n:09d}" for n in (2, 4, 5, 6)}
    resumed = train(run.recipe, resume=run, quiet=True)
    assert same(unbroken, resumed)
    assert {p.name for p in run.best.iterdir()} == {f"step-{n:09d}" for n in (4, 6)}


def _fail_after(step, save):
    def checked(self):
        if self.progress.step > step:
            raise KeyboardInterrupt
        save(self)

    return checked


def test_best_weights_that_are_gone(monkeypatch, make_recipe):
    """Or damaged. Planted bugs caught: found out after the last step, or never."""
    recipe = make_recipe("training.keep_best=true", "training.eval_every=1")
    worse = itertools.count(1.0)
    monkeypatch.setattr(validation, "summed_loss", lambda *_: (10 * next(worse), 10))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            train(recipe, quiet=True)
    run = Run.open(recipe.output_dir.replace("{name}", "small"))
    file = run.best / "step-000000001" / "adapter.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    monkeypatch.setattr(optim.Updater, "step", None)
    for harm in (lambda: file.write_bytes(content), file.unlink):
        harm()
        with pytest.raises(RunError, match=r"best weights so far, of step 1, cannot be used(.|\n)*keep_best=false"):
            train(run.recipe, resume=run, quiet=True)
    monkeypatch.undo()
    without = run.recipe_with(["training.keep_best=false"])
    train(without, resume=run, accept_changes=["training.keep_best"], quiet=True)


def test_a_loss_that_is_not_finite_stops_before_the_step(monkeypatch, make_recipe):
    """Dies if the optimizer steps first: the message promises that it did not."""
    steps = []
    original = optim.Updater.step
    monkeypatch.setattr(optim.Updater, "step", lambda self, rate: (steps.append(rate), original(self, rate)))
    forward = supervised.SupervisedLoss.forward
    monkeypatch.setattr(
        supervised.SupervisedLoss,
        "forward",
        lambda self, batch: forward(self, batch) * (float("nan") if len(steps) == 2 else 1.0),
    )
    with pytest.raises(
        GateError, match=r"step 3: the loss is not finite.*no step was taken\.\n  rows: rows\.jsonl:"
    ) as error:
        train(make_recipe(), quiet=True)
    assert error.value.exit_code == 5
    assert len(steps) == 2


def test_a_magnitude_that_never_moved_is_an_error(monkeypatch, make_recipe):
    """A DoRA that trained as LoRA must not be saved as DoRA."""
    original = prepare.build_model

    def frozen(recipe, **how):
        base = original(recipe, **how)
        for name, parameter in base.model.named_parameters():
            if name.endswith("lora_magnitude_vector"):
                parameter.requires_grad_(False)
        return base

    monkeypatch.setattr(prepare, "build_model", frozen)
    with pytest.raises(GateError, match="never moved"):
        train(make_recipe(), quiet=True)


def test_bitwise_is_said_only_where_all_is_as_it_was(monkeypatch, make_recipe):
    """Planted bug caught: it was said whatever the versions, the dtype and the threads."""
    for changed in (None, "transformers", "threads"):
        recipe = make_recipe(f"output_dir={_place(make_recipe, str(changed))}")
        with monkeypatch.context() as patch:
            stop_after(patch, 2)
            if changed:
                now = loop.computing(torch.float32, ranks=1)
                patch.setattr(loop, "computing", lambda *_, now=now, changed=changed, **__: {**now, changed: "4"})
            with pytest.raises(Interrupted):
                train(recipe, quiet=True)
        run = Run.open(recipe.output_dir)
        train(run.recipe, resume=run, quiet=True)
        said = run.log_file.read_text()
        assert ("step 2 (bitwise)" in said) == (changed is None)
        assert ("step 2 (resumable, not bitwise)" in said) == (changed is not None)
        assert any(f"{changed} was 4 when" in note for note in run.read("run.json")["notes"]) == (changed is not None)


def test_changed_data_is_refused_on_resume(monkeypatch, make_recipe):
    """Dies if a resume reads rows that the checkpoint never saw."""
    stop_after(monkeypatch, 2)
    recipe = make_recipe()
    with pytest.raises(Interrupted):
        train(recipe, quiet=True)
    monkeypatch.undo()
    rows = _place(make_recipe, "rows.jsonl")
    rows.write_text(rows.read_text().replace("Third.", "Fourth."))
    run = Run.open(recipe.output_dir.replace("{name}", "small"))
    with pytest.raises(RunError, match=r"changed since the checkpoint.*\n  data: train row 3 .*rows.jsonl:3"):
        train(run.recipe, resume=run, quiet=True)


def test_a_damaged_checkpoint_is_passed_over(monkeypatch, make_recipe):
    """The one before it serves. Dies if a file is parsed before its sha256 is checked."""
    unbroken = train(make_recipe("training.save_every=2", f"output_dir={_place(make_recipe, 'a')}"), quiet=True)
    stop_after(monkeypatch, 3)
    recipe = make_recipe("training.save_every=2", f"output_dir={_place(make_recipe, 'b')}")
    with pytest.raises(Interrupted):
        train(recipe, quiet=True)
    monkeypatch.undo()
    run = Run.open(_place(make_recipe, "b"))
    newest = sorted(run.checkpoints.iterdir())[-1]
    file = newest / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    resumed = train(run.recipe, resume=run, quiet=True)
    assert same(unbroken, resumed)
    assert any("sha256" in note for note in run.read("run.json")["notes"])
    assert not [p for p in run.checkpoints.iterdir() if p.name.startswith(".")]


def test_nothing_is_left_of_a_run_that_never_began(make_recipe):
    """A target that matches nothing is found before the run directory is made."""

    with pytest.raises(ModelError, match="did you mean q_proj"):
        train(make_recipe("adapter.target_modules=[q_prj]"), quiet=True)
    assert not _place(make_recipe, "runs").exists()


def test_a_place_where_no_run_can_be_made_is_found_first(monkeypatch, make_recipe):
    """Planted bug caught: OSError after the model was loaded and the rows were read."""
    monkeypatch.setattr(prepare, "build_model", None)
    file = _place(make_recipe, "rows.jsonl")
    for place, reason in ((file / "run", "Not a dir"), ("/proc/run", "")):
        with pytest.raises(RunError, match=rf"cannot be made: .*{reason}.*\n  set output_dir"):
            train(make_recipe(f"output_dir={place}"), quiet=True)


def test_metrics_survive_a_full_disk_while_a_run_resumes(monkeypatch, make_recipe):
    """Planted bug caught: metrics.jsonl truncated first and written anew after."""
    stop_after(monkeypatch, 3)
    recipe = make_recipe("training.save_every=2")
    with pytest.raises(Interrupted):
        train(recipe, quiet=True)
    monkeypatch.undo()
    run = Run.open(recipe.output_dir.replace("{name}", "small"))
    before = run.metrics_file.read_bytes()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    # run.json, which is written before it, is smaller.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 1, unlimited[1]))
    try:
        with pytest.raises(OSError, match=r"too large: .*metrics\.jsonl"):
            train(run.recipe, resume=run, quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert run.metrics_file.read_bytes() == before


def test_finished_runs_are_kept(make_recipe):
    """The second run of a recipe gets a name of its own."""
    first, second = train(make_recipe(), quiet=True), train(make_recipe(), quiet=True)
    assert (first.name, second.name) == ("small", "small-2")
    assert (first.path.parent / "latest").resolve() == second.path.resolve()
    assert same(first, second)


def test_a_module_trained_whole_takes_no_adapter_inside(make_recipe):
    """Dies if only equal names are compared: the result could not be loaded."""
    with pytest.raises(ModelError, match=r"mlp.*name it once"):
        train(make_recipe("adapter.modules_to_save=[mlp]"), quiet=True)


def test_a_whole_layer_is_not_recomputed(make_recipe):
    """Found at the start; modules inside a layer are. Planted bug caught: torch's own error in the first backward."""
    overrides = ["training.gradient_checkpointing=true", "adapter.target_modules=[layers.1.self_attn.q_proj]"]
    with pytest.raises(ModelError, match=r"model\.layers\.0 cannot be trained whole with .*gradient_checkpointing"):
        train(make_recipe(*overrides, "adapter.modules_to_save=[layers.0]"), quiet=True)
    assert not _place(make_recipe, "runs").exists()
    train(make_recipe(*overrides, "adapter.modules_to_save=[layers.0.mlp]", "training.max_steps=1"), quiet=True)


def test_float16_is_refused(make_recipe):
    """Planted bug caught: gradients below float16's range lost in silence."""
    with pytest.raises(ModelError, match=r"float16 is not trained in.*\n.*bfloat16"):
        train(make_recipe("model.dtype=float16"), quiet=True)
    assert not _place(make_recipe, "runs").exists()


def test_added_tokens_train_both_ends(make_recipe):
    """An untied head gets new rows too. Dies if naming the embedding alone is enough."""
    added = ["model.added_tokens=[<order>]", "adapter.target_modules=[q_proj]"]
    with pytest.raises(ModelError, match="one of them is not trained"):
        train(make_recipe(*added, "adapter.modules_to_save=[embed_tokens]"), quiet=True)
    run = train(make_recipe(*added, "adapter.modules_to_save=[embed_tokens, lm_head]"), quiet=True)
    assert any("embed_tokens" in name for name in weights(run)) and any("lm_head" in name for name in weights(run))


def _killed(*_):
    raise KeyboardInterrupt


def test_samples_begin_before_the_first_step(monkeypatch, make_recipe):
    """With what the base answers, once, also where a run begins again. Planted bugs caught: after one step; twice."""
    overrides = ['training.sample_prompts=["Say 3: "]', "training.eval_every=0"]
    never = train(make_recipe(*overrides, "optimizer.learning_rate=1e-12"), quiet=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optim.Updater, "step", _killed)
        train(make_recipe(*overrides, f"output_dir={_place(make_recipe, 'b')}"), quiet=True)
    run = Run.open(_place(make_recipe, "b"))
    train(run.recipe, resume=run, quiet=True)
    for one in (never, run):
        entries = [json.loads(line) for line in one.metrics_file.read_text().splitlines()]
        samples = [(entry["step"], entry["samples"]) for entry in entries if "samples" in entry]
        assert [step for step, _ in samples] == [0, 4]
        if one is never:
            assert samples[0][1] == samples[1][1]
            untrained = samples[0][1]
        assert samples[0][1] == untrained


def test_held_out_rows_are_answered_before_and_after(make_recipe):
    """Beside the answer of the data, once each, also with a run killed before its end.

    Planted bugs caught: training rows; another row's answer; the last weights where the best are kept; twice.
    """
    plain = train(make_recipe("training.sample_rows=2", f"output_dir={_place(make_recipe, 'a')}"), quiet=True)
    before, after = _answered(plain)
    assert [one["step"] for one in (before, after)] == [0, 4] and len(before["samples"]) == 2
    rows = [json.loads(line) for line in _place(make_recipe, "rows.jsonl").read_text().splitlines()]
    base, trained = (open_target(name, recipe=plain.recipe) for name in ("tiny:llama", str(plain.path)))
    held_out = encode(plain.recipe.data, base.tokenizer, seed=plain.recipe.training.seed).held_out
    for entry, target in ((before, base), (after, trained)):
        for sample, (_, row) in zip(entry["samples"], held_out, strict=False):
            assert sample["row"] == row.place
            asked = rows[int(sample["row"].rpartition(":")[2]) - 1]
            assert (sample["prompt"], sample["expected"]) == (asked["prompt"], asked["completion"])
            ids = target.tokenizer(asked["prompt"], add_special_tokens=False)["input_ids"]
            (new,) = generate_ids(target.model, target.tokenizer, [ids], max_new_tokens=64, batch_size=1)
            assert sample["text"] == target.tokenizer.decode(new, skip_special_tokens=True)
    log = plain.log_file.read_text()
    assert "held-out rows (2), answered before training (training.sample_rows: 0 leaves that out)" in log
    assert "the same rows, answered after training" in log


def test_the_kept_weights_are_those_that_answer(make_recipe):
    """Planted bug caught: the answers of the last step, of which the run keeps nothing."""
    ruinous = [
        "training.max_steps=2",
        "training.eval_every=1",
        "optimizer.schedule=constant",
        "optimizer.learning_rate=3",
    ]
    best = train(make_recipe(*ruinous, "training.sample_rows=2", "training.keep_best=true"), quiet=True)
    assert best.read("run.json")["best_step"] < 2
    base = open_target(str(best.path), recipe=best.recipe)
    _, after = _answered(best)
    for sample in after["samples"]:
        ids = base.tokenizer(sample["prompt"], add_special_tokens=False)["input_ids"]
        (new,) = generate_ids(base.model, base.tokenizer, [ids], max_new_tokens=64, batch_size=1)
        assert sample["text"] == base.tokenizer.decode(new, skip_special_tokens=True)


def test_rows_that_cannot_be_asked_stop_no_training(make_recipe):
    """Planted bugs caught: a long prompt answered all the same, or refused; nothing said where no row is left."""
    rows = _place(make_recipe, "rows.jsonl")
    long = {"prompt": "x" * 600, "completion": "y"}
    short = {"prompt": "Say 7: ", "completion": "7"}
    test = rows.with_name("test.jsonl")
    for kept, lines in (("none", [long]), ("one", [long, short])):
        test.write_text("".join(json.dumps(row) + "\n" for row in lines))
        run = train(
            make_recipe(
                "training.sample_rows=3",
                "data.max_seq_len=1024",
                "training.max_steps=1",
                "data.validation.rows=0",
                f"evaluation.path={test}",
                f"output_dir={_place(make_recipe, kept)}",
            ),
            quiet=True,
        )
        notes = [note for note in run.read("run.json")["notes"] if "sample_rows" in note]
        if kept == "none":
            assert _answered(run) == []
            assert notes == [
                f"training.sample_rows: no row is answered ({test}:1: a prompt of 600 tokens, where 512 are answered)"
            ]
        else:
            assert [sample["prompt"] for sample in _answered(run)[0]["samples"]] == ["Say 7: "] and notes == []
    none = train(make_recipe("training.sample_rows=0", "training.max_steps=1"), quiet=True)
    assert _answered(none) == []


def _answered(run: Run) -> list[dict]:
    entries = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [entry for entry in entries if any("row" in sample for sample in entry.get("samples", []))]


def test_a_sample_prompt_that_cannot_be_continued_is_found_first(make_recipe):
    """Dies if it is found at the first validation, after the run directory was made."""
    with pytest.raises(ModelError, match="positions"):
        train(make_recipe(f"training.sample_prompts=[{'x' * 9000}]"), quiet=True)
    assert not _place(make_recipe, "runs").exists()


def test_a_row_longer_than_the_models_positions_is_found_first(make_recipe):
    """Planted bug caught: found at the step that draws the row, as an index error of the model."""
    rows = _place(make_recipe, "rows.jsonl")
    with rows.open("a") as file:
        file.write('{"prompt": "Say: ", "completion": "' + "x" * 9000 + '"}\n')
    with pytest.raises(
        ModelError, match=r"rows.jsonl:41: 90\d\d tokens, and the model has 8192 positions\n.*8192 or less"
    ):
        train(make_recipe("data.max_seq_len=10000"), quiet=True)
    assert not _place(make_recipe, "runs").exists()


def test_float32_masters_always_compute_in_the_dtype_of_training(monkeypatch, make_recipe):
    """Planted bug caught: checks at the start or sample prompts outside autocast, which flash_attention_2 refuses."""
    seen = set()
    original = prepare.build_model

    def watched(recipe, **how):
        base = original(recipe, **how)
        base.model.lm_head.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
        return base

    monkeypatch.setattr(prepare, "build_model", watched)
    overrides = [
        "adapter.mode=full",
        "model.dtype=bfloat16",
        "data.packing=true",
        'training.sample_prompts=["Say 3: "]',
    ]
    train(make_recipe(*overrides, "training.max_steps=1"), quiet=True)
    assert seen == {torch.bfloat16}
