"""`train --from`: a LoRA goes on as a DoRA that at first answers as the LoRA did."""

import contextlib
import json
import re
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_runs import IDS, forget_digests, tiny_recipe
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from dorakit import Run, failpoints, train
from dorakit.build import build_model
from dorakit.cli.app import app
from dorakit.errors import GateError, Interrupted, ModelError, RecipeError, RunError, UsageError
from dorakit.model.load import load_base
from dorakit.model.source import sha256
from dorakit.report.decomposition import decompose
from dorakit.target import open_target
from dorakit.training import optim
from dorakit.training.checkpoint import named_checkpoint
from dorakit.training.trained import restore_trained
from dorakit.training.upgrade import find_predecessor

KEPT = ("training.save_every=1", "training.keep_checkpoints=5")
# 8-bit state, which is made anew where a checkpoint has none: that of step 0.
EIGHT_BIT = ("optimizer.name=adamw_8bit", *KEPT)


@torch.no_grad()
def logits_at(run, step):
    base = build_model(run.recipe)
    restore_trained(base.model, named_checkpoint(run, f"step-{step:09d}").trained)
    return base.model.eval()(IDS).logits


@torch.no_grad()
def logits_of(run, **options):
    return open_target(str(run.path), **options).model(IDS).logits


@pytest.mark.parametrize("old, new", [("lora", "dora"), ("qlora", "qdora"), ("lora", "lora"), ("dora", "dora")])
def test_the_first_logits_are_the_adapters(trained, tmp_path, old, new):
    """Planted bugs caught: m left at ||W||; the norm of s B A without W; a fresh adapter instead; the magnitude of a DoRA
    replaced by its norms.
    """
    before = trained(old)
    run = train(tiny_recipe(tmp_path, new, KEPT), start_from=before.path, quiet=True)
    expected = logits_of(before)
    assert (logits_of(before, base_only=True) - expected).abs().max() > 0.1
    torch.testing.assert_close(logits_at(run, 0), expected, rtol=1e-5, atol=1e-5)
    assert (logits_at(run, 1) - expected).abs().max() > 1e-3


def test_the_first_step_moves_everything(trained, tmp_path):
    """Planted bugs caught: weights put in after the optimizer took its copies, so that the first step undoes them; a magnitude
    that is no parameter any more.
    """
    run = train(tiny_recipe(tmp_path, "dora", KEPT), start_from=trained("lora").adapter, quiet=True)
    then, now = (named_checkpoint(run, f"step-{step:09d}").trained for step in (0, 1))
    assert len(then) == 3 * 14
    for name in then:
        moved = (now[name] - then[name]).abs()
        assert 0 < float(moved.max()) < 0.1, name  # at a rate of 0.03 an AdamW step is about 0.03


def test_the_run_says_what_it_began_with(trained, tmp_path):
    """Planted bug caught: an adapter that nothing names afterwards."""
    before = trained("lora")
    recipe = tiny_recipe(tmp_path, "dora", ("adapter.magnitude.learning_rate_ratio=0.5",))
    run = train(recipe, start_from=before.path, quiet=True)
    facts = run.read("run.json")
    assert facts["from"] == {
        "adapter": str(before.path),
        "sha256": sha256(before.adapter / "adapter_model.safetensors"),
        "method": "lora",
        "base": "tiny:llama",
    }
    assert any("begins with the adapter" in note for note in facts["notes"])


@pytest.fixture
def broken_off(trained, tmp_path):
    """An unbroken run from an adapter, and one that a signal stopped after its second step; the adapter is gone."""
    shutil.copytree(trained("lora").adapter, tmp_path / "adapter")
    unbroken = train(tiny_recipe(tmp_path / "a", "dora", EIGHT_BIT), start_from=tmp_path / "adapter", quiet=True)
    recipe = tiny_recipe(tmp_path / "b", "dora", EIGHT_BIT)
    failpoints.arm("step:2=sigterm")
    try:
        with pytest.raises(Interrupted):
            train(recipe, start_from=tmp_path / "adapter", quiet=True)
    finally:
        failpoints.arm("")
    shutil.rmtree(tmp_path / "adapter")
    return unbroken, Run.open(recipe.output_dir)


@pytest.mark.parametrize("checkpoint", [None, "step-000000000"])
def test_a_resume_does_not_need_the_adapter(broken_off, checkpoint):
    """Planted bugs caught: the adapter read again; no checkpoint of step 0; one that cannot be gone on from."""
    unbroken, run = broken_off
    resumed = train(run.recipe, resume=run, checkpoint=checkpoint, quiet=True)
    one, two = (r.adapter / "adapter_model.safetensors" for r in (unbroken, resumed))
    assert one.read_bytes() == two.read_bytes()
    assert resumed.read("run.json")["from"] == unbroken.read("run.json")["from"]


def test_a_run_that_lost_its_beginning_is_refused(broken_off):
    """Planted bug caught: a fresh adapter trained in its place, in silence."""
    _, run = broken_off
    shutil.rmtree(run.checkpoints)
    with pytest.raises(RunError, match=r"stopped before it had a copy of it\n.*--from"):
        train(run.recipe, resume=run, quiet=True)


REFUSED = {
    "rank": ("dora", ("adapter.rank=8",), "adapter.rank is 8, and the adapter {} has rank 4"),
    "alpha": ("dora", ("adapter.alpha=8",), "adapter.alpha is 8, and the adapter {} has alpha 16"),
    "rslora": ("dora", ("adapter.rslora=true",), "adapter.rslora is true, and the adapter {} has use_rslora false"),
    "rank of one": ("dora", ("adapter.rank_pattern={up_proj: 2}",), "adapter.rank is 2, and the adapter {} has rank 4"),
    "targets": (
        "dora",
        ("adapter.target_modules=[q_proj, v_proj]",),
        "adapter.target_modules are other modules: it leaves out 10 that the adapter {} adapts, the first is "
        "model.layers.0.mlp.down_proj",
    ),
    "base": (
        "dora",
        ("model.base=tiny:qwen2",),
        "model.base is tiny:qwen2, and the adapter {} was trained on tiny:llama",
    ),
    "storage": (
        "qdora",
        (),
        "qdora trains on a base stored as NF4, block 64, double-quantized, and the adapter {} was",
    ),
    "full": ("full", (), "adapter.mode is full, and the adapter {} has A and B, which"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_recipe_is_refused(trained, tmp_path, case):
    """Planted bugs caught: each comparison left out. A wrong scale gives a model that trains and is another one."""
    mode, overrides, message = REFUSED[case]
    adapter = trained("lora").adapter
    recipe = tiny_recipe(tmp_path, mode, overrides)
    with pytest.raises(RecipeError) as caught:
        train(recipe, start_from=adapter, quiet=True)
    assert message.format(adapter) in str(caught.value)
    assert not (tmp_path / f"run-{mode}").exists()


def test_a_mistake_is_shown_where_it_is_written(trained, tmp_path):
    """Planted bugs caught: the place of another key; one mistake of several told."""
    recipe = tiny_recipe(tmp_path, "qlora", ("adapter.rank=3",))
    with pytest.raises(RecipeError) as caught:
        train(recipe, start_from=trained("dora").path, quiet=True)
    text = str(caught.value)
    file, line = tmp_path / "qlora.yaml", "    4 | adapter: {mode: qlora, rank: 4, alpha: 16}\n"
    assert f"{file}:4:17: error: adapter.mode is qlora, and the adapter" in text
    assert f"{line}      |                 ^^^^^ set dora or qdora" in text
    assert "--set: error: adapter.rank is 3" in text and "set 4" in text


def test_a_base_of_the_same_name_and_other_files_is_refused(run_of, tmp_path):
    """Planted bug caught: bases compared by name where a run knows their content."""
    before = run_of("lora")
    base = before.read("run.json")["base"]
    before.update(base={**base, "files": {**base["files"], "model.safetensors": "0" * 64}})
    with pytest.raises(RecipeError, match="the files differ"):
        train(tiny_recipe(tmp_path / "new", "dora"), start_from=before.path, quiet=True)


def test_a_base_that_moved_is_the_same(run_of, tmp_path):
    """Planted bug caught: bases compared by name where a run knows their content."""
    before = run_of("lora")
    config = forget_digests(before.adapter) / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "/gone/elsewhere"}))
    train(tiny_recipe(tmp_path / "new", "dora"), start_from=before.path, quiet=True)
    alone = shutil.copytree(before.adapter, tmp_path / "alone")
    with pytest.raises(RecipeError, match="was trained on /gone/elsewhere"):
        train(tiny_recipe(tmp_path / "newer", "dora"), start_from=alone, quiet=True)


def test_what_is_not_known_is_said(trained, tmp_path):
    """Planted bugs caught: an adapter of PEFT's own, which tells no storage, refused; magnitude.init: original passed over
    in silence.
    """
    adapter = shutil.copytree(trained("qlora").adapter, tmp_path / "adapter")
    (adapter / "dorakit.json").unlink()
    recipe = tiny_recipe(tmp_path, "qdora", (*KEPT, "adapter.magnitude.init=original"))
    run = train(recipe, start_from=adapter, quiet=True)
    notes = run.read("run.json")["notes"]
    assert any("does not say how its base was stored" in note for note in notes)
    assert any(note.startswith("asked: adapter.magnitude.init: original, using:") for note in notes)
    torch.testing.assert_close(logits_at(run, 0), logits_of(trained("qlora")), rtol=1e-5, atol=1e-5)


def test_what_is_no_adapter_is_refused(trained, run_of, tmp_path):
    """Planted bugs caught: a traceback for each of them; --from of a resumed run passed over."""
    recipe = tiny_recipe(tmp_path, "dora")
    with pytest.raises(RunError, match="no such run or directory"):
        train(recipe, start_from=tmp_path / "nothing", quiet=True)
    with pytest.raises(UsageError, match="neither an adapter directory nor a run"):
        train(recipe, start_from="tiny:llama", quiet=True)
    with pytest.raises(UsageError, match=r"is in mode full and has no adapter"):
        train(recipe, start_from=trained("full").path, quiet=True)
    with pytest.raises(ModelError, match=r"is not a run \(run\.json\), an adapter"):
        train(recipe, start_from=tmp_path, quiet=True)
    unfinished = run_of("lora")
    shutil.rmtree(unfinished.adapter)
    unfinished.update(state="training")
    with pytest.raises(RunError, match="has no result yet"):
        train(recipe, start_from=unfinished.path, quiet=True)
    with pytest.raises(UsageError, match="--from is for new runs"):
        train(recipe, start_from=trained("lora").path, resume=unfinished, quiet=True)


def test_the_command(trained, tmp_path):
    """Planted bug caught: an option that the command reads and does not hand on."""
    tiny_recipe(tmp_path, "dora")
    arguments = ["train", str(tmp_path / "dora.yaml"), "--from", str(trained("lora").path), "--quiet", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(result.stdout)["from"]["method"] == "lora"


@pytest.fixture(params=["unbroken", "resumed"])
def upgraded(request, trained, tmp_path):
    """A function that trains a DoRA from a LoRA, at once or with a stop after the first step."""
    before = trained("lora").path

    def upgrade():
        recipe = tiny_recipe(tmp_path, "dora", KEPT)
        if request.param == "unbroken":
            return train(recipe, start_from=before, quiet=True)
        failpoints.arm("step:1=sigterm")
        try:
            with pytest.raises(Interrupted):
                train(recipe, start_from=before, quiet=True)
        finally:
            failpoints.arm("")
        run = Run.open(recipe.output_dir)
        return train(run.recipe, resume=run, quiet=True)

    return upgrade


STILL = {
    "adapter": ((1, 2), "none of the 14 adapters moved"),
    "magnitude": ((1,), "the DoRA magnitude of .* never moved"),  # the only vectors of an adapter
}


@pytest.mark.parametrize("case", STILL)
def test_what_never_moved_is_noticed(upgraded, monkeypatch, case):
    """Planted bugs caught: B compared with zero, and m with the base's norms, which an adapter that was put in never has;
    the beginning forgotten on resume.
    """
    dimensions, message = STILL[case]
    own = optim.Updater.step

    @torch.no_grad()
    def partly(self, rate):
        held = [p for group in self._groups for p in group.members if p.dim() in dimensions]
        before = [p.clone() for p in held]
        own(self, rate)
        for parameter, value in zip(held, before, strict=True):
            parameter.copy_(value)

    monkeypatch.setattr(optim.Updater, "step", partly)
    with pytest.raises(GateError, match=message):
        upgraded()


def test_a_beginning_that_is_gone_passes(trained, tmp_path):
    """Planted bug caught: a run refused since the checkpoint of step 0 was removed in its turn."""
    recipe = tiny_recipe(tmp_path, "dora", ("training.save_every=1", "training.keep_checkpoints=2"))
    before = trained("lora").path
    failpoints.arm("step:2=sigterm")
    try:
        with pytest.raises(Interrupted):
            train(recipe, start_from=before, quiet=True)
    finally:
        failpoints.arm("")
    run = Run.open(recipe.output_dir)
    assert not (run.checkpoints / "step-000000000").exists()
    assert train(run.recipe, resume=run, quiet=True).state == "finished"


@torch.no_grad()
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_that_peft_saved(tmp_path, method):
    """PEFT's own file, of a base that lies elsewhere by now, goes on. Planted bugs caught: names or settings that only our
    files have; bases compared as text; a magnitude that PEFT saved passed over.
    """
    base = tmp_path / "base"
    model = load_base("tiny:llama", dtype="float32")
    model.model.save_pretrained(base)
    model.tokenizer.save_pretrained(base)
    settings = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", use_dora=method == "dora")
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), settings)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.05, generator=generator)
        if "lora_magnitude" in name:
            parameter.mul_(1 + 0.1 * torch.rand(parameter.shape, generator=generator))
    theirs.save_pretrained(tmp_path / "adapter")
    expected = theirs.eval()(IDS).logits
    with theirs.disable_adapter():
        assert (theirs(IDS).logits - expected).abs().max() > 0.1
    with torch.enable_grad():
        moved = shutil.copytree(base, tmp_path / "moved")
        recipe = tiny_recipe(tmp_path, "dora", KEPT, base=str(moved))
        run = train(recipe, start_from=tmp_path / "adapter", quiet=True)
    torch.testing.assert_close(logits_at(run, 0), expected, rtol=1e-4, atol=1e-4)
    assert (logits_at(run, 1) - expected).abs().max() > 1e-3


def followed(tmp_path, mode, adapter):
    """Train from an adapter, with what each refusal says to write, until none is left; the run and what was written."""
    written = []
    while True:
        try:
            recipe = tiny_recipe(tmp_path, mode, (*KEPT, *written))
            return train(recipe, start_from=adapter, quiet=True), written
        except RecipeError as refused:
            settings = [s for p in refused.problems for s in re.findall(r"`(\w+): (.+?)`", p.hint)]
            more = [f"adapter.{key}={value}" for key, value in settings]
            assert more and not set(more) & set(written), refused
            written += more


@pytest.mark.parametrize(("method", "mode"), [("lora", "lora"), ("lora", "dora"), ("dora", "dora")])
def test_patterns_and_layers_of_peft_go_on(tmp_path, method, mode):
    """Planted bugs caught: alpha_pattern not handed to the layers; a hint that leaves out the patterns, or takes in the other
    layer; a pattern that matches no module written into the recipe.
    """
    settings = LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=["q_proj", "up_proj"],
        layers_to_transform=[1],
        rank_pattern={"up_proj": 2, "nowhere": 9},
        alpha_pattern={"q_proj": 20, "nowhere": 9},
        use_dora=method == "dora",
    )
    theirs = get_peft_model(load_base("tiny:llama", dtype="float32").model, settings)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = theirs.eval()(IDS).logits
        with theirs.disable_adapter():
            assert (theirs(IDS).logits - expected).abs().max() > 0.1
    theirs.peft_config["default"].base_model_name_or_path = "tiny:llama"
    theirs.save_pretrained(tmp_path / "adapter")
    run, written = followed(tmp_path, mode, tmp_path / "adapter")
    assert written == [
        "adapter.rank=4",
        'adapter.rank_pattern={"up_proj": 2}',
        "adapter.alpha=12",
        'adapter.alpha_pattern={"q_proj": 20}',
        r"adapter.target_modules='model\.layers\.(1)\.(mlp\.up_proj|self_attn\.q_proj)'",
    ]
    torch.testing.assert_close(logits_at(run, 0), expected, rtol=1e-4, atol=1e-4)
    assert (logits_at(run, 3) - expected).abs().max() > 1e-3
    with torch.no_grad():
        again = PeftModel.from_pretrained(load_base("tiny:llama", dtype="float32").model, run.adapter).eval()
        torch.testing.assert_close(again(IDS).logits, logits_of(run), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("targets", "written"),
    [
        ([0, 1], "[q_proj, v_proj]"),
        ([0], r"'model\.layers\.(0)\.(self_attn\.q_proj|self_attn\.v_proj)'"),
        (r".*\.(0\.self_attn\.q|1\.self_attn\.v)_proj", "[model.layers.0.self_attn.q_proj, model.layers.1.self_attn.v_proj]"),
    ],
    ids=["everywhere", "one layer", "no pattern"],
)  # fmt: skip
def test_the_targets_that_are_named_are_the_adapters(tmp_path, targets, written):
    """Planted bugs caught: suffixes named for an adapter of some layers; a pattern for modules that have none in common."""
    chosen = {"target_modules": targets} if isinstance(targets, str) else {
        "target_modules": ["q_proj", "v_proj"], "layers_to_transform": targets
    }  # fmt: skip
    theirs = get_peft_model(load_base("tiny:llama", dtype="float32").model, LoraConfig(r=4, lora_alpha=16, **chosen))
    theirs.peft_config["default"].base_model_name_or_path = "tiny:llama"
    theirs.save_pretrained(tmp_path / "adapter")
    assert followed(tmp_path, "lora", tmp_path / "adapter")[1] == [f"adapter.target_modules={written}"]


@pytest.mark.parametrize("modules", [["embed_tokens"], ["embed_tokens", "lm_head"]], ids=["embedding", "both"])
def test_what_peft_untied_goes_on_untied(tmp_path, modules):
    """Planted bugs caught: the pair tied again by the recipe, by a resume, or by who reads the run's own adapter."""
    base = load_base("tiny:llama", dtype="float32")
    base.model.config.tie_word_embeddings = True
    base.model.tie_weights()
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    settings = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj"], modules_to_save=modules)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32), settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    theirs.save_pretrained(tmp_path / "adapter")
    changes = (*KEPT, "adapter.target_modules=[q_proj]", f"adapter.modules_to_save={json.dumps(modules)}")
    runs = []
    for place, stop in (("a", ""), ("b", "step:2=sigterm")):
        recipe = tiny_recipe(tmp_path / place, "lora", changes, base=str(tmp_path / "base"))
        failpoints.arm(stop)
        try:
            with pytest.raises(Interrupted) if stop else contextlib.nullcontext():
                train(recipe, start_from=tmp_path / "adapter", quiet=True)
        finally:
            failpoints.arm("")
        runs.append(Run.open(recipe.output_dir))
    whole, broken_off = runs
    started = build_model(whole.recipe, keeps_ties=False).model
    restore_trained(started, named_checkpoint(whole, "step-000000000").trained)
    with torch.no_grad():
        torch.testing.assert_close(started.eval()(IDS).logits, theirs.eval()(IDS).logits, rtol=1e-4, atol=1e-4)
    resumed = train(broken_off.recipe, resume=broken_off, quiet=True)
    one, two = (r.adapter / "adapter_model.safetensors" for r in (whole, resumed))
    assert one.read_bytes() == two.read_bytes()
    restore_trained(started, named_checkpoint(whole, "step-000000003").trained)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(whole), started(IDS).logits)
    assert find_predecessor(whole.path, whole.recipe).keeps_ties is False
    decompose(resumed)
