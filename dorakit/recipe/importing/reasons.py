"""What foreign.py, made for hints, does not say of another toolkit's keys: which mean something else, and why none fits."""

from __future__ import annotations

NO_COUNTERPART = "dorakit has no such setting"
_ARCHITECTURE = "the architecture is read from the base"
# Keys that foreign.py takes to the right place for a hint, but whose value means something else there.
MEANS_ANOTHER_THING = {
    "evals_per_epoch": "training.eval_every counts steps here, not times in an epoch",
    "saves_per_epoch": "training.save_every counts steps here, not times in an epoch",
    "max_steps_per_epoch": "training.max_steps counts the steps of all epochs here",
    "model_type": _ARCHITECTURE,
    "architectures": _ARCHITECTURE,
    "data_seed": "training.seed is the seed of everything here",
    "pad_to_sequence_len": "rows are padded to the longest of a pass here",
    "multipack": "data.packing lays documents into one row here",
    "group_size": "quantization.block_size is of NF4 here",
    "quant_type": "the type of a quantized base is nf4 here",
}
_CHANGES_TRAINING = "dorakit has no such setting, and it changes what is trained"
_TOKENIZER = "the tokenizer is the base's, with its special tokens; model.added_tokens adds others"
ABOUT: dict[str, str] = {  # a key, or the section that it is in
    **dict.fromkeys(("tokenizer", "special_tokens", "eos_token", "pad_token", "eot_tokens"), _TOKENIZER),
    **dict.fromkeys(("tokenizer_config", "tokenizer_type", "tokenizer_name"), _TOKENIZER),
    "checkpointer": "a base is read, and a run written, in the form of the hub here",
    **dict.fromkeys(
        "neftune_noise_alpha noisy_embedding_alpha label_smoothing_factor lr_scheduler_kwargs cosine_min_lr_ratio "
        "lr_groups embedding_lr embedding_lr_scale pissa_init use_loftq loftq_config use_galore use_apollo use_badam "
        "use_adam_mini use_muon use_dft_loss loss_type unfrozen_parameters peft_layers_to_transform layers_to_transform "
        "lora_target_parameters peft_layer_replication relora curriculum_sampling shuffle_merged_datasets shuffle "
        "train_on_eot drop_system_message default_system packing_strategy mix_strategy streaming resize_vocab "
        "disable_shuffling enable_thinking freeze_trainable_layers "
        "rope_scaling overrides_of_model_config early_stopping_patience".split(),
        _CHANGES_TRAINING,
    ),
}
# On where nothing is said, so that false asks for something.
ON_THERE = ("enable_thinking", "shuffle", "shuffle_merged_datasets")
# Values that foreign.py takes to the nearest one for a hint, and that train something else.
ANOTHER_VALUE = {
    "quantization.format": ("fp4", "int4", "int8"),
    "optimizer.name": ("adam", "lion", "paged_lion_8bit", "paged_lion_32bit", "lion_32bit"),
    "optimizer.schedule": ("cosine_with_min_lr", "none"),
    "data.overlength": ("keep_end",),
}
# Sections whose keys mean what they mean at the top. Inside any other, a key of a known name is another thing.
TRANSPARENT: tuple[str, ...] = (
    "model_init_kwargs",
    "model_kwargs",
    "bnb_config_kwargs",
    "quantization_config",
    "optim_args",
)
TRANSPARENT += ("optimizer", "training", "lora", "logging")
