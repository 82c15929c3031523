"""Secrets: refused in recipes, hidden in messages, and nowhere in a run. Every one here is made up, from pieces."""

import json

import pytest
from tiny_runs import tiny_recipe

from dorakit.cli import app
from dorakit.errors import DataError, RecipeError, shown
from dorakit.recipe.loader import load_recipe
from dorakit.recipe.tree import Place
from dorakit.secrets import redacted, secrets_in, without_values

CANARY = "CanaryThatSings0123456789"
SECRETS = {
    "hub": "hf" + "_" + CANARY,
    "key": "sk" + "-" + "proj-" + CANARY,
    "forge": "gh" + "p_" + CANARY,
    "cloud": "AK" + "IA" + "ABCDEFGHIJKLMNOP",
    "cloud for an hour": "AS" + "IA" + "ABCDEFGHIJKLMNOP",
    "address": "somebody:" + CANARY,
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("around", ["{}", "a {} b", "'{}'", "x={}&y", "[{}]", "({})", "\n{}\n"])
def test_what_looks_like_a_secret(secret, around):
    text = around.format(f"https://{secret}@host/x" if secret.startswith("somebody") else secret)
    assert len(list(secrets_in(text))) == 1
    assert CANARY not in redacted(text) and "ABCDEFGHIJ" not in redacted(text)
    assert "[hidden]" in redacted(text)
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "meta-llama/Meta-Llama-3-8B",
        "runs/hf_model/checkpoints",
        "3f786850e387550fdab836ed7e6dc881de23001b",
        "desk-lamps-0123456789-0123456789",
        "sk-learn-text-classification",
        "https://huggingface.co/a/b:main@x",
        "C:/a@b",
        "prompt 1 holds no token: nothing to continue",
        "<|im_end|> is the stop token: it was appended",
    ],
)
def test_what_looks_like_none(text):
    assert list(secrets_in(text)) == [] and redacted(text) == text


def test_named_secrets():
    """A name tells in messages only where it is of two words: in prose, "token:" begins a sentence."""
    for text in ("hf_token: abc", "HF_TOKEN=abc", "api-key = abc", "?access_token=abc"):
        assert "abc" not in redacted(text)
    for line in ("  token: abc", "password: abc", "  wandb_api_key: abc", "--set model.token=abc", "{token: abc}"):
        assert "abc" not in without_values(line)
    for line in ("max_new_tokens: 8", "added_tokens: [abc]", "micro_batch_tokens: 64"):
        assert without_values(line) == line


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a_secret_that_the_cut_goes_through(secret):
    """Planted bug caught: the line is cut before its secrets are hidden."""
    secret = f"https://{secret}@host" if secret.startswith("somebody") else secret
    for lead in range(100, 165):
        for line in (f"{'x' * lead} {secret} {'x' * 5000}", f"{'x' * lead} {secret}"):
            shown = Place("r.yaml", 1, 1, source_line=line).problem("wrong").source_line
            assert len(shown) <= 161 and "Can" not in shown and "ABC" not in shown


def test_messages_are_safe_to_print():
    """Planted bug caught: a message reaches the terminal as a stranger wrote it."""
    assert shown("a\x1b[31mb\n\tc\ud800\x07é") == "a\\x1b[31mb\n\tc\\ud800\\x07é"
    assert str(DataError(f"x: https://{SECRETS['address']}@host \x1b]0;")) == "x: https://[hidden]@host \\x1b]0;"


def run(monkeypatch, capfd, *arguments):
    monkeypatch.setattr("sys.argv", ["dorakit", *map(str, arguments)])
    code = 0
    try:
        app.main()
    except SystemExit as leaving:
        code = int(str(leaving.code or 0))
    out, err = capfd.readouterr()
    return code, out + err


def test_no_secret_is_kept_or_said(tmp_path, monkeypatch, capfd):
    """Planted bugs caught: the environment is dumped into the run; a recipe with a token is run; `--set` is echoed; a
    row is quoted with a token in it; `--debug` prints the error as it was raised.
    """
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRETS["hub"])
    monkeypatch.setenv("DORAKIT_DEBUG", "")  # which --debug sets, to be undone
    recipe = tiny_recipe(tmp_path, "lora", base="tiny:llama")
    path = recipe.origin.path
    said = []

    code, text = run(monkeypatch, capfd, "train", path)
    said.append(text)
    assert code == 0 and "next:  dorakit eval" in text
    kept = [file for file in (tmp_path / "run-lora").rglob("*") if file.is_file()]
    assert {"environment.json", "recipe.yaml", "recipe.resolved.yaml", "run.json", "log.txt"} <= {f.name for f in kept}
    assert [file for file in kept if CANARY.encode() in file.read_bytes()] == []

    code, text = run(monkeypatch, capfd, "train", path, "--set", f"model.base={SECRETS['hub']}")
    said.append(text)
    assert code == 2 and "--set model.base=[hidden]: error: this looks like a Hugging Face token" in text

    rows = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(
        rows + json.dumps({"prompt": SECRETS["key"]}) + "\n{'" + SECRETS["hub"] + "': 1}\n"
    )
    for flags in ((), ("--debug",)):
        code, text = run(monkeypatch, capfd, *flags, "train", path)
        said.append(text)
        assert code == 2 and "train.jsonl:26: not JSON" in text and "{'[hidden]': 1}" in text
        assert ("Traceback" in text) == bool(flags)
    assert not [text for text in said if CANARY in text]


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("line", ["# see {}", "  sample_prompts: ['{}']", "output_dir: {}", "x: '{}", "\t{}"])
def test_a_recipe_with_a_secret_is_refused_whatever_else_is_wrong(tmp_path, secret, line):
    """Also where YAML breaks off, and where a message would quote the beginning of it."""
    written = line.format(f"https://{secret}@host/x" if secret.startswith("somebody") else secret)
    (tmp_path / "r.yaml").write_text(f"version: 1\ntraining:\n{written}\n")
    with pytest.raises(RecipeError, match=r"r.yaml:3:\d+: error: this looks like an? ") as caught:
        load_recipe(str(tmp_path / "r.yaml"), [])
    assert "Canary" not in str(caught.value) and "ABCDEFGH" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "r.yaml", "--token={}"],
        ["{}"],
        ["data", "r.yaml", "--limit", "{}\x1b[2J"],
        ["eval", "runs/x", "--limit", "{}\x1b[2J"],
        ["train", "a.yaml", "{}\x1b[2J"],
    ],
)
def test_a_command_line_that_typer_does_not_understand(monkeypatch, capsys, arguments):
    """Dies if Typer's own words go out as they are: they quote what was typed."""
    monkeypatch.setattr("sys.argv", ["dorakit", *(text.format(SECRETS["hub"]) for text in arguments)])
    with pytest.raises(SystemExit) as left:
        app.main()
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.startswith("error: ") and "Traceback" not in said
    assert CANARY not in said and "\x1b" not in said
