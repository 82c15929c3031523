import json
import shutil

import peft
import pytest
import torch
from tiny_runs import IDS, forget_digests, tiny_recipe

from dorakit import Run, build, evaluate, merge, quantize
from dorakit.adapters.peft_config import adapter_base
from dorakit.errors import ModelError, ResourceError, RunError, UsageError
from dorakit.model.load import load_base
from dorakit.place import find_target, run_around
from dorakit.target import open_target


def logits(target):
    with torch.no_grad():
        return target.model(IDS).logits


def test_a_run_by_any_of_its_names(trained):
    run = trained("lora")
    link = run.path.parent / "latest"
    assert link.is_symlink()
    expected = logits(open_target(str(run.path)))
    for text in (str(link), str(run.adapter)):
        target = open_target(text)
        assert (target.kind, target.variant) == ("run", "adapter")
        assert torch.equal(logits(target), expected)
        assert not target.model.training


def test_adapter_directory_elsewhere_and_its_base(trained, tmp_path):
    run = trained("dora")
    copy = forget_digests(shutil.copytree(run.adapter, tmp_path / "mine"))
    target = open_target(str(copy), recipe=run.recipe)
    assert (target.kind, target.name, target.base) == ("adapter", "mine", "tiny:llama")
    torch.testing.assert_close(logits(target), logits(open_target(str(run.path))))
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base"):
        open_target(str(copy))
    again = open_target(str(copy), recipe=run.recipe, base_model="tiny:llama")
    torch.testing.assert_close(logits(again), logits(target))
    (copy / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        adapter_base(copy)


def test_an_adapter_elsewhere_brings_the_storage_of_its_base(trained, tmp_path):
    """Planted bug caught: outside its run an adapter that was trained on NF4 weights is put on the original ones."""
    run = trained("qdora")
    copy = forget_digests(shutil.copytree(run.adapter, tmp_path / "mine"))
    stored = {"format": "nf4", "block_size": 64, "double_quant": True, "skip_modules": ["lm_head"]}
    assert json.loads((copy / "dorakit.json").read_text()) == {"base_storage": stored}
    expected = logits(open_target(str(run.path)))
    target = open_target(str(copy), as_stored=True)
    torch.testing.assert_close(logits(target), expected)
    assert target.notes == []
    dense = logits(open_target(str(copy), as_stored=True, onto="original"))
    assert (dense - expected).abs().max() > 1e-3
    (copy / "dorakit.json").unlink()  # as PEFT saves it
    target = open_target(str(copy), as_stored=True)
    assert torch.equal(logits(target), dense)
    assert "has no dorakit.json" in target.notes[0] and "as they are" in target.notes[0]
    target = open_target(str(copy), recipe=run.recipe)
    torch.testing.assert_close(logits(target), expected)
    assert "NF4, as in the recipe" in target.notes[0]
    (copy / "dorakit.json").write_text('{"base_storage": {"format": "nf4"}}')
    with pytest.raises(ModelError, match=r"dorakit.json does not say how the base was stored: KeyError: 'block_size'"):
        open_target(str(copy))


def test_an_adapter_that_brings_new_tokens(trained, tmp_path):
    """PEFT saves a grown embedding with the adapter. Planted bug caught: the base keeps its own number of rows."""
    base = load_base("tiny:llama", dtype="float32")
    base.tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]}, replace_extra_special_tokens=False)
    base.model.resize_token_embeddings(len(base.tokenizer) + 4, mean_resizing=False)
    model = peft.get_peft_model(
        base.model,
        peft.LoraConfig(
            r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], task_type="CAUSAL_LM"
        ),
    )
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    recipe = tiny_recipe(tmp_path / "recipe", "lora")  # for its dtype
    target = open_target(str(tmp_path), base_model="tiny:llama", recipe=recipe)
    assert target.tokenizer.convert_tokens_to_ids("<|new|>") == len(base.tokenizer) - 1
    ids = torch.cat([IDS, torch.full((2, 1), len(base.tokenizer) - 1)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(target.model(ids).logits, model.eval()(ids).logits, rtol=1e-4, atol=1e-5)


def test_directories_that_are_nothing(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"not a run \(run.json\).*it holds notes.txt"):
        find_target(str(tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match="it holds nothing"):
        find_target(str(empty))


def test_places_that_are_not_there(trained):
    run = trained("lora")
    with pytest.raises(RunError, match=r"dorakit merge .*run-lora` makes it"):
        find_target(str(run.merged))
    with pytest.raises(RunError, match=r"no such run: .*run-lroa\n .* holds run-lora"):
        find_target(str(run.path.parent / "run-lroa"))
    checkpoint = next(run.checkpoints.iterdir())
    with pytest.raises(RunError, match="is a checkpoint"):
        find_target(str(checkpoint))
    assert run_around("no/such/place") is None
    assert find_target("tiny:llama").kind == "model"
    assert find_target("some-org/some-model").path is None


@pytest.mark.parametrize("text", ["./runz", "no/such/run", "~nosuch/x", "{tmp}/runz", "here/runz", "runs/runz"])
def test_what_looks_like_a_path_is_no_hub_id(tmp_path, monkeypatch, text):
    """Planted bug caught: a path with nothing there is asked for on the hub, or called a whole model."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    text = text.format(tmp=tmp_path)
    with pytest.raises(RunError, match=f"^no such run or directory: {text}\n  "):
        find_target(text)
    for other in ("pkg:some_package/weights/model.gguf", "tiny:llama", "org/name", "name"):
        assert find_target(other).kind == "model"


def test_a_name_that_is_nothing(tmp_path, monkeypatch):
    """Planted bug caught: `merge runz` says that runz is a whole model."""
    monkeypatch.chdir(tmp_path)
    for ask in (merge, quantize, evaluate):
        with pytest.raises(RunError, match="no such run or directory: runz"):
            ask("runz")
    with pytest.raises(
        ResourceError, match=r"^no such run or directory: runz; and as a hub id: .* the hub cannot be reached"
    ):
        open_target("runz")


def test_a_recipe_is_no_target(tmp_path):
    """Planted bug caught: a recipe is called a whole model, or a damaged GGUF file."""
    recipe = tiny_recipe(tmp_path, "lora").origin.path
    for ask in (merge, quantize, evaluate, open_target):
        with pytest.raises(UsageError, match=r"lora.yaml is a recipe file, not a run or a model\n  `dorakit train .*"):
            ask(recipe)


def test_a_run_that_has_not_finished(tmp_path):
    run = Run.create(tiny_recipe(tmp_path, "lora"))
    with pytest.raises(RunError, match=r"no result yet.*\n.*--resume"):
        open_target(str(run.path))


def test_a_base_that_changed_since_training(run_of):
    """Planted bug caught: an adapter put on whatever stands where its base was."""
    run = run_of("lora")
    content = run.read("run.json")
    files = content["base"]["files"]
    run.update(base={**content["base"], "files": {**files, "model.safetensors": "0" * 64}})
    with pytest.raises(RunError, match=r"changed since training: model\.safetensors"):
        open_target(str(run.path))


def test_the_base_of_a_run_is_the_commit_that_it_was_trained_on(monkeypatch, run_of):
    """Planted bug caught: a branch of the hub that has moved on since is loaded instead."""
    run = run_of("lora")
    recorded = run.read("run.json")["base"]
    assert (recorded["name"], recorded["revision"]) == ("tiny:llama", "") and recorded["files"]
    assert run.recipe.model.revision == "main"
    run.update(base={**recorded, "revision": "0123abc"})
    seen = []
    original = build.find_base
    monkeypatch.setattr(build, "find_base", lambda *a, **k: seen.append(k["revision"]) or original(*a, **k))
    open_target(str(run.path))
    assert seen == ["0123abc"]


def test_the_base_of_a_run_is_its_own_whatever_recipe_names_the_rows(trained, tmp_path):
    run = trained("lora")
    other = tiny_recipe(tmp_path, "lora", base="tiny:qwen2")
    target = open_target(str(run.path), recipe=other)
    assert target.base == "tiny:llama" and target.recipe is other
    assert torch.equal(logits(target), logits(open_target(str(run.path))))


def test_base_only_of_a_whole_model():
    with pytest.raises(UsageError, match="no adapter to switch off"):
        open_target("tiny:llama", base_only=True)
