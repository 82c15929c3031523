"""Names that other toolkits use, and what they are called here.

Axolotl, LLaMA-Factory, torchtune, TRL, PEFT, unsloth and mlx-lm. A value of KEYS that names a field of the schema is
followed by the loader ("`lora_r` is `adapter.rank` here"); any other is a sentence for the hint.
"""

from __future__ import annotations

_FOUR_BIT = "a 4-bit base is `adapter.mode: qlora` or `qdora` here"
_EIGHT_BIT = "there are no 8-bit bases here; 4-bit ones are `adapter.mode: qlora` or `qdora`"
_DORA = "DoRA is `adapter.mode: dora` (or `qdora`) here"
_MODE = "the method is `adapter.mode` here: full, lora, dora, qlora or qdora"
_ACCUMULATION = (
    "accumulation is derived here: `training.batch_size` is documents per optimizer step, "
    "`training.micro_batch_size` rows per forward pass"
)
_MICRO = "`training.micro_batch_size` is rows per forward pass, `training.batch_size` documents per optimizer step"
_DTYPE = "the compute dtype is `model.dtype: bfloat16` (or float16, float32) here"
_TARGETS = "adapter.target_modules"
_ATTENTION = "attention is `model.attention: flash_attention_2` (or sdpa, eager) here"
_FORMAT = "rows are described under `data.train`: path, format (chat, instruction, completion or text), columns"
_TRACKERS = "trackers are `logging.to` here: [tensorboard, wandb, mlflow, trackio]"
_SECRET = "no secret belongs in a recipe: use `hf auth login`, or the environment's HF_TOKEN"
_ALWAYS = "this is always so here: remove the line"
OBJECTIVE = "dorakit trains by imitation of rows only: there is no preference, reward or distillation objective yet"

KEYS: dict[str, str] = {
    # model
    **dict.fromkeys(
        (
            "base_model",
            "model_name_or_path",
            "model_name",
            "model_id",
            "pretrained_model_name_or_path",
            "model_path",
            "base_model_name_or_path",
            "checkpoint_dir",
            "base_model_config",
            "tokenizer_name_or_path",
        ),
        "model.base",
    ),
    **dict.fromkeys(("model_type", "architectures"), "model.architecture"),
    **dict.fromkeys(("model_revision", "revision_of_model", "hub_revision"), "model.revision"),
    **dict.fromkeys(("torch_dtype", "bnb_4bit_compute_dtype", "compute_dtype"), "model.dtype"),
    **dict.fromkeys(("bf16", "fp16", "tf32", "fp32", "pure_bf16"), _DTYPE),
    **dict.fromkeys(("attn_implementation",), "model.attention"),
    **dict.fromkeys(
        ("flash_attention", "flash_attn", "sdp_attention", "xformers_attention", "eager_attention"), _ATTENTION
    ),
    **dict.fromkeys(
        ("special_tokens", "tokens", "add_special_tokens", "new_special_tokens", "add_tokens"), "model.added_tokens"
    ),
    **dict.fromkeys(("trust_remote_code", "trust_remote_code_model"), "code from a model directory is never run here"),
    "tokenizer_type": "the tokenizer is the base model's",
    # adapter
    **dict.fromkeys(
        ("lora_r", "lora_rank", "r", "lora_dim", "peft_lora_r", "dora_rank", "max_lora_rank"), "adapter.rank"
    ),
    **dict.fromkeys(("lora_alpha", "peft_lora_alpha", "lora_scale"), "adapter.alpha"),
    **dict.fromkeys(("lora_dropout", "peft_lora_dropout", "adapter_dropout"), "adapter.dropout"),
    **dict.fromkeys(
        (
            "lora_target",
            "lora_target_modules",
            "lora_modules",
            "lora_attn_modules",
            "target_module",
            "lora_layers",
            "peft_target_modules",
            "lora_target_parameters",
        ),
        _TARGETS,
    ),
    **dict.fromkeys(
        ("lora_target_linear", "apply_lora_to_mlp", "apply_lora_to_output"),
        "every linear layer is `adapter.target_modules: all-linear` here",
    ),
    **dict.fromkeys(("lora_modules_to_save", "additional_target", "peft_modules_to_save"), "adapter.modules_to_save"),
    **dict.fromkeys(("use_rslora", "peft_use_rslora", "lora_use_rslora"), "adapter.rslora"),
    **dict.fromkeys(("use_dora", "peft_use_dora", "lora_use_dora", "dora"), _DORA),
    **dict.fromkeys(
        ("finetuning_type", "peft_type", "peft_method", "fine_tune_type", "full_finetuning", "use_peft", "use_lora"),
        _MODE,
    ),
    "init_lora_weights": "A and B start as in the LoRA paper; `adapter.magnitude.init` is what m starts from",
    "lora_parameters": "the adapter is the section `adapter` here",
    "peft_config": "the adapter is the section `adapter` here",
    "lora_config": "the adapter is the section `adapter` here",
    "bias": "biases are never trained in the adapter modes",
    "task_type": "every model is a causal language model here",
    # quantization
    **dict.fromkeys(("load_in_4bit", "use_4bit", "quantize_base", "quantization_bit", "bnb_4bit"), _FOUR_BIT),
    **dict.fromkeys(("load_in_8bit", "use_8bit"), _EIGHT_BIT),
    **dict.fromkeys(("bnb_4bit_quant_type", "quantization_type", "quant_type"), "quantization.format"),
    **dict.fromkeys(
        ("bnb_4bit_use_double_quant", "double_quantization", "use_double_quant", "use_nested_quant"),
        "quantization.double_quant",
    ),
    **dict.fromkeys(("llm_int8_skip_modules", "modules_to_not_convert"), "quantization.skip_modules"),
    **dict.fromkeys(("group_size", "q_group_size", "bnb_4bit_blocksize"), "quantization.block_size"),
    "quantization_config": "storage of the base is the section `quantization` here",
    "quantization_method": _FOUR_BIT,
    "bnb_4bit_quant_storage": "NF4 is always stored as uint8 here",
    # data
    **dict.fromkeys(
        (
            "sequence_len",
            "cutoff_len",
            "max_seq_length",
            "max_length",
            "model_max_length",
            "max_sequence_length",
            "seq_len",
            "block_length",
            "seq_length",
        ),
        "data.max_seq_len",
    ),
    **dict.fromkeys(
        (
            "datasets",
            "dataset",
            "train_data",
            "train_file",
            "data_path",
            "dataset_name",
            "train_dataset",
            "train_files",
            "data_files",
        ),
        "data.train",
    ),
    **dict.fromkeys(("dataset_dir", "data_dir", "data_root"), "data.root"),
    **dict.fromkeys(
        ("test_datasets", "eval_dataset", "validation_file", "eval_file", "validation_dataset"), "data.validation.path"
    ),
    **dict.fromkeys(("val_set_size", "val_size", "validation_split", "test_size"), "data.validation.fraction"),
    **dict.fromkeys(("sample_packing", "packed", "neat_packing", "pad_to_sequence_len", "multipack"), "data.packing"),
    **dict.fromkeys(
        ("template", "tokenizer_chat_template", "chat_template_jinja", "chat_template_path"), "data.chat_template"
    ),
    **dict.fromkeys(
        (
            "train_on_inputs",
            "train_on_input",
            "mask_prompt",
            "completion_only_loss",
            "assistant_only_loss",
            "train_on_prompt",
            "roles_to_train",
            "train_on_eos",
        ),
        "data.train_on",
    ),
    "mask_history": "the last turn only is `data.train_on: last` here",
    **dict.fromkeys(("excess_length_strategy", "truncation", "truncate", "truncation_mode"), "data.overlength"),
    **dict.fromkeys(("ds_type", "dataset_type", "formatting"), _FORMAT),
    **dict.fromkeys(("type", "file_name", "hf_hub_url"), _FORMAT),
    **dict.fromkeys(
        ("field_messages", "message_property_mappings", "column_map", "dataset_text_field", "field", "text_column"),
        "columns are mapped in `data.train[].columns` here: expected name -> name in the data",
    ),
    **dict.fromkeys(("max_samples", "num_samples"), "the number of rows is `limit` of a source in `data.train` here"),
    "interleave_probs": "how much of each source is taken is `weight` of a source in `data.train` here",
    "prompt_template": "the prompt is `prompt` of a source in `data.train` here",
    **dict.fromkeys(
        (
            "dataset_prepared_path",
            "overwrite_cache",
            "preprocessing_num_workers",
            "dataloader_num_workers",
            "dataset_num_proc",
            "dataset_processes",
        ),
        "nothing of this kind is needed here: remove the line",
    ),
    # training
    **dict.fromkeys(("num_train_epochs", "num_epochs", "n_epochs", "max_epochs"), "training.epochs"),
    **dict.fromkeys(
        ("max_steps_per_epoch", "iters", "num_steps", "num_iterations", "max_iters", "total_steps"),
        "training.max_steps",
    ),
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_batch_size", "per_gpu_train_batch_size", "micro_batch"),
        "training.micro_batch_size",
    ),
    **dict.fromkeys(("per_device_eval_batch_size", "eval_batch_size"), "evaluation.batch_size"),
    **dict.fromkeys(
        (
            "gradient_accumulation_steps",
            "grad_accumulation_steps",
            "gradient_accumulation",
            "accumulation_steps",
            "gradient_accumulation_iters",
        ),
        _ACCUMULATION,
    ),
    **dict.fromkeys(("train_batch_size", "global_batch_size", "effective_batch_size"), "training.batch_size"),
    **dict.fromkeys(("micro_batch_sizes", "microbatch_size"), _MICRO),
    **dict.fromkeys(
        ("max_norm", "clip_grad_norm", "grad_clip", "gradient_clip_val", "max_gradient_norm", "gradient_clipping"),
        "training.max_grad_norm",
    ),
    **dict.fromkeys(
        (
            "enable_activation_checkpointing",
            "activation_checkpointing",
            "use_gradient_checkpointing",
            "grad_checkpoint",
            "gradient_checkpointing_kwargs",
        ),
        "training.gradient_checkpointing",
    ),
    **dict.fromkeys(("torch_compile", "compile_model"), "training.compile"),
    **dict.fromkeys(("random_state", "data_seed", "random_seed"), "training.seed"),
    "full_determinism": "training.deterministic",
    **dict.fromkeys(
        ("logging_steps", "steps_per_report", "log_every_n_steps", "log_interval", "log_steps"), "training.log_every"
    ),
    **dict.fromkeys(
        ("eval_steps", "evals_per_epoch", "steps_per_eval", "eval_interval", "run_val_every_n_steps"),
        "training.eval_every",
    ),
    **dict.fromkeys(
        ("save_steps", "saves_per_epoch", "save_every_n_steps", "save_interval", "checkpointing_steps"),
        "training.save_every",
    ),
    **dict.fromkeys(("save_total_limit", "keep_last_n_checkpoints"), "training.keep_checkpoints"),
    "load_best_model_at_end": "training.keep_best",
    **dict.fromkeys(("eval_strategy", "evaluation_strategy"), "validation runs every `training.eval_every` steps here"),
    **dict.fromkeys(("save_strategy",), "checkpoints are made every `training.save_every` steps here"),
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict", "stage"),
        "what is done is the command's name here (dorakit train, eval, ...): remove the line",
    ),
    **dict.fromkeys(
        (
            "rl",
            "rl_beta",
            "pref_beta",
            "pref_loss",
            "pref_ftx",
            "dpo_beta",
            "dpo_use_weighting",
            "dpo_label_smoothing",
            "f_divergence_type",
            "precompute_ref_log_probs",
            "sync_ref_model",
            "max_prompt_length",
            "max_completion_length",
            "rpo_alpha",
            "ld_alpha",
            "discopop_tau",
            "orpo_alpha",
            "desirable_weight",
            "undesirable_weight",
            "kto_desirable_weight",
            "kto_undesirable_weight",
            "simpo_gamma",
            "cpo_alpha",
            "num_generations",
            "reward_funcs",
            "reward_weights",
            "reward_model",
            "reward_model_path",
            "reward_model_name_or_path",
            "process_reward_model",
            "center_rewards_coefficient",
            "scale_rewards",
            "kl_coef",
            "num_ppo_epochs",
            "field_chosen",
            "field_rejected",
        ),
        OBJECTIVE,
    ),
    "resume_from_checkpoint": "resume with `dorakit train --resume RUN`",
    "auto_resume_from_checkpoints": "resume with `dorakit train --resume RUN`",
    "ddp_timeout": "a rank that does not answer is waited for `parallel.timeout_minutes` here",
    "group_by_length": "documents are sorted by length inside each batch here: remove the line",
    "remove_unused_columns": _ALWAYS,
    "device": "the device is found by itself: remove the line",
    "device_map": "the device is found by itself: remove the line",
    **dict.fromkeys(
        ("deepspeed", "fsdp", "fsdp_config", "fsdp_version"),
        "several devices are `parallel.strategy: ddp` or `fsdp` here, started with --nproc or torchrun",
    ),
    # optimizer
    **dict.fromkeys(("lr", "learning_rates", "max_lr", "peak_lr"), "optimizer.learning_rate"),
    **dict.fromkeys(("optim", "optimizer_type", "optimizer_name"), "optimizer.name"),
    **dict.fromkeys(
        ("lr_scheduler_type", "lr_scheduler", "scheduler", "lr_schedule", "scheduler_type"), "optimizer.schedule"
    ),
    **dict.fromkeys(("warmup", "num_warmup_steps", "warmup_iters"), "optimizer.warmup_steps"),
    **dict.fromkeys(("warmup_fraction", "warmup_proportion"), "optimizer.warmup_ratio"),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_betas", "beta1", "beta2"), "optimizer.betas"),
    **dict.fromkeys(("adam_epsilon", "adam_eps", "epsilon"), "optimizer.eps"),
    **dict.fromkeys(("dora_lr_ratio", "magnitude_lr_ratio"), "adapter.magnitude.learning_rate_ratio"),
    "loraplus_lr_ratio": "optimizer.lora_plus.ratio",
    # run
    **dict.fromkeys(("output_path", "adapter_path", "save_dir", "save_path", "out_dir", "run_dir"), "output_dir"),
    **dict.fromkeys(
        (
            "report_to",
            "use_wandb",
            "wandb_project",
            "wandb_entity",
            "use_tensorboard",
            "metric_logger",
            "use_mlflow",
            "swanlab_project",
        ),
        _TRACKERS,
    ),
    **dict.fromkeys(("overwrite_output_dir",), "a finished run is never overwritten: the next one is called NAME-2"),
    **dict.fromkeys(
        ("token", "hf_token", "hub_token", "auth_token", "use_auth_token", "api_key", "wandb_api_key", "password"),
        _SECRET,
    ),
    **dict.fromkeys(("push_to_hub", "hub_model_id"), "nothing is uploaded by dorakit: remove the line"),
    **dict.fromkeys(("generation_max_length", "max_gen_toks", "max_tokens"), "evaluation.max_new_tokens"),
}

# For fields with a list of allowed values: what others call the value.
VALUES: dict[str, dict[str, str]] = {
    "adapter.mode": {
        **dict.fromkeys(("full_finetune", "fft", "sft", "none", "finetune", "full_finetuning"), "full"),
        **dict.fromkeys(("peft", "adapter"), "lora"),
        **dict.fromkeys(("lora_4bit", "lora-4bit"), "qlora"),
        **dict.fromkeys(("bnb_dora", "dora_4bit"), "qdora"),
    },
    "model.dtype": {
        **dict.fromkeys(("bf16", "torch.bfloat16", "bfloat", "pure_bf16"), "bfloat16"),
        **dict.fromkeys(("fp16", "half", "f16", "torch.float16"), "float16"),
        **dict.fromkeys(("fp32", "float", "f32", "full", "torch.float32"), "float32"),
    },
    "merge.dtype": {
        **dict.fromkeys(("bf16", "torch.bfloat16"), "bfloat16"),
        **dict.fromkeys(("fp16", "half", "f16"), "float16"),
        **dict.fromkeys(("fp32", "float", "f32"), "float32"),
    },
    "model.attention": {
        **dict.fromkeys(("flash_attention", "flash_attn", "fa2", "flash_attn_2", "flash"), "flash_attention_2"),
        **dict.fromkeys(("sdp", "torch", "default"), "sdpa"),
        "math": "eager",
    },
    "optimizer.name": {
        **dict.fromkeys(
            ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adam", "AdamW", "torch.optim.AdamW"), "adamw"
        ),
        **dict.fromkeys(("adamw_bnb_8bit", "adam_8bit", "adamw8bit"), "adamw_8bit"),
        **dict.fromkeys(("paged_adamw8bit",), "paged_adamw_8bit"),
        **dict.fromkeys(("paged_adamw32bit",), "paged_adamw_32bit"),
        **dict.fromkeys(("lion", "lion8bit", "paged_lion_8bit", "paged_lion_32bit", "lion_32bit"), "lion_8bit"),
    },
    "optimizer.schedule": {
        **dict.fromkeys(
            ("cosine_with_warmup", "cosine_decay", "cosine_with_min_lr", "get_cosine_schedule_with_warmup"), "cosine"
        ),
        **dict.fromkeys(("linear_decay", "linear_with_warmup"), "linear"),
        **dict.fromkeys(("constant_with_warmup", "none"), "constant"),
    },
    "data.train.format": {
        **dict.fromkeys(("sharegpt", "chat_template", "messages", "conversation", "openai", "chatml"), "chat"),
        **dict.fromkeys(("alpaca", "instruct", "input_output"), "instruction"),
        **dict.fromkeys(("prompt_completion", "completions"), "completion"),
        **dict.fromkeys(("pretrain", "raw", "plain", "txt"), "text"),
    },
    "data.train_on": {
        **dict.fromkeys(("completions", "assistant", "output", "outputs", "response"), "completion"),
        **dict.fromkeys(("inputs", "everything", "full"), "all"),
        **dict.fromkeys(("last_turn", "final"), "last"),
    },
    "data.overlength": {
        **dict.fromkeys(("skip", "filter", "discard"), "drop"),
        **dict.fromkeys(("cut", "truncation", "keep_start", "keep_end"), "truncate"),
        **dict.fromkeys(("raise", "fail"), "error"),
    },
    "quantization.format": dict.fromkeys(("fp4", "int4", "4bit", "NF4", "int8"), "nf4"),
    "evaluation.metric": {
        **dict.fromkeys(("em", "exact", "accuracy", "exact-match"), "exact_match"),
        **dict.fromkeys(("number", "math", "gsm8k", "numeric"), "last_number"),
        **dict.fromkeys(("choice", "multiple_choice", "options"), "option"),
        **dict.fromkeys(("loss", "perplexity"), "none"),
    },
}
