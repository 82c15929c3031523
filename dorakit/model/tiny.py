"""`tiny:<architecture>`: a seeded random model of two layers with a byte tokenizer, for smoke runs and tests."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from dorakit.errors import ModelError
from dorakit.model.tasks import CAUSAL_LM

_SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, plus ChatML's markers; <|im_end|> ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=_CHATML,
        model_max_length=1 << 20,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(architecture: str) -> PreTrainedModel:
    """A random float32 model of the architecture, the same for the same versions of torch and transformers.

    Raises:
        ModelError: transformers knows no causal language model of that name, or it cannot be built this small.
    """
    tokenizer = tiny_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 8192,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        config = AutoConfig.for_model(architecture, **sizes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: PreTrainedModel = CAUSAL_LM.auto.from_config(config, dtype=torch.float32)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ModelError(
            f"tiny:{architecture}: transformers builds no causal language model of that architecture: {reason}\n"
            "  known to work: llama, mistral, qwen2, qwen3, gemma2, phi3"
        ) from None
    return model
