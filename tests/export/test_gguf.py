"""A model directory as GGUF, read back by transformers and by the gguf package."""

import json

import gguf
import numpy as np
import pytest
import torch
from tiny_runs import IDS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedTokenizerFast, Qwen2Tokenizer

from dorakit.errors import ModelError
from dorakit.export.gguf_file import write_gguf
from dorakit.export.gguf_vocabulary import add_vocabulary, pre_type
from dorakit.model.tiny import tiny_tokenizer

TEXT = "The meeting moved from Tuesday at 9:30 to Friday at 14:00, in room 4. Water boils at 100 degrees. " * 4
GPT2_STEPS = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
SMOLLM_STEPS = [pre_tokenizers.Digits(individual_digits=True), *GPT2_STEPS]


def model_of(architecture, directory, **changes):
    """A random model with every tensor random, biases and norms too, written to `directory`."""
    sizes = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(architecture, **sizes | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for name, parameter in model.named_parameters():
            around = 1.0 if "norm" in name else 0.0
            torch.nn.init.normal_(parameter, around, 0.1)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return model


def read_back(file):
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    ).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS % 300).logits


def difference(left, right):
    return float((logits(left) - logits(right)).abs().max())


def relative_difference(left, right):
    return float((logits(left) - logits(right)).norm() / logits(right).norm())


def trained_tokenizer(steps, **options):
    """A byte-level BPE of 300 tokens with three special ones, as a hub model ships it."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def saved(tokenizer, directory, **special):
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", **special}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)


def key(file, name):
    field = gguf.GGUFReader(file).get_field(name)
    return None if field is None else field.contents()


def written(directory, outtype="f16", **options):
    """The file that is written of a model directory, and what is said of it."""
    file = directory / "out" / "model.gguf"
    file.parent.mkdir()
    return file, write_gguf(directory, file, outtype, name="tiny", **options)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_transformers_reads_the_same_model(tmp_path, architecture, is_tied):
    """Planted bugs caught: q and k not reordered for llama, or for qwen too; a norm in float16; a wrong epsilon or theta."""
    # Of qwen3 transformers does not read how wide a head is, and takes 128.
    head_dim = 128 if architecture == "qwen3" else 16
    model = model_of(architecture, tmp_path, tie_word_embeddings=is_tied, rms_norm_eps=1e-3, head_dim=head_dim)
    file, said = written(tmp_path)
    assert difference(read_back(file), model) < 1e-2
    names = {tensor.name for tensor in gguf.GGUFReader(file).tensors}
    assert ("output.weight" in names) is not is_tied
    assert sum(said.tensor_types.values()) == len(names)


def test_biases_of_q_and_k_are_reordered_as_their_weights(tmp_path):
    """Planted bug caught: only weights reordered. transformers reads no such bias of a llama, so it is held here."""
    model = model_of("llama", tmp_path, attention_bias=True)
    file, _ = written(tmp_path)
    tensors = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in gguf.GGUFReader(file).tensors}
    attention = model.model.layers[1].self_attn
    # A weight whose only column is the bias is reordered as the bias must be.
    for name, heads in (("q", 4), ("k", 2)):
        bias = getattr(attention, f"{name}_proj").bias.detach()
        found = tensors[f"blk.1.attn_{name}.bias"]
        assert found.dtype == torch.float32
        for head in range(heads):
            own = bias[16 * head : 16 * (head + 1)]
            assert torch.equal(found[16 * head : 16 * (head + 1)], torch.stack([own[:8], own[8:]], 1).flatten())
    assert torch.equal(tensors["blk.1.attn_v.bias"], attention.v_proj.bias.detach())


@pytest.mark.parametrize(
    ("outtype", "types", "limit"),
    [
        ("bf16", {"BF16": 16, "F32": 5}, 0.01),
        ("q8_0", {"Q8_0": 16, "F32": 5}, 0.03),
        ("q4_0", {"Q4_0": 14, "Q8_0": 2, "F32": 5}, 0.4),
    ],
)
def test_types_of_matrices(tmp_path, outtype, types, limit):
    """Planted bugs caught: the type named in the header and another one in the tensors; embedding and head in q4_0."""
    model = model_of("llama", tmp_path)
    file, said = written(tmp_path, outtype)
    assert said.tensor_types == types
    assert limit / 10 < relative_difference(read_back(file), model) < limit
    assert key(file, "general.file_type") == {"bf16": 32, "q8_0": 7, "q4_0": 2}[outtype]
    assert any("q8_0" in note for note in said.notes) is (outtype == "q4_0")


def test_rows_that_fill_no_blocks_stay_half(tmp_path):
    """Planted bug caught: blocks taken across rows. down_proj has rows of 80 here."""
    model = model_of("llama", tmp_path, intermediate_size=80)
    file, said = written(tmp_path, "q8_0")
    assert said.tensor_types == {"Q8_0": 14, "F16": 2, "F32": 5}
    assert any("rows of 2 tensors" in note for note in said.notes)
    assert relative_difference(read_back(file), model) < 0.03


def test_a_weight_beyond_float16_is_refused(tmp_path):
    """Planted bug caught: infinity written in its place."""
    model = model_of("llama", tmp_path)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = 1e5
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"up_proj.weight reaches 1e\+05, beyond float16\n  --type bf16"):
        written(tmp_path)


def test_llama3_positions_are_a_tensor_of_divisors(tmp_path):
    """Against transformers' own frequencies. Planted bug caught: the tensor holds their inverse."""
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    model = model_of("llama", tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 500.0, **rope})
    file, _ = written(tmp_path)
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(file).tensors}
    base = key(file, "llama.rope.freq_base")
    rotated = base ** (-np.arange(0, 16, 2) / 16) / tensors["rope_freqs.weight"]
    np.testing.assert_allclose(rotated, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-5)
    assert tensors["rope_freqs.weight"].max() > 7.9


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 16.0},
            {
                "type": "yarn",
                "factor": 4.0,
                "original_context_length": 128,
                "yarn_beta_fast": 16.0,
                "yarn_beta_slow": 1.0,
            },
        ),
    ],
)
def test_scaled_positions(tmp_path, rope, expected):
    """Planted bug caught: a scaling left out, which reads well and answers otherwise on long texts."""
    model_of("qwen2", tmp_path, rope_parameters={"rope_theta": 10000.0, **rope})
    file, _ = written(tmp_path)
    assert {name: key(file, f"qwen2.rope.scaling.{name}") for name in expected} == expected


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("gemma2", {}, "'gemma2' cannot be written as GGUF here; known are llama, mistral, qwen2, qwen3"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "positions are scaled by dynamic",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "attention_factor": 0.5}},
            "yarn with attention_factor",
        ),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path, architecture, changes, message):
    """Planted bug caught: written all the same."""
    model_of(architecture, tmp_path, **changes)
    with pytest.raises(ModelError) as refused:
        written(tmp_path)
    assert message in str(refused.value)


def test_a_tensor_of_another_family_is_refused(tmp_path):
    """Planted bug caught: tensors without a place left out."""
    model = model_of("llama", tmp_path)
    model.register_parameter("extra", torch.nn.Parameter(torch.ones(3)))
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"extra has no place in llama\.cpp's llama"):
        written(tmp_path)


def test_a_window_is_said(tmp_path):
    """Planted bug caught: no word of a window that llama.cpp does not keep to."""
    model_of("mistral", tmp_path, sliding_window=64)
    assert any("sliding_window 64" in note for note in written(tmp_path)[1].notes)


def test_a_damaged_tokenizer_is_said(tmp_path):
    """A bit of each letter in turn. Planted bug caught: a key that is not there any more taken for a bug of ours."""
    saved(trained_tokenizer(SMOLLM_STEPS), tmp_path)
    file, refused = tmp_path / "tokenizer.json", 0
    whole = file.read_bytes()
    begin, end = (
        whole.index(b'"vocab"') + 200,
        whole.rindex(b'"merges"') + 20,
    )  # a part of vocabulary and merges is enough
    for place in [*range(0, begin, 3), *range(end, min(end + 60, len(whole)))]:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 32]) + whole[place + 1 :])
        try:
            add_vocabulary(gguf.GGUFWriter(None, "llama"), tmp_path, 400, origin=None, stops=())
        except ModelError:
            refused += 1
    assert refused > 100


def test_a_tokenizer_as_llama_cpp_reads_it(tmp_path):
    """Planted bugs caught: special tokens as text, so that they are cut apart; merges in another order; no word of bos."""
    model_of("llama", tmp_path)
    tokenizer = trained_tokenizer(SMOLLM_STEPS)
    tokenizer.add_tokens(["<tool>"])
    saved(tokenizer, tmp_path, chat_template="{{ messages[0]['content'] }}")
    file, _ = written(tmp_path)
    tokens, kinds = key(file, "tokenizer.ggml.tokens"), key(file, "tokenizer.ggml.token_type")
    assert len(tokens) == len(kinds) == 320
    assert tokens[:3] == ["<pad>", "<s>", "</s>"] and kinds[:3] == [gguf.TokenType.CONTROL] * 3
    own = tokenizer.get_vocab()
    assert {text: number for number, text in enumerate(tokens) if kinds[number] != gguf.TokenType.UNUSED} == own
    assert kinds[own["<tool>"]] == gguf.TokenType.USER_DEFINED
    assert kinds[len(own)] == gguf.TokenType.UNUSED
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    assert len(merges) > 20 and key(file, "tokenizer.ggml.merges") == merges
    names = ("model", "pre", "bos_token_id", "eos_token_id", "padding_token_id", "add_bos_token")
    assert [key(file, f"tokenizer.ggml.{name}") for name in names] == ["gpt2", "smollm", 1, 2, 0, False]
    assert key(file, "tokenizer.chat_template") == "{{ messages[0]['content'] }}"


def test_a_first_token_that_the_tokenizer_puts_is_said(tmp_path):
    """Planted bug caught: add_bos_token false whatever the tokenizer does."""
    model_of("llama", tmp_path)
    tokenizer = trained_tokenizer(GPT2_STEPS)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    saved(tokenizer, tmp_path)
    assert key(written(tmp_path)[0], "tokenizer.ggml.add_bos_token") is True


def split(expression):
    return pre_tokenizers.Split(Regex(expression), behavior="isolated")


QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


@pytest.mark.parametrize(
    ("steps", "options", "name"),
    [
        (GPT2_STEPS, {}, "gpt-2"),
        (SMOLLM_STEPS, {}, "smollm"),
        ([split(QWEN2), BYTES], {}, "qwen2"),
        ([split(LLAMA3), BYTES], {"ignore_merges": True}, "llama-bpe"),
        ([BYTES], {}, None),
        ([split(LLAMA3), BYTES], {}, None),
        ([split(r"\d+"), BYTES], {}, None),
        ([*GPT2_STEPS, pre_tokenizers.Digits(individual_digits=True)], {}, None),
        ([pre_tokenizers.ByteLevel(add_prefix_space=True)], {}, None),
    ],
)
def test_the_rule_is_recognised_or_refused(steps, options, name):
    """Planted bugs caught: an unknown rule called gpt-2; the order of steps, or ignore_merges, not looked at."""
    content = json.loads(trained_tokenizer(steps, **options).to_str())
    if name is not None:
        assert pre_type(content) == name
        return
    with pytest.raises(ModelError, match="rule that has no name here") as refused:
        pre_type(content)
    assert "gpt-2, llama-bpe, qwen2, smollm, tekken" in str(refused.value)


def test_qwens_own_tokenizer_is_recognised(tmp_path):
    """What transformers writes for the family. Planted bug caught: the expression is not Qwen's."""
    Qwen2Tokenizer(vocab={"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, merges=[("a", "b")]).save_pretrained(tmp_path)
    assert pre_type(json.loads((tmp_path / "tokenizer.json").read_text())) == "qwen2"


def test_other_tokenizers_are_refused():
    """Planted bug caught: a SentencePiece vocabulary written as one of bytes."""
    pieces = Tokenizer(models.BPE(vocab={"<unk>": 0, "▁a": 1}, merges=[], unk_token="<unk>", byte_fallback=True))
    pieces.decoder = decoders.Metaspace()
    with pytest.raises(ModelError, match="this one is BPE with SentencePiece's byte fallback"):
        pre_type(json.loads(pieces.to_str()))
    with pytest.raises(ModelError, match=r"there is no tokenizer\.json"):
        pre_type({})
    lowered = trained_tokenizer(GPT2_STEPS)
    lowered.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelError, match="Lowercase"):
        pre_type(json.loads(lowered.to_str()))


def test_the_tokenizer_of_a_gguf_base_is_copied(tmp_path):
    """What transformers makes of such a file has lost a step. Planted bugs caught: the rule taken from tokenizer.json;
    tokens that were added since left out.
    """
    origin = tmp_path / "base.gguf"
    writer = gguf.GGUFWriter(origin, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokenizer = trained_tokenizer(GPT2_STEPS)
    texts = [text for text, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    kinds = [int(gguf.TokenType.CONTROL)] * 3 + [int(gguf.TokenType.NORMAL)] * (len(texts) - 3)
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template("of the base")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model_of("llama", tmp_path)
    tokenizer.add_special_tokens(["<new>"])
    saved(tokenizer, tmp_path, chat_template="of the run")
    file, said = written(tmp_path, origin=origin)
    for name in ("model", "pre", "merges", "bos_token_id", "add_bos_token"):
        assert key(file, f"tokenizer.ggml.{name}") == key(origin, f"tokenizer.ggml.{name}")
    tokens, types = key(file, "tokenizer.ggml.tokens"), key(file, "tokenizer.ggml.token_type")
    assert tokens[: len(texts) + 1] == [*texts, "<new>"] and len(tokens) == 320
    assert types[: len(texts) + 1] == [*kinds, gguf.TokenType.CONTROL]
    assert key(file, "tokenizer.chat_template") == "of the run"
    assert said.notes == ["tokenizer: as in base.gguf, and 1 token added in training"]
