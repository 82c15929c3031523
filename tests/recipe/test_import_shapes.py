"""What public configurations of other toolkits look like, and what each trains there.

A shape is a toolkit, its keys, what the recipe must say, and the keys that must be listed. Each stands for a kind.
"""

import json

import pytest
from typer.testing import CliRunner

from dorakit.cli.app import app
from dorakit.errors import RecipeError, UsageError
from dorakit.recipe.importing.imported import import_recipe
from dorakit.recipe.resolved import plain_settings
from dorakit.recipe.schema import Recipe

AXOLOTL = "base_model: org/model\ndatasets: [{path: org/rows, type: chat_template}]\nlearning_rate: 2e-4\n"
AXOLOTL_ROWS = "base_model: org/model\nlearning_rate: 2e-4\nsequence_len: 4096\n"
FACTORY = "model_name_or_path: org/model\nstage: sft\ndataset: talk\ntemplate: qwen\n"
TUNE = """
tokenizer: {_component_: torchtune.models.llama3.llama3_tokenizer, max_seq_len: 2048}
checkpointer: {checkpoint_dir: /models/llama}
dataset: {_component_: torchtune.datasets.chat_dataset, source: org/rows, conversation_column: messages}
optimizer: {_component_: torch.optim.AdamW, lr: 2e-5}
"""
TRL = "model_name_or_path: org/model\ndataset_name: org/rows\n"
SLOTH = "model: org/model\ndata: {dataset: org/rows, format_type: sharegpt}\n"

SHAPES = {
    # Booleans and nulls, as PyYAML has them
    "axolotl lora, yes and no": (
        AXOLOTL + "adapter: lora\nload_in_4bit: no\npeft_use_dora: Off\ntrain_on_inputs: NO\nsample_packing: yes\n",
        {"adapter.mode": "lora", "data.train_on": "completion", "data.packing": True},
        {"micro_batch_size"},
    ),
    "axolotl full, adapter left blank": (
        AXOLOTL + "adapter:\nlora_r:\nval_set_size:\nmax_grad_norm:\nnum_epochs: 1_0\n",
        {"adapter.mode": "full", "training.max_grad_norm": 1.0, "training.epochs": 10, "optimizer.warmup_ratio": 0.03},
        set(),
    ),
    "LLaMA-Factory, no clipping": (
        FACTORY + "max_grad_norm: null\npure_bf16: true\n",
        {"training.max_grad_norm": 0.0, "model.dtype": "bfloat16"},
        set(),
    ),
    "torchtune, nothing said of clipping or decay": (
        TUNE + "model: {_component_: torchtune.models.qwen2.qwen2_7b}\nclip_grad_norm: null\n",
        {"adapter.mode": "full", "training.max_grad_norm": 0.0, "optimizer.weight_decay": 0.01},
        set(),
    ),
    "TRL, no limit of length": (TRL + "max_length: null\n", {"data.overlength": "error"}, {"max_length"}),
    # Targets and adapters
    "axolotl, targets as an expression": (
        AXOLOTL + "adapter: qlora\nlora_target_modules: 'model.layers.[\\d]+.(mlp|self_attn).(up|q)_proj'\n",
        {"adapter.mode": "qlora", "adapter.target_modules": "model.layers.[\\d]+.(mlp|self_attn).(up|q)_proj"},
        set(),
    ),
    "axolotl, the head among the targets": (
        AXOLOTL + "adapter: lora\nlora_target_modules: [q_proj, lm_head]\nlora_modules_to_save: [embed_tokens]\n",
        {"adapter.target_modules": ["q_proj"], "adapter.modules_to_save": ["embed_tokens"]},
        {"lora_target_modules"},
    ),
    "axolotl, bitsandbytes by peft's section": (
        AXOLOTL + "adapter: lora\npeft: {backend: bnb, weight_dtype: nf4}\npeft_init_lora_weights: pissa\n",
        {"adapter.mode": "qlora"},
        {"peft_init_lora_weights"},
    ),
    "LLaMA-Factory, lists with commas": (
        FACTORY + "lora_target: q_proj, v_proj\nadditional_target: embed_tokens,lm_head\nnew_special_tokens: <a>,<b>\n",
        {
            "adapter.target_modules": ["q_proj", "v_proj"],
            "adapter.modules_to_save": ["embed_tokens", "lm_head"],
            "model.added_tokens": ["<a>", "<b>"],
        },
        set(),
    ),
    "LLaMA-Factory, new tokens are trained": (
        FACTORY + "new_special_tokens: <a>\n",
        {"adapter.modules_to_save": ["embed_tokens", "lm_head"]},
        set(),
    ),
    "LLaMA-Factory, DoRA with LoRA+ and PiSSA": (
        FACTORY + "use_dora: true\nlora_rank: 16\nloraplus_lr_ratio: 16.0\npissa_init: true\n",
        {
            "adapter.mode": "dora",
            "adapter.alpha": 32,
            "adapter.magnitude.learning_rate_ratio": 1.0,
            "optimizer.rule": "lora-plus",
            "optimizer.lora_plus.ratio": 16.0,
        },
        {"loraplus_lr_ratio", "pissa_init"},
    ),
    "TRL, a rank that is its default and no adapter": (
        TRL + "peft_lora_r: 16\n",
        {"adapter.mode": "full"},
        {"peft_lora_r"},
    ),
    "axolotl, LoRA+ and no adapter": (
        "base_model: org/model\nlearning_rate: 1e-4\nloraplus_lr_ratio: 4\ndatasets: [{path: a.jsonl, type: alpaca}]\n",
        {"adapter.mode": "full"},
        {"loraplus_lr_ratio"},
    ),
    "LLaMA-Factory, eight bits": (FACTORY + "quantization_bit: 8\n", {"adapter.mode": "lora"}, {"quantization_bit"}),
    "TRL, PEFT chooses the targets": (
        TRL + "use_peft: true\nload_in_4bit: true\nlora_target_modules: null\n",
        {
            "adapter.target_modules": ["q_proj", "v_proj"],
            "adapter.dropout": 0.05,
            "quantization.double_quant": False,
        },
        set(),
    ),
    "TRL, one target that is a word": (
        TRL + "use_peft: true\nlora_target_modules: [all-linear]\nlora_task_type: CAUSAL_LM\nuse_rslora: true\n",
        {"adapter.target_modules": "all-linear", "adapter.rslora": True},
        set(),
    ),
    "TRL, FP4": (
        TRL + "use_peft: true\nload_in_4bit: true\nbnb_4bit_quant_type: fp4\n",
        {"adapter.mode": "qlora"},
        {"bnb_4bit_quant_type"},
    ),
    "PEFT's script": (
        TRL
        + "use_peft_lora: True\nuse_4bit_quantization: True\nuse_nested_quant: True\nlora_target_modules: all-linear\n"
        'dataset_text_field: content\nsplits: "train,test"\neval_strategy: epoch\n',
        {
            "adapter.mode": "qlora",
            "quantization.double_quant": True,
            "data.train.0.columns": {"text": "content"},
            "data.train.0.split": "train",
            "data.validation.path": "org/rows",
            "data.validation.split": "test",
        },
        {"eval_strategy"},
    ),
    "torchtune QDoRA": (
        TUNE + "model:\n  _component_: torchtune.models.llama3.qlora_llama3_8b\n  use_dora: True\n"
        "  lora_attn_modules: [q_proj, output_proj]\n  apply_lora_to_output: True\nseed: null\n",
        {"adapter.mode": "qdora", "adapter.target_modules": ["q_proj", "o_proj"], "data.overlength": "truncate"},
        {"model.apply_lora_to_output"},
    ),
    # Rows
    "axolotl, files of a loader": (
        AXOLOTL_ROWS + "datasets: [{path: json, data_files: [a.jsonl, b.jsonl], type: alpaca}]\n",
        {"data.train.0.path": "a.jsonl", "data.train.1.path": "b.jsonl", "data.train.1.format": "instruction"},
        set(),
    ),
    "axolotl, a prompt and columns of its own": (
        AXOLOTL_ROWS + "datasets:\n  - path: org/rows\n    name: en\n    split: 'train[:90%]'\n    type:\n"
        "      field_instruction: q\n      field_output: a\n      format: '[INST] {instruction} [/INST]'\n"
        "      system_prompt: ''\n      no_input_format: '{instruction}'\n",
        {
            "data.train.0.columns": {"instruction": "q", "output": "a"},
            "data.train.0.prompt": "[INST] {instruction} [/INST]",
            "data.train.0.name": "en",
            "data.train.0.split": "train[:90%]",
        },
        {"datasets.type.no_input_format"},
    ),
    "axolotl, turns in other words": (
        AXOLOTL_ROWS + "datasets:\n  - path: org/rows\n    type: chat_template\n    field_messages: talk\n"
        "    message_property_mappings: {role: from, content: value}\n    roles_to_train: [assistant, tool]\n"
        "    train_on_eos: turn\n    chat_template: chatml\n",
        {"data.train.0.columns": {"messages": "talk"}, "data.train.0.format": "chat"},
        {"datasets.roles_to_train", "datasets.chat_template"},
    ),
    "axolotl, tests by name and split": (
        AXOLOTL
        + "test_datasets: [{path: org/rows, split: test, type: chat_template}, {path: org/more}]\nval_set_size: 0\n",
        {"data.validation.path": "org/rows", "data.validation.split": "test"},
        {"test_datasets"},
    ),
    "axolotl, continued pretraining": (
        AXOLOTL_ROWS
        + "pretraining_dataset: [{path: org/web, name: en, text_column: body, type: pretrain}]\nmax_steps: 50\n",
        {
            "data.train.0.format": "text",
            "data.train.0.columns": {"text": "body"},
            "data.train_on": "all",
            "training.max_steps": 50,
        },
        set(),
    ),
    "LLaMA-Factory, a catalogue": (
        FACTORY.replace("talk", "talk,asked") + "eval_dataset: held\nmax_samples: 50\nval_size: 0.1\n",
        {
            "data.train.0.path": "org/talk",
            "data.train.0.name": "en",
            "data.train.0.split": "train_sft",
            "data.train.0.limit": 20,
            "data.train.0.columns": {"messages": "turns", "system": "persona"},
            "data.train.1.path": "data/asked.json",
            "data.train.1.columns": {"history": "before"},
            "data.train.1.limit": 50,
            "data.validation.path": "org/held",
            "data.validation.split": "train",
            "data.max_seq_len": 2048,
            "data.overlength": "truncate",
        },
        {"dataset talk.tags.role_tag", "template", "val_size"},
    ),
    "LLaMA-Factory, pretraining": (
        FACTORY.replace("sft", "pt"),
        {"data.train.0.format": "text", "data.train_on": "all", "data.packing": True},
        {"stage"},
    ),
    "TRL, a mixture": (
        "model_name_or_path: org/model\ndataset_mixture:\n  datasets:\n"
        "    - {id: org/one, config: default, split: train_sft, columns: [messages], weight: 0.5}\n    - {id: org/two}\n"
        "  seed: 0\n  test_split_size: 1000\nassistant_only_loss: true\n",
        {
            "data.train.0.path": "org/one",
            "data.train.0.name": "default",
            "data.train.0.weight": 0.5,
            "data.train.1.path": "org/two",
            "data.validation.rows": 1000,
            "data.train_on": "completion",
            "training.seed": 42,
        },
        {"dataset_mixture.seed"},
    ),
    "TRL, the mixer of older handbooks": (
        "model_name_or_path: org/model\ndataset_mixer:\n  org/none: 0\n  org/name.v1: 0.25\n"
        "dataset_splits: [train_sft, test_sft]\n",
        {
            "data.train.0.path": "org/name.v1",
            "data.train.0.split": "train_sft",
            "data.train.0.weight": 0.25,
            "data.validation.path": "org/none",
            "data.validation.split": "test_sft",
        },
        {"dataset_mixer", "data.train.weight", "dataset_splits"},
    ),
    "TRL, its own list": (
        "model_name_or_path: org/model\ndatasets: [{path: org/rows, name: en, columns: [prompt, completion]}]\n",
        {"data.train.0.format": "completion", "data.train.0.name": "en", "data.train_on": "completion"},
        set(),
    ),
    "torchtune, two sources and one to validate with": (
        TUNE.replace("dataset: {", "dataset_old: {") + "model: {_component_: torchtune.models.gemma.lora_gemma_2b}\n"
        "dataset:\n  - {_component_: torchtune.datasets.instruct_dataset, source: json, data_files: a.json,"
        " column_map: {input: q, output: a}}\n  - {_component_: torchtune.datasets.slimorca_dataset, packed: True}\n"
        "dataset_val: {_component_: torchtune.datasets.instruct_dataset, source: json, data_files: b.json,"
        " column_map: {input: q, output: a}}\n",
        {
            "data.train.0.columns": {"prompt": "q", "completion": "a"},
            "data.train.1.format": "chat",
            "data.packing": True,
            "data.validation.path": "b.json",
        },
        {"batch_size"},
    ),
    "unsloth, alpaca and a text of targets": (
        "model: org/model\ndata: {local_dataset: [a.jsonl], format_type: alpaca}\ntraining: {load_in_4bit: off}\n"
        'lora: {target_modules: "q_proj,v_proj", finetune_mlp_modules: true, use_loftq: true}\n'
        "logging: {enable_wandb: false, wandb_project: mine}\n",
        {"adapter.mode": "lora", "data.train.0.format": "instruction", "adapter.rank": 64, "logging.to": []},
        {"lora.use_loftq", "logging.wandb_project"},
    ),
    # Steps, schedules, optimizers, dtypes
    "TRL, max_steps over epochs": (
        TRL + "max_steps: 60\nnum_train_epochs: 1\nsave_strategy: epoch\nsave_steps: 100\n",
        {"training.max_steps": 60, "training.epochs": 60.0},
        {"num_train_epochs", "save_strategy", "save_steps"},
    ),
    "unsloth, max_steps over no epochs": (
        SLOTH
        + "training: {max_steps: 30, num_epochs: 0, warmup_ratio: 0.1, optim: adamw_8bit, gradient_checkpointing: true}\n",
        {"training.max_steps": 30, "training.epochs": 30.0, "optimizer.warmup_ratio": 0.1, "data.max_seq_len": 2048},
        {"training.num_epochs"},
    ),
    "torchtune, steps of one epoch": (
        TUNE
        + "model: {_component_: torchtune.models.llama3.lora_llama3_8b}\nepochs: 1\nmax_steps_per_epoch: 25\nshuffle: False\n"
        "loss: {_component_: torchtune.modules.loss.CEWithChunkedOutputLoss}\nlogs: ${checkpointer.checkpoint_dir}/x\n",
        {"training.max_steps": 25, "optimizer.schedule": "constant"},
        {"logs", "shuffle"},
    ),
    "TRL, constant has no warmup": (
        TRL + "lr_scheduler_type: constant\nwarmup_ratio: 0.03\noptim: paged_adamw_32bit\nmax_grad_norm: 0.3\n",
        {"optimizer.schedule": "constant", "optimizer.warmup_ratio": 0.0, "optimizer.name": "paged_adamw_32bit"},
        {"warmup_ratio"},
    ),
    "TRL, a schedule with a floor": (
        TRL + "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.1}\nwarmup_steps: 0.1\n",
        {"optimizer.schedule": "cosine", "optimizer.warmup_ratio": 0.1},
        {"lr_scheduler_type", "lr_scheduler_kwargs.min_lr_rate"},
    ),
    "axolotl, no such optimizer, and half precision": (
        AXOLOTL + "optimizer: muon\nfp16: true\nbf16: false\nwarmup_steps: 0\nadam_beta2: 0.95\nweight_decay: 0.1\n"
        "neftune_noise_alpha: 5\nseed: 7\ndata_seed: 8\npad_to_sequence_len: true\n",
        {
            "optimizer.name": "adamw",
            "model.dtype": "auto",
            "optimizer.warmup_ratio": 0.0,
            "optimizer.betas": (0.9, 0.95),
            "training.seed": 7,
            "data.packing": False,
        },
        {"optimizer", "fp16", "neftune_noise_alpha", "data_seed", "pad_to_sequence_len"},
    ),
    "axolotl, the batch as a whole": (
        AXOLOTL + "micro_batch_size: 2\nbatch_size: 16\nexcess_length_strategy: raise\nlora_model_dir: ./out\n"
        "gradient_checkpointing: unsloth\n",
        {
            "training.gradient_checkpointing": True,
            "training.batch_size": 16,
            "training.micro_batch_size": 2,
            "data.overlength": "error",
        },
        {"lora_model_dir"},
    ),
    "TRL, a template as text": (
        TRL
        + "chat_template: \"{% for m in messages %}{{ m['content'] }}{% endfor %}\"\ntorch_dtype: bfloat16\nbf16: true\n",
        {"data.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}", "model.dtype": "bfloat16"},
        set(),
    ),
    "LLaMA-Factory, attention and masks": (
        FACTORY + "flash_attn: fa2\nmask_history: true\npacking: false\ndo_train: true\neval_strategy: no\n",
        {"model.attention": "flash_attention_2", "data.train_on": "last", "training.eval_every": 0},
        {"do_train"},
    ),
}
CATALOGUE = {
    "talk": {
        "hf_hub_url": "org/talk",
        "formatting": "sharegpt",
        "subset": "en",
        "split": "train_sft",
        "num_samples": 20,
        "columns": {"messages": "turns", "system": "persona"},
        "tags": {"role_tag": "who", "content_tag": "value", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "asked": {"file_name": "asked.json", "columns": {"prompt": "instruction", "history": "before"}},
    "held": {"hf_hub_url": "org/held", "formatting": "sharegpt", "columns": {"messages": "turns", "system": "persona"}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_trains_here_what_it_trains_there(tmp_path, monkeypatch, shape):
    """Planted bugs caught: booleans of YAML 1.2; an expression of targets made a list; warmup before a constant schedule;
    epochs that end before max_steps; a mixture without its splits; a data set's samples beside max_samples left out."""
    text, expected, listed = SHAPES[shape]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset_info.json").write_text(json.dumps(CATALOGUE))
    (tmp_path / "theirs.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    result = import_recipe("theirs.yaml")
    (tmp_path / "recipe.yaml").write_text(result.text)
    recipe = Recipe.from_yaml("recipe.yaml")
    found = plain_settings(recipe)
    for index, source in enumerate(recipe.data.train):
        found |= {f"data.train.{index}.{name}": value for name, value in source.model_dump().items()}
        found[f"data.train.{index}.path"] = source.path.removeprefix(f"{tmp_path}/")
    if recipe.data.validation.path:
        found["data.validation.path"] = recipe.data.validation.path.removeprefix(f"{tmp_path}/")
    assert {key: found[key] for key in expected} == expected
    assert listed <= {item.key for item in result.left}


OTHERS = {
    "mlx-lm": "model: org/model\ntrain: true\nfine_tune_type: lora\ndata: rows\niters: 100\nlora_parameters: {rank: 8}\n",
    "ms-swift": "model: org/model\ntrain_type: lora\ndataset: [org/rows#500]\nlora_rank: 8\n",
    "AutoTrain": "task: llm-sft\nbase_model: org/model\ndata: {path: org/rows}\nparams: {block_size: 1024, epochs: 3}\n",
    "Ludwig": "base_model: org/model\nmodel_type: llm\nadapter: {type: lora}\ninput_features: [{name: x}]\n",
    "mergekit": "base_model: org/model\nmerge_method: ties\nmodels: [{model: org/other}]\n",
    "accelerate": "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\n",
    "PEFT": '{"peft_type": "LORA", "base_model_name_or_path": "org/model", "r": 8, "task_type": "CAUSAL_LM"}',
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_toolkit_is_named_and_not_guessed(tmp_path, name):
    """Planted bug caught: mlx-lm's file taken for unsloth's, with another rank and learning rate."""
    (tmp_path / "theirs.yaml").write_text(OTHERS[name])
    with pytest.raises(UsageError, match=f"a configuration of {name}.* which is not converted"):
        import_recipe(tmp_path / "theirs.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "base_model: org/model\ndatasets: [org/rows]\n",
        "model: org/model\ndata: rows\nlr: 1\n",
        "model_name_or_path: x\n",
    ],
)
def test_a_file_of_nobody_is_not_guessed(tmp_path, text):
    (tmp_path / "theirs.yaml").write_text(text)
    with pytest.raises(UsageError, match="none of those that tell toolkits apart"):
        import_recipe(tmp_path / "theirs.yaml")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (FACTORY + "finetuning_type: freeze\n", "finetuning_type"),
        (FACTORY + "do_predict: true\n", "do_predict"),
        (AXOLOTL + "adapter: oft\n", "adapter"),
    ],
)
def test_another_method_is_refused(tmp_path, text, key):
    """Planted bug caught: trained layers, or another adapter, taken for LoRA."""
    (tmp_path / "theirs.yaml").write_text(text)
    with pytest.raises(RecipeError, match=f"{key}: .* asks for another (method than|objective)"):
        import_recipe(tmp_path / "theirs.yaml")


def test_what_asks_for_nothing_is_said(tmp_path):
    """Planted bug caught: false or null inside an entry of rows let go in silence."""
    rows = "datasets: [{path: org/rows, drop_system_message: false, shards: null, train_on_eos: turn}]\nstrict: false\n"
    (tmp_path / "theirs.yaml").write_text(AXOLOTL_ROWS + rows)
    result = import_recipe(tmp_path / "theirs.yaml")
    inside = {"datasets.drop_system_message", "datasets.shards", "datasets.train_on_eos"}
    assert inside | {"strict"} <= set(result.empty) and result.left == []


def test_without_rows_nothing_is_made_up(tmp_path, monkeypatch):
    """Planted bug caught: `path: ""`, which validates."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.yaml").write_text("model_name_or_path: org/model\nuse_peft: true\n")
    outcome = CliRunner().invoke(app, ["import", "theirs.yaml"])
    assert isinstance(outcome.exception, RecipeError) and "data" in str(outcome.exception)


def test_a_base_in_a_directory_is_found_from_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saves/merged").mkdir(parents=True)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "theirs.yaml").write_text(TRL.replace("org/model", "saves/merged"))
    result = import_recipe("theirs.yaml", directory=tmp_path / "recipes")
    (tmp_path / "recipes/mine.yaml").write_text(result.text)
    assert Recipe.from_yaml("recipes/mine.yaml").model.base == str(tmp_path / "saves/merged")
