"""Whatever a configuration holds, each of its keys ends in the recipe or in the list of what was not carried over."""

import re

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dorakit.errors import RecipeError
from dorakit.recipe.foreign import KEYS, OBJECTIVE
from dorakit.recipe.importing.imported import import_recipe
from dorakit.recipe.loader import load_recipe

BASES = {
    "axolotl": {"base_model": "org/model", "learning_rate": 1e-4, "datasets": [{"path": "a.jsonl", "type": "alpaca"}]},
    "llamafactory": {"model_name_or_path": "org/model", "dataset": "mine"},
    "torchtune": {
        "model": {"_component_": "torchtune.models.llama3.lora_llama3_8b"},
        "checkpointer": {"checkpoint_dir": "org/model"},
        "dataset": {"_component_": "torchtune.datasets.chat_dataset", "source": "org/rows"},
    },
    "trl": {"model_name_or_path": "org/model", "dataset_name": "org/rows"},
    "unsloth": {"model": "org/model", "data": {"dataset": "org/rows"}},
}
# What chooses another objective or another method is refused, and so never listed.
REFUSED = {"rl", "reward_model", "process_reward_model", "stage", "finetuning_type", "adapter", "loss_type", "beta"}
SHARED = """seed max_steps packing lora_r lora_alpha lora_dropout lora_target_modules use_dora use_rslora init_lora_weights
weight_decay max_grad_norm warmup_ratio warmup_steps learning_rate gradient_checkpointing output_dir logging_steps
eval_steps save_steps eval_strategy save_strategy neftune_noise_alpha bf16 fp16 tf32 torch_dtype dtype report_to
attn_implementation weight limit columns prompt format rank alpha name split path metric options to strategy mode"""
OWN = {
    "axolotl": """adapter_ peft_use_dora lora_target_linear sequence_len sample_packing pad_to_sequence_len num_epochs
        micro_batch_size batch_size val_set_size test_datasets train_on_inputs chat_template chat_template_jinja
        excess_length_strategy lora_model_dir peft.weight_dtype special_tokens.pad_token tokens wandb_project
        pretraining_dataset flash_attention lora_modules_to_save bnb_config_kwargs.bnb_4bit_use_double_quant""",
    "llamafactory": """quantization_bit quantization_method additional_target new_special_tokens cutoff_len template
        eval_dataset val_size max_samples train_on_prompt mask_history neat_packing loraplus_lr_ratio pissa_init
        flash_attn dataset_dir lora_rank lora_target num_train_epochs per_device_train_batch_size interleave_probs""",
    "torchtune": """model.lora_rank model.use_dora model.quantize_base model.apply_lora_to_output clip_grad_norm
        optimizer._component_ optimizer.weight_decay lr_scheduler._component_ lr_scheduler.num_warmup_steps epochs
        max_steps_per_epoch tokenizer.max_seq_len dataset.packed dataset.train_on_input dataset.column_map.input
        dataset_val.source loss._component_ compile enable_activation_checkpointing profiler.output_dir batch_size""",
    "trl": """use_peft load_in_4bit bnb_4bit_quant_type max_length max_seq_length dataset_config dataset_train_split
        dataset_test_split dataset_mixer dataset_splits dataset_mixture.datasets dataset_mixture.test_split_size
        datasets assistant_only_loss completion_only_loss dataset_text_field chat_template_path truncation_mode
        use_peft_lora lr_scheduler_type lr_scheduler_kwargs.min_lr_rate optim num_train_epochs splits""",
    "unsloth": """training.load_in_4bit training.num_epochs training.max_steps training.batch_size training.optim
        training.warmup_steps training.train_on_completions training.gradient_checkpointing lora.target_modules
        lora.finetune_mlp_modules lora.use_loftq data.format_type data.local_dataset logging.enable_wandb
        logging.wandb_project training.save_steps training.packing training.max_seq_length""",
}
# Lists of mappings, each with keys of its own.
ROWS = {
    "axolotl": ("datasets", "test_datasets", "pretraining_dataset"),
    "trl": ("datasets",),
    "torchtune": ("dataset",),
}
NAMES = {
    toolkit: sorted(
        {*SHARED.split(), *own.split(), *(key for key, hint in KEYS.items() if hint != OBJECTIVE)} - REFUSED
    )
    for toolkit, own in OWN.items()
}
TEXTS = st.sampled_from(
    "auto true no none 2e-4 16 all-linear q_proj,v_proj (q|v)_proj cosine constant adamw_8bit lion epoch org/rows a.jsonl "
    "keep_end chat_template alpaca fp4 {{messages}}".split()
)
ENTRY = st.one_of(TEXTS, st.booleans(), st.integers(0, 2))
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 5000),
    st.floats(0, 2),
    TEXTS,
    st.lists(TEXTS, max_size=2),
    st.lists(st.dictionaries(st.sampled_from(["path", "type", "id", "split", "weight", "x"]), ENTRY), max_size=2),
    st.dictionaries(st.sampled_from(["path", "dropout", "weight", "odd"]), st.booleans(), min_size=1, max_size=2),
)


def written(toolkit, drawn):
    """A configuration with these keys, dotted ones in sections."""
    content = yaml.safe_load(yaml.safe_dump(BASES[toolkit]))
    for name, value in drawn.items():
        *sections, last = name.split(".")
        here = content
        for section in sections:
            here = here.setdefault(section, {})
            if not isinstance(here, dict):
                break
        else:
            here[last] = value
    return content


def leaves(toolkit, content):
    for key, value in content.items():
        if key == "dataset_mixer":  # whose keys are names of data sets
            yield key
        elif isinstance(value, dict) and value:
            yield from leaves(toolkit, value)
        elif isinstance(value, list) and key in ROWS.get(toolkit, ()):
            yield from (inner for entry in value if isinstance(entry, dict) for inner in entry)
        else:
            yield key


@pytest.mark.parametrize("toolkit", BASES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_key_is_carried_or_listed(tmp_path, toolkit, data):
    """Planted bugs caught: a key that is taken and thrown away; the key `weight` or `columns` at the top, which was written
    over data.train and ended in a traceback."""
    drawn = data.draw(st.dictionaries(st.sampled_from(NAMES[toolkit]), VALUES, min_size=1, max_size=8))
    content = written(toolkit, drawn)
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(content))
    try:
        result = import_recipe(tmp_path / "theirs.yaml", toolkit=toolkit)
    except RecipeError as refused:  # no recipe is written
        assert "asks for another" in str(refused)
        return
    told = " ".join([*result.carried.values(), *(item.key for item in result.left), *result.empty])
    words = set(re.findall(r"[\w-]+", told))
    assert [key for key in leaves(toolkit, content) if key not in words] == []
    mixer = content.get("dataset_mixer")
    assert all(name in result.text for name in (mixer if isinstance(mixer, dict) else {}))
    (tmp_path / "recipe.yaml").write_text(result.text)
    try:
        load_recipe(str(tmp_path / "recipe.yaml"), [])
    except RecipeError as problems:  # what no import can settle: no rows, a base or expressions that are none
        known = (
            "data.train",
            "data.validation",
            "model",
            "target_modules",
            "keep_best",
            "micro_batch_size",
            "learning_rate",
        )
        assert all(any(name in problem.message for name in known) for problem in problems.problems), result.text
