"""`dorakit export`: what is written, what it says, what it refuses."""

import json
import re
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from printed_commands import commands_in, parse
from safetensors.torch import load_file
from tiny_runs import IDS, tiny_recipe, tiny_run
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from typer.testing import CliRunner

from dorakit import Recipe, evaluate, merge, train
from dorakit.cli.app import app
from dorakit.errors import DorakitError, GateError, ModelError, RunError, UsageError
from dorakit.export import card
from dorakit.export.outputs import export_lora, export_peft
from dorakit.export.to_gguf import export_gguf
from dorakit.export.to_merged import export_merged
from dorakit.export.trained import find_trained
from dorakit.files import write_json
from dorakit.model.load import load_base
from dorakit.model.source import resolve


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def exported(*arguments):
    result = CliRunner().invoke(app, ["export", *map(str, arguments), "--json", "--quiet"], catch_exceptions=False)
    return json.loads(result.stdout)


@pytest.mark.parametrize("mode", ["dora", "qlora"])
def test_gguf_is_the_merged_model(run_of, mode):
    """Planted bugs caught: the base written instead of the merged model; the scratch merge left behind."""
    run = run_of(mode)
    said = exported(run.path, "--to", "gguf")
    assert said["output"] == str(run.gguf) and said["source"] == "adapter, merged for this" and said["type"] == "f16"
    assert {file.name for file in run.gguf.iterdir()} == {"model-f16.gguf", "Modelfile", "README.md", "export.json"}
    assert not [file.name for file in run.path.iterdir() if file.name.startswith(".")]
    merged = AutoModelForCausalLM.from_pretrained(merge(run, quiet=True))
    loaded = AutoModelForCausalLM.from_pretrained(
        run.gguf, gguf_file="model-f16.gguf", quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    assert (logits(loaded) - logits(merged)).abs().max() < 1e-2
    assert (logits(merged) - logits(load_base("tiny:llama", dtype="float32").model)).abs().max() > 0.1
    assert said["serve"][0] == f"llama-server -m {run.gguf}/model-f16.gguf"
    assert any("/v1/completions" in note for note in said["notes"])
    assert "{{ .Prompt }}" in (run.gguf / "Modelfile").read_text()


def test_a_plain_lora_says_what_serves_it(run_of):
    """Planted bugs caught: no line for a base that no server finds by name; another default limit."""
    run = run_of("dora")
    said = exported(run.path, "--to", "lora")
    assert said["serve"] == [f"llama-server -m tiny-llama.gguf --lora {run.lora}/adapter.gguf"]
    assert said["max_lost"] == 0.0005 and (run.lora / "adapter.gguf").is_file()
    card = (run.lora / "README.md").read_text()
    assert "llama-server -m tiny-llama.gguf --lora adapter.gguf" in card and str(run.path) not in card


def test_a_base_that_is_not_on_the_hub_is_named(tmp_path):
    """Planted bugs caught: no word on the base of a QDoRA, or on what to serve; a card that calls it `BASE`; a directory
    that servers could load, without a line; that directory's place in a published card.
    """
    for directory in ("made", "local"):
        (tmp_path / directory).mkdir()
    made = export_peft(train(tiny_recipe(tmp_path / "made", "qdora"), quiet=True), quiet=True)
    assert made.serve == [] and [line.rpartition("--to ")[2] for line in made.instead] == ["merged", "gguf"]
    card = (made.directory / "README.md").read_text()
    assert any("the base is tiny:llama, a random model" in note for note in made.content["notes"])
    assert "The base is tiny:llama" in card and "--to merged" in card and "BASE" not in card
    base = shutil.copytree(resolve("tiny:llama").directory, tmp_path / "my base")
    recipe = tiny_recipe(tmp_path / "local", "lora")
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"base": str(base)})})
    made = export_peft(train(recipe, quiet=True), quiet=True)
    assert made.serve[0].startswith(f"vllm serve '{base}' --enable-lora") and not made.instead
    card = (made.directory / "README.md").read_text()
    assert "from_pretrained('PATH/TO/my base'" in card and str(tmp_path) not in card.replace("PATH/TO", "")


def test_a_merged_directory_is_used_while_it_fits_the_adapter(run_of):
    """Planted bug caught: RUN/merged of an earlier adapter written as the run's model."""
    run = run_of("lora")
    merge(run, quiet=True)
    assert export_gguf(run, quiet=True).content["source"] == "merged directory"
    receipt = json.loads((run.merged / "merge.json").read_text())
    write_json(run.merged / "merge.json", receipt | {"adapter_sha256": "0" * 64})
    made = export_gguf(run, outtype="q8_0", quiet=True)
    assert made.content["source"] == "adapter, merged for this"
    assert (run.gguf / "model-q8_0.gguf").is_file() and not (run.gguf / "model-f16.gguf").exists()


def test_a_whole_model_is_written_from_where_it_lies(run_of):
    """Planted bug caught: mode full refused as having no adapter."""
    run = run_of("full")
    assert export_gguf(run, quiet=True).content["source"] == "model directory"
    with pytest.raises(UsageError, match="has no adapter"):
        export_peft(run, quiet=True)


def test_peft_loads_its_directory(run_of):
    """Planted bugs caught: the adapter's weights left out; no word that servers take no DoRA."""
    run = run_of("dora")
    made = export_peft(run, quiet=True)
    names = {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md", "export.json"}
    assert names <= {file.name for file in run.peft.iterdir()}
    model = PeftModel.from_pretrained(load_base("tiny:llama", dtype="float32").model, run.peft)
    merged = AutoModelForCausalLM.from_pretrained(merge(run, quiet=True))
    torch.testing.assert_close(logits(model), logits(merged), rtol=1e-3, atol=1e-3)
    assert AutoTokenizer.from_pretrained(run.peft).chat_template
    assert made.serve == [] and any("no DoRA adapter" in note for note in made.content["notes"])
    export_peft(run, quiet=True)  # replaces its own


def test_merged_is_kept_or_made(run_of):
    """Planted bug caught: merging again what is up to date."""
    run = run_of("lora")
    made = export_merged(run, quiet=True)
    assert made.serve[0] == f"vllm serve {run.merged}"
    before = (run.merged / "model.safetensors").stat().st_mtime_ns
    export_merged(run, quiet=True)
    assert (run.merged / "model.safetensors").stat().st_mtime_ns == before
    assert load_file(run.merged / "model.safetensors")
    assert json.loads((run.merged / "export.json").read_text())["receipt"]["rows"] == 24


def test_the_card(run_of):
    """Planted bugs caught: a place on this machine in it; the base's scores as the adapter's; a base that is no hub id
    named as one.
    """
    run = run_of("lora")
    common = {"data": "/secret/place/held-out.jsonl", "rows": 7, "metric": "exact_match", "perplexity": None}
    run.eval.mkdir(exist_ok=True)
    write_json(run.eval / "a.json", {**common, "variant": "adapter", "accuracy": 0.75})
    write_json(run.eval / "b.json", {**common, "variant": "base", "accuracy": 0.25})
    (run.eval / "c.json").write_text("[")
    export_peft(run, quiet=True)
    text = (run.peft / "README.md").read_text()
    found = ModelCard(text).data
    assert (found.license, found.library_name, found.base_model) == ("other", "peft", None)
    assert [(r.dataset_name, r.metric_type, r.metric_value) for r in found.eval_results] == [
        ("held-out.jsonl", "exact_match", 0.75)
    ]
    assert "| base | held-out.jsonl | exact_match | 0.25 | 7 |" in text
    assert "Fill in `license`" in text and "  rank: 4\n" in text
    assert "/secret" not in text and str(run.path.parent) not in text and "/tmp" not in text


def test_no_place_of_this_machine_is_told(tmp_path):
    """Planted bug caught: a base that is a directory named in full, in the card or in export.json."""
    base = shutil.copytree(resolve("tiny:llama").directory, tmp_path / "my-base")
    run = tiny_run(tmp_path / "data", "lora", base=str(base))
    for directory in (export_peft(run, quiet=True).directory, export_gguf(run, quiet=True).directory):
        for name in ("README.md", "export.json"):
            text = (directory / name).read_text()
            assert "my-base" in text and str(tmp_path) not in text


def test_the_card_of_a_hub_model(run_of, tmp_path, monkeypatch):
    """Planted bugs caught: no base_model for a hub id; the licence of the base's card not read."""
    run = run_of("lora")
    facts = json.loads((run.path / "run.json").read_text())
    write_json(run.path / "run.json", facts | {"base": facts["base"] | {"revision": "a" * 40}})
    (tmp_path / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    monkeypatch.setattr(card, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "README.md"))
    text = card.card_text(card.Card(find_trained(run), "merged", ["vllm serve ."]))
    found = ModelCard(text).data
    assert (found.license, found.base_model, found.base_model_relation) == ("llama3.2", "tiny:llama", "finetune")
    assert "    vllm serve .\n" in text


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_a_merge_is_taken_in_the_dtype_that_it_has(run_of, monkeypatch, capsys, form):
    """Planted bugs caught: a merge of another dtype than the recipe's made again; --dtype passed over; a merge that was
    compared with nothing taken in silence.
    """
    export = {"merged": export_merged, "gguf": export_gguf}[form]
    run = run_of("lora")
    merge(run, dtype="bfloat16", receipt=False, quiet=True)
    with monkeypatch.context() as patch:
        for maker in ("to_merged.merge", "to_gguf.carry_out"):
            patch.setattr(f"dorakit.export.{maker}", lambda *_, **__: pytest.fail("merged again"))
        notes = export(run).content["notes"]
        assert "merged/ is taken as it is: bfloat16, merged onto the weights that the adapter was trained on" in notes
        assert "it was merged with --no-receipt: nothing was compared with the live adapter" in notes
        assert "nothing was compared" in capsys.readouterr().err
        export(run, dtype="bfloat16", quiet=True)
    made = export(run, dtype="float32", quiet=True)
    if form == "merged":
        assert made.content["dtype"] == "float32"
        assert {t.dtype for t in load_file(run.merged / "model.safetensors").values()} == {torch.float32}
    else:
        assert made.content["source"] == "adapter, merged for this"


def test_a_merge_is_taken_onto_the_base_that_it_has(run_of, capsys):
    """Planted bugs caught: a merge onto the original weights made again where no base is asked for, taken where the other one
    is, or taken with no word on it.
    """
    run = run_of("qlora")
    merge(run, onto="original", quiet=True)
    assert export_gguf(run, output=run.path.parent / "gguf").content["onto"] == "original"
    assert "merged/ is taken as it is: float32, merged onto the original weights" in capsys.readouterr().err
    assert export_gguf(run, onto="trained", quiet=True).content["source"] == "adapter, merged for this"
    assert export_merged(run, onto="trained", quiet=True).content["onto"] == "trained"


def test_a_merge_is_copied(run_of, tmp_path, monkeypatch):
    """Planted bugs caught: merged again for another directory; another directory's files overwritten."""
    run = run_of("lora")
    merge(run, quiet=True)
    monkeypatch.setattr("dorakit.export.to_merged.merge", lambda *_, **__: pytest.fail("merged again"))
    made = export_merged(run, output=tmp_path / "out", quiet=True)
    assert made.directory == tmp_path / "out" and (tmp_path / "out" / "export.json").is_file()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (run.merged / "model.safetensors").read_bytes()
    assert not (run.merged / "export.json").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(UsageError, match="was not made by this command"):
        export_merged(run, output=tmp_path / "mine", quiet=True)


def test_the_rows_of_a_measure(run_of):
    """Planted bug caught: 0 rows beside a perplexity, where no metric was asked for and so none was answered."""
    run = run_of("lora")
    evaluate(str(run.path), limit=2, recipe=run.recipe_with(["evaluation.metric=none"]), quiet=True)
    assert [(m.metric, m.rows) for m in card._measures(run)] == [("perplexity", 2)]
    evaluate(str(run.path), limit=3, quiet=True)
    rows = {(m.metric, m.rows) for m in card._measures(run)}
    assert {("exact_match", 3), ("perplexity", 3)} <= rows


@pytest.mark.parametrize(("base", "ollama"), [("tiny:llama", True), ("tiny:qwen3", False), ("tiny:gemma2", True)])
def test_the_card_of_a_merged_model_serves_it(tmp_path, monkeypatch, base, ollama):
    """Planted bugs caught: vLLM's line alone; a snippet that fails; Ollama's import of a family that it has not; a GGUF file
    promised of a family that is not written here.
    """
    run = tiny_run(tmp_path / "data", "lora", ("training.max_steps=1",), base=base)
    made = export_merged(run, quiet=True)
    text = (made.directory / "README.md").read_text()
    assert "    vllm serve .\n    python -m sglang.launch_server --model-path .\n" in text
    assert ("    echo 'FROM .' > Modelfile && ollama create run-lora\n" in text) == ollama
    assert any(line.startswith(f"cd {made.directory} && ") for line in made.serve) == ollama
    assert ("`dorakit export RUN --to gguf`" in text) == (base != "tiny:gemma2")
    assert "python convert_hf_to_gguf.py . --outfile model.gguf" in text
    python = re.search(r"In Python:\n\n((?:    .*\n|\n)+)", text)[1]
    monkeypatch.chdir(made.directory)
    spoken = []
    exec(textwrap.dedent(python), {"print": spoken.append})
    assert len(spoken) == 1 and isinstance(spoken[0], str)


def test_the_card_of_conversations_asks_with_their_template(tmp_path, monkeypatch):
    """Planted bug caught: a bare prompt for a model that learnt conversations."""
    recipe = tiny_recipe(tmp_path, "lora", ("training.max_steps=1",))
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": str(n)}]} for n in range(9)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chats = ("training.max_steps=1", "data.train.0.format=chat", "data.validation.rows=1", "evaluation.metric=none")
    made = export_merged(train(Recipe.from_yaml(recipe.origin.path, list(chats)), quiet=True), quiet=True)
    python = re.search(r"In Python:\n\n((?:    .*\n|\n)+)", (made.directory / "README.md").read_text())[1]
    assert "apply_chat_template" in python
    monkeypatch.chdir(made.directory)
    exec(textwrap.dedent(python), {"print": lambda _: None})


@pytest.mark.parametrize("mode", ["lora", "dora", "full"])
def test_every_command_of_a_card_parses(run_of, mode):
    """Planted bug caught: a command in a card with an option or a form that there is not."""
    run = run_of(mode)
    cards = [export_gguf(run, quiet=True)]
    if mode != "full":
        cards += [export_merged(run, quiet=True), export_peft(run, quiet=True)]
        cards += [export_lora(run, max_rank=64, max_lost=1.0, quiet=True)]
    found = {command for made in cards for command in commands_in((made.directory / "README.md").read_text())}
    assert "dorakit eval RUN" in found
    for command in found:
        parse(command)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--to", "peft", "--type", "f16"], UsageError, "--type is read with --to gguf, not with --to peft"),
        (["--to", "gguf", "--max-rank", "8"], UsageError, "--max-rank is read with --to lora"),
        (
            ["--to", "lora", "--dtype", "float32"],
            UsageError,
            "--dtype is read with --to merged or gguf, not with --to lora",
        ),
        (["--to", "gguf", "--base-model", "tiny:llama"], UsageError, "--base-model goes with an adapter directory"),
        (["--to", "peft", "--onto", "original"], UsageError, "--onto is read with --to merged or gguf or lora"),
        (["--to", "gguf", "--output", "{run}/adapter"], UsageError, "is what the result is made from"),
        (
            ["--to", "gguf", "--output", "{run}/rows"],
            UsageError,
            "rows lies in .*, which is what the result is made from",
        ),
    ],
)
def test_what_is_refused(trained, arguments, error, message):
    """Planted bug caught: an option that nothing reads is passed over; a directory of the run is overwritten."""
    run = trained("lora")
    arguments = [argument.format(run=run.path) for argument in arguments]
    with pytest.raises(error, match=message):
        CliRunner().invoke(app, ["export", str(run.path), *arguments], catch_exceptions=False, standalone_mode=False)
    assert (run.adapter / "adapter_config.json").is_file()


def test_no_run_and_no_result(run_of, tmp_path):
    """Planted bug caught: a base model, or a run in training, taken for a finished run."""
    run = run_of("lora")
    with pytest.raises(UsageError, match="model is a whole model, not a run or an adapter directory"):
        export_gguf(shutil.copytree(resolve("tiny:llama").directory, tmp_path / "model"), quiet=True)
    with pytest.raises(RunError, match="nothing to export: no such run"):
        export_gguf("nowhere", quiet=True)
    shutil.rmtree(run.adapter)
    with pytest.raises(RunError, match="has lost its result"):
        export_gguf(run, quiet=True)


def test_an_unknown_family_is_refused_before_merging(run_of, monkeypatch):
    """Planted bug caught: minutes of merging before the refusal."""
    run = run_of("lora")
    monkeypatch.setattr("dorakit.export.gguf_file.FAMILIES", {"qwen2": 0})
    monkeypatch.setattr("dorakit.export.to_gguf.carry_out", lambda *_, **__: pytest.fail("merged"))
    with pytest.raises(ModelError) as refused:
        export_gguf(run, quiet=True)
    assert "known are qwen2\n" in str(refused.value)
    assert f"`dorakit export {run.path} --to merged`" in str(refused.value)
    assert f"convert_hf_to_gguf.py {run.merged}" in str(refused.value)
    assert not run.gguf.exists() and isinstance(refused.value, DorakitError)


def test_a_copy_that_is_not_the_adapter(run_of, monkeypatch):
    """Planted bug caught: the digest of the adapter written beside whatever the disk made of it."""
    run, copy = run_of("dora"), shutil.copy

    def damaged(source, target):
        file = Path(copy(source, target))
        if file.is_dir():
            file /= Path(source).name
        if file.suffix == ".safetensors":
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(bytes(content))

    monkeypatch.setattr(shutil, "copy", damaged)
    with pytest.raises(GateError, match="as it was copied is not the adapter's"):
        export_peft(run, quiet=True)
    assert not run.peft.exists()
