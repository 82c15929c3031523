"""Tokenizers of the kinds that masks get wrong, built here: no download, no files."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The user asks and the assistant answers: hello, hi there, good morning.",
    "Below is an instruction that describes a task.\n\n### Instruction:\nAdd the numbers.\n\n### Response:\n42",
    "  indented lines\n\n\n    and blanks   at the end   \n",
    "naïve café — 你好 🙂🙂",
] * 4
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_bpe(*, template=CHATML, bos=False):
    """Byte-level BPE as in Llama 3: its offsets leave blanks out, and (with `bos`) it puts BOS before a text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    steps = [processors.ByteLevel(trim_offsets=True)]
    if bos:
        ids = [("<|bos|>", core.token_to_id("<|bos|>"))]
        steps.append(processors.TemplateProcessing(single="<|bos|> $A", special_tokens=ids))
    core.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        pad_token="<|eos|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def metaspace_bpe():
    """BPE as in Llama 2: every text begins with a blank and with BOS."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def trained_text(document, tokenizer):
    return tokenizer.decode(document.input_ids[document.mask], clean_up_tokenization_spaces=False)
