import json
import re

import pytest
import yaml
from typer.testing import CliRunner

from dorakit.cli.app import app
from dorakit.errors import RecipeError, UsageError
from dorakit.recipe.importing.imported import import_recipe
from dorakit.recipe.schema import Recipe

AXOLOTL = """
base_model: org/model
adapter: qlora
load_in_4bit: true
peft_use_dora: true
datasets: [{path: rows.jsonl, ds_type: json, type: chat_template, field_messages: turns}]
val_set_size: 0.05
sequence_len: 2048
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_target_linear: true
micro_batch_size: 2
gradient_accumulation_steps: 4
evals_per_epoch: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
loss_watchdog_threshold: 5.0
wandb_project:
"""
# Rows per device are packed rows there, and documents here.
ALWAYS_LEFT = {"evals_per_epoch", "loss_watchdog_threshold", "micro_batch_size"}
LLAMAFACTORY = """
model_name_or_path: org/model
stage: sft
finetuning_type: lora
quantization_bit: 4
double_quantization: false
lora_rank: 8
lora_target: all
dataset: mine,theirs
template: llama3
max_samples: 100
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
bf16: true
"""
TORCHTUNE = """
model:
  _component_: torchtune.models.llama3.lora_llama3_8b
  lora_attn_modules: [q_proj, output_proj]
  apply_lora_to_mlp: True
  lora_rank: 8
  lora_alpha: 16
  use_dora: True
checkpointer: {checkpoint_dir: /models/llama/original/, model_type: LLAMA3}
dataset: {_component_: torchtune.datasets.alpaca_cleaned_dataset}
optimizer: {_component_: torch.optim.AdamW, lr: 3e-4, weight_decay: 0.01}
lr_scheduler: {_component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup, num_warmup_steps: 100}
batch_size: 2
gradient_accumulation_steps: 8
dtype: bf16
"""
TRL = """
model_name_or_path: org/model
dataset_name: org/rows
use_peft: true
lora_target_modules: [q_proj, v_proj]
learning_rate: 2e-4
max_steps: -1
eval_steps: 0.1
"""
UNSLOTH = """
model: org/model
data: {local_dataset: [a.jsonl, b.jsonl], format_type: alpaca}
training: {load_in_4bit: true, num_epochs: 1, train_on_completions: true}
lora: {use_dora: true}
"""


def imported(tmp_path, text, **options):
    file = tmp_path / "theirs.yml"
    file.write_text(text)
    result = import_recipe(file, **options)
    (tmp_path / "recipe.yaml").write_text(result.text)
    return result, Recipe.from_yaml(str(tmp_path / "recipe.yaml"))


def reasons(result):
    return {item.key: item.reason for item in result.left}


def test_axolotl(tmp_path):
    """Planted bugs caught: the batch without its accumulation; DoRA read as LoRA; times per epoch taken for steps."""
    result, recipe = imported(tmp_path, AXOLOTL)
    assert result.toolkit == "axolotl"
    assert recipe.adapter.mode == "qdora" and (recipe.adapter.rank, recipe.adapter.alpha) == (32, 16)
    assert recipe.adapter.target_modules == "all-linear"
    assert (recipe.training.batch_size, recipe.training.micro_batch_size) == (8, 2)
    assert recipe.training.epochs == 1.0 and recipe.optimizer.warmup_ratio == 0.03  # axolotl's defaults, not ours
    assert recipe.training.eval_every == 100
    assert recipe.data.train[0].format == "chat" and recipe.data.train[0].columns == {"messages": "turns"}
    assert recipe.data.packing and recipe.data.max_seq_len == 2048 and recipe.data.validation.fraction == 0.05
    assert recipe.optimizer.name == "adamw_8bit"
    assert set(reasons(result)) == ALWAYS_LEFT
    assert result.empty == ["bf16", "wandb_project"]


@pytest.mark.parametrize(
    ("lines", "trackers", "left"),
    [
        ("wandb_project: mine", ["wandb"], {"wandb_project"}),
        ("report_to: [tensorboard, swanlab]\nuse_mlflow: true", ["tensorboard", "mlflow"], {"report_to"}),
        ("report_to: wandb\nwandb_project: mine\nwandb_entity: us", ["wandb"], {"wandb_project", "wandb_entity"}),
        ("report_to: none\nuse_wandb: false", [], set()),
        ("metric_logger: {_component_: torchtune.training.metric_logging.WandBLogger}", ["wandb"], set()),
        ("logging: {enable_tensorboard: true, enable_wandb: false}", ["tensorboard"], set()),
    ],
)
def test_trackers(tmp_path, lines, trackers, left):
    """Planted bug caught: a name without a counterpart let go in silence."""
    text = AXOLOTL.replace("wandb_project:\n", lines + "\n")
    result, recipe = imported(tmp_path, text, toolkit="axolotl")
    assert recipe.logging.to == trackers
    assert set(reasons(result)) - ALWAYS_LEFT == left


def test_llamafactory(tmp_path, monkeypatch):
    """Planted bugs caught: alpha of a fixed default; `false` passed over where it asks for something."""
    (tmp_path / "data").mkdir()
    entry = {"file_name": "mine.json", "formatting": "sharegpt", "columns": {"messages": "talk"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    monkeypatch.chdir(tmp_path)
    result, recipe = imported(tmp_path, LLAMAFACTORY)
    assert recipe.adapter.mode == "qlora" and (recipe.adapter.rank, recipe.adapter.alpha) == (8, 16)
    assert recipe.quantization.double_quant is False
    mine, theirs = recipe.data.train
    assert mine.path == "data/mine.json" and mine.format == "chat" and mine.columns == {"messages": "talk"}
    assert theirs.prompt == "chat" and mine.limit == theirs.limit == 100
    assert (recipe.training.batch_size, recipe.optimizer.schedule) == (8, "linear") and recipe.data.max_seq_len == 2048
    assert "data.train" in reasons(result)["dataset"] and "chat_template" in reasons(result)["template"]


def test_torchtune(tmp_path):
    result, recipe = imported(tmp_path, TORCHTUNE)
    assert recipe.adapter.mode == "dora" and recipe.model.base == "/models/llama"
    assert recipe.adapter.target_modules == ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert recipe.optimizer.weight_decay == 0.01 and recipe.optimizer.learning_rate == 3e-4
    assert recipe.optimizer.warmup_steps == 100 and recipe.training.batch_size == 16
    assert recipe.data.train[0].path == "yahma/alpaca-cleaned" and recipe.data.train_on == "all"
    assert recipe.model.architecture is None and "checkpointer.model_type" in reasons(result)


def test_trl_and_unsloth(tmp_path):
    result, recipe = imported(tmp_path, TRL)
    assert recipe.adapter.mode == "lora" and recipe.adapter.target_modules == ["q_proj", "v_proj"]
    assert recipe.training.max_steps is None and recipe.data.train_on == "all"
    assert recipe.optimizer.learning_rate == 2e-4 and recipe.training.batch_size == 8
    assert set(reasons(result)) == {"dataset_name", "eval_steps"}
    result, recipe = imported(tmp_path, UNSLOTH)
    assert recipe.adapter.mode == "qdora" and (recipe.adapter.rank, recipe.adapter.alpha) == (64, 16)
    assert [source.path.rsplit("/", 1)[-1] for source in recipe.data.train] == ["a.jsonl", "b.jsonl"]
    assert recipe.training.batch_size == 8 and recipe.training.seed == 3407 and recipe.optimizer.weight_decay == 0.01


@pytest.mark.parametrize("text", [AXOLOTL, LLAMAFACTORY, TORCHTUNE, TRL, UNSLOTH])
def test_no_key_is_dropped_in_silence(tmp_path, text):
    """Every key is the source of a setting, listed with a reason, or asked for nothing.

    Planted bug caught: a key taken from the ledger and thrown away.
    """
    result, _ = imported(tmp_path, text + "somebody_elses_key: 7\nlearning_rte: 1e-3\n")
    assert {"somebody_elses_key", "learning_rte"} <= set(reasons(result))
    told = " ".join([*result.carried, *result.carried.values(), *reasons(result), *result.empty])
    for key in keys_of(yaml.safe_load(text)):
        assert key in told, f"{key} is in none of: {told}"


def keys_of(content):
    for key, value in content.items():
        if isinstance(value, dict):
            yield from keys_of(value)
        elif key not in ("_component_", "stage"):
            yield key


@pytest.mark.parametrize("text", [AXOLOTL, LLAMAFACTORY, TORCHTUNE, TRL, UNSLOTH], ids=lambda text: text.split()[0])
@pytest.mark.parametrize("half", [0, 1], ids=["whole", "every second key"])
def test_only_keys_of_the_file_are_named(tmp_path, text, half):
    """Planted bug caught: `use_dora`, `gradient_accumulation_steps` or `data.format_type` named of a file without them."""
    whole = yaml.safe_load(text)
    first, *others = list(whole)
    content = whole if half == 0 else {key: whole[key] for key in [first, *others[::2]]}
    file = tmp_path / "theirs.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    toolkit = {AXOLOTL: "axolotl", LLAMAFACTORY: "llamafactory", TORCHTUNE: "torchtune", TRL: "trl", UNSLOTH: "unsloth"}
    found = import_recipe(file, toolkit=toolkit[text])
    said = [item.key for item in found.left] + found.empty
    said += [word for source in found.carried.values() for word in re.findall(r"[\w.]+", source) if "_" in word]
    written = file.read_text(encoding="utf-8")
    assert [word for word in said if word.rsplit(".", 1)[-1] not in written and word != "dataset_info.json"] == []


def test_a_value_that_does_not_fit_is_listed(tmp_path):
    result, recipe = imported(tmp_path, AXOLOTL + "max_grad_norm: often\n", toolkit="axolotl")
    assert recipe.training.max_grad_norm == 1.0 and "got text 'often'" in reasons(result)["max_grad_norm"]


def test_what_the_mode_does_not_read_is_listed(tmp_path):
    """Planted bug caught: settings carried over that the recipe then refuses, or dropped with the mode."""
    full = AXOLOTL.replace("adapter: qlora\n", "").replace("load_in_4bit: true\n", "")
    result, recipe = imported(tmp_path, full)
    assert recipe.adapter.mode == "full"
    told = reasons(result)
    assert "not read in mode full" in told["lora_r"] and "not read in mode full" in told["lora_alpha"]
    assert any("lora_target_linear" in key for key in told)
    result, recipe = imported(tmp_path, LLAMAFACTORY.replace("quantization_bit: 4\n", ""))
    assert recipe.adapter.mode == "lora" and "not read in mode lora" in reasons(result)["double_quantization"]
    split = AXOLOTL.replace("type: chat_template", "type: chat_template, split: train")
    assert "not read with a single file" in reasons(imported(tmp_path, split)[0])["data.train.0.split"]


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("gradient_accumulation_steps: 4", "gradient_accumulation_steps: auto", "gradient_accumulation_steps"),
        ("val_set_size: 0.05", "val_set_size: some", "val_set_size"),
        ("lora_r: 32", "lora_r: high", "lora_r"),
        ("datasets: [", "datasets: [rows.jsonl, ", "datasets"),
    ],
)
def test_a_value_of_another_form_is_listed(tmp_path, old, new, key):
    """Planted bug caught: a list, a text or a number taken for granted, and a traceback where it is another thing."""
    result, _ = imported(tmp_path, AXOLOTL.replace(old, new))
    assert key in reasons(result)


def test_a_catalogue_that_is_no_json(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"dataset_info\.json.*not JSON"):
        imported(tmp_path, LLAMAFACTORY)


def test_paths_start_from_the_working_directory(tmp_path, monkeypatch):
    """Planted bug caught: rows looked for beside the recipe, where the other toolkit looked in the working directory."""
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.yml").write_text(AXOLOTL)
    outcome = CliRunner().invoke(app, ["import", "theirs.yml", "--output", "recipes/mine.yaml"])
    assert outcome.exit_code == 0, outcome.output
    assert "not carried over: loss_watchdog_threshold: 5.0 (dorakit has no such setting)" in outcome.output
    recipe = Recipe.from_yaml("recipes/mine.yaml")
    assert recipe.data.root == str(tmp_path)
    again = CliRunner().invoke(app, ["import", "theirs.yml", "--output", "recipes/mine.yaml"])
    assert isinstance(again.exception, UsageError) and "exists" in str(again.exception)


def test_what_cannot_be_imported(tmp_path):
    file = tmp_path / "theirs.yml"
    file.write_text("a: 1\n")
    with pytest.raises(UsageError, match="axolotl, llamafactory, torchtune, trl, unsloth"):
        import_recipe(file)
    file.write_text("a: &x 1\nb: *x\n")
    with pytest.raises(RecipeError, match="anchor '&x' cannot be used here"):
        import_recipe(file)


TUNE = TORCHTUNE.replace("batch_size: 2\n", "batch_size: 2\nloss: {_component_: torchtune.rlhf.loss.DPOLoss}\n")
PAIRS = "[{path: org/pairs, type: chat_template.argilla}]"
OTHER_OBJECTIVES = [
    *((AXOLOTL + f"rl: {name}\n", f"rl: {name}") for name in ("dpo", "ipo", "kto", "orpo", "simpo", "grpo")),
    (AXOLOTL + "reward_model: true\n", "reward_model: true"),
    (AXOLOTL + f"test_datasets: {PAIRS}\n", "test_datasets.0.type: chat_template.argilla"),
    (AXOLOTL.replace("type: chat_template", "type: chatml.intel"), "datasets.0.type: chatml.intel"),
    (AXOLOTL.replace("type: chat_template", "type: {field_chosen: a}"), "datasets.0.type.field_chosen: a"),
    *((LLAMAFACTORY.replace("sft", name), f"stage: {name}") for name in ("dpo", "kto", "rm", "ppo")),
    (TUNE, "loss._component_: torchtune.rlhf.loss.DPOLoss"),
    (
        TUNE.replace("rlhf.loss.DPOLoss", "modules.loss.ForwardKLLoss"),
        "loss._component_: torchtune.modules.loss.ForwardKLLoss",
    ),
    (TORCHTUNE.replace("alpaca_cleaned", "stack_exchange_paired"), "dataset._component_: torchtune.datasets"),
    (TRL + "beta: 0.1\n", "beta: 0.1"),
    (TRL + "loss_type: sigmoid\n", "loss_type: sigmoid"),
    (TRL + "loss_type: [sigmoid, sft]\n", "loss_type"),
    (TRL + "desirable_weight: 1.0\n", "desirable_weight: 1.0"),
    (TRL + "cpo_alpha: 0.5\n", "cpo_alpha: 0.5"),
    (TRL + "num_generations: 8\n", "num_generations: 8"),
    (TRL + "center_rewards_coefficient: 0.01\n", "center_rewards_coefficient: 0.01"),
]


@pytest.mark.parametrize(("text", "named"), OTHER_OBJECTIVES)
def test_another_objective_is_refused(tmp_path, monkeypatch, text, named):
    """Planted bug caught: a preference configuration that becomes a recipe for supervised fine-tuning, with exit code 0."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.yml").write_text(text)
    outcome = CliRunner().invoke(app, ["import", "theirs.yml"])
    assert isinstance(outcome.exception, RecipeError) and outcome.exception.exit_code == 2
    (problem,) = outcome.exception.problems
    assert named in problem.message and "another objective than supervised fine-tuning" in problem.message
    key = named.partition(":")[0].rpartition(".")[2]
    assert problem.file == "theirs.yml" and text.split("\n")[problem.line - 1][problem.column - 1 :].startswith(key)
    assert problem.hint == (
        "dorakit trains by imitation of rows only: there is no preference, reward or distillation objective yet"
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "theirs.yml"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (AXOLOTL + "rl:\nreward_model: false\n", set()),
        (AXOLOTL + "rl: none\nrl_beta: 0.1\n", {"rl_beta"}),
        (LLAMAFACTORY + "pref_beta: 0.1\n", {"pref_beta"}),
        (LLAMAFACTORY.replace("sft", "pt"), set()),
        (TRL + "loss_type: dft\n", {"loss_type"}),
    ],
)
def test_settings_of_an_objective_that_is_not_chosen(tmp_path, text, left):
    """Planted bug caught: a configuration for supervised fine-tuning refused for a key that has no effect in it."""
    result, _ = imported(tmp_path, text)
    assert left <= set(reasons(result))
