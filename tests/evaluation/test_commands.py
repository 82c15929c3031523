"""`dorakit eval` and `dorakit generate` as a person runs them."""

import json
import shutil

import pytest
from tiny_runs import tiny_run
from typer.testing import CliRunner

from dorakit.cli.app import app
from dorakit.errors import GateError, UsageError
from dorakit.evaluation.generation import answer_prompts
from dorakit.model.load import load_base


def dorakit(*arguments, fails=None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if fails is None:
        if result.exception is not None:
            raise result.exception
        assert result.exit_code == 0
    else:
        assert isinstance(result.exception, fails), result.exception
    return result


def test_eval_json_is_one_object_on_stdout_and_messages_are_on_stderr(run_of):
    run = run_of("lora")
    result = dorakit("eval", run.path, "--json")
    content = json.loads(result.stdout)
    assert content == json.loads((run.eval / "adapter-test.json").read_text())
    assert content["output"] == str(run.eval / "adapter-test.json")
    assert "answers: 7/7" in result.stderr
    assert dorakit("eval", run.path, "--json", "--quiet").stderr == ""


def test_eval_shows_a_table_and_samples_for_people(run_of):
    run = run_of("lora")
    shown = dorakit("eval", run.path, "--quiet", "--set", "evaluation.limit=2").stdout
    assert "accuracy (exact_match)" in shown
    assert shown.count("expected:") == 2
    assert f"written: {run.eval / 'adapter-test.json'}" in shown


def test_an_unmet_gate_still_shows_and_writes_the_result(run_of):
    run = run_of("lora")
    result = dorakit("eval", run.path, "--json", "--min", "accuracy=1.0", "--max", "loss=0.1", fails=GateError)
    assert result.exception.exit_code == 5
    assert "accuracy" in str(result.exception) and "loss" in str(result.exception)
    assert result.exception.result["rows"] == 7  # what the error is printed beside
    assert (run.eval / "adapter-test.json").is_file()
    dorakit("eval", run.path, "--min", "accuracy=0", "--max", "loss=100")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--min", "accuracy"), "expected METRIC=VALUE"),
        (("--min", "accuracy=high"), "expected METRIC=VALUE"),
        (("--max", "speed=3"), "no such measure"),
    ],
)
def test_gates_that_cannot_be_read(trained, arguments, message):
    assert message in str(dorakit("eval", trained("lora").path, *arguments, fails=UsageError).exception)


def test_a_gate_on_answers_that_nobody_judges_is_refused_before_measuring(run_of):
    """Planted bug caught: everything is measured first, and then the gate is refused."""
    run = run_of("lora")
    unjudged = ("--set", "evaluation.metric=none")
    refused = dorakit("eval", run.path, *unjudged, "--min", "accuracy=0.9", fails=UsageError)
    assert "evaluation.metric is none" in str(refused.exception)
    assert "--set evaluation.metric=exact_match" in str(refused.exception)
    assert refused.stderr == "" and not run.eval.exists()
    run.record(run.recipe_with(["evaluation.metric=none"]))
    assert str(dorakit("eval", run.path, "--min", "accuracy=0.9", fails=UsageError).exception) == str(refused.exception)
    dorakit("eval", run.path, "--max", "loss=100", "--max", "perplexity=1e9", "--quiet")
    dorakit("eval", run.path, "--set", "evaluation.metric=exact_match", "--min", "accuracy=0", "--quiet")


@pytest.mark.parametrize("command", ["eval", "quantize"])
@pytest.mark.parametrize("setting", ["model.base=tiny:qwen2", "adapter.rank=2", "quantization={block_size: 128}"])
def test_what_a_run_was_trained_with_cannot_be_set(trained, command, setting):
    """Planted bug caught: the setting goes unread, and the figures are taken for those of another base."""
    run = trained("qlora")
    for target in (run.path, run.adapter):
        error = dorakit(command, target, "--set", setting, fails=UsageError).exception
        assert str(error).startswith(f"--set {setting}: {target} was trained with its {setting.partition('=')[0]}, ")
    recipe = run.path / "recipe.resolved.yaml"
    dorakit(command, run.path, "--recipe", recipe, "--set", setting, fails=UsageError)


def test_prompts_that_a_run_cannot_be_asked(trained):
    """Planted bugs caught: a prompt that is no text blames training.sample_prompts; --system changes the format."""
    run = trained("lora")
    for arguments, said in (
        (("--prompt", "\udcff"), r"--prompt '\udcff': not UTF-8 text"),
        (("--prompt", "x", "--system", "\udcff"), r"--system '\udcff': not UTF-8 text"),
        (("--prompt", "x", "--system", "y"), "--system: run-lora was trained on rows of format completion, which"),
    ):
        assert str(dorakit("generate", run.path, *arguments, fails=UsageError).exception).startswith(said)


def test_set_needs_a_recipe():
    error = dorakit("eval", "tiny:llama", "--set", "evaluation.limit=2", fails=UsageError).exception
    assert "--recipe FILE" in str(error)


def test_generate_answers_as_training_rows_ask(tmp_path):
    """Planted bug caught: the chat template put around the prompt of a run that was trained on bare prompts."""
    run = tiny_run(tmp_path, "lora", ("optimizer.learning_rate=1e-6",))  # still varied in its answers
    content = json.loads(dorakit("generate", run.path, "-p", "a 3 plus 5 =", "--max-new-tokens", 6, "--json").stdout)
    raw = answer_prompts(str(run.path), ["a 3 plus 5 ="], raw=True, max_new_tokens=6)
    assert content == {"target": str(run.path), "answers": raw}
    elsewhere = shutil.copytree(run.adapter, tmp_path / "mine")  # where no recipe says how its rows were asked
    assert answer_prompts(str(elsewhere), ["a 3 plus 5 ="], max_new_tokens=6) != raw


def test_generate_draws_as_chat_does(trained):
    """Planted bugs caught: a temperature that is not used; one draw for all prompts; --seed that changes nothing."""
    run = str(trained("lora").path)
    options = ("--temperature", 3, "--max-new-tokens", 8, "--json")

    def drawn(*more):
        shown = dorakit("generate", run, "-p", "1 plus 3 =", "-p", "1 plus 3 =", *options, *more).stdout
        return [answer["text"] for answer in json.loads(shown)["answers"]]

    first, second = drawn()
    assert first != second and drawn() == [first, second] == drawn("--seed", 42) != drawn("--seed", 7)
    lines = CliRunner().invoke(app, ["chat", run, *map(str, options)], input="1 plus 3 =\n/clear\n1 plus 3 =\n").stdout
    assert [json.loads(line)["text"] for line in lines.splitlines()] == [first, second]
    assert "nothing is drawn" in str(dorakit("generate", run, "-p", "a", "--seed", 1, fails=UsageError).exception)


@pytest.mark.parametrize("mode", ["dora", "full"])
def test_compare_shows_the_base_beside_the_adapter(trained, mode):
    """Planted bug caught: the adapter left on for the base's answer."""
    run = trained(mode)
    (answer,) = answer_prompts(str(run.path), ["a 3 plus 5 ="], compare=True, max_new_tokens=6)
    (base,) = answer_prompts("tiny:llama", ["a 3 plus 5 ="], raw=True, max_new_tokens=6)
    (adapter,) = answer_prompts(str(run.path), ["a 3 plus 5 ="], max_new_tokens=6)
    assert answer == {"prompt": "a 3 plus 5 =", "text": adapter["text"], "base_text": base["text"]}
    assert adapter["text"] != base["text"]


def test_compare_table_and_control_characters(trained):
    shown = dorakit("generate", trained("dora").path, "-p", "one", "-p", "two", "--compare", "--max-new-tokens", 12)
    assert shown.stdout.count("adapter") == 2 and "one" in shown.stdout and "two" in shown.stdout
    assert all(character.isprintable() or character == "\n" for character in shown.stdout)


def test_prompts_that_cannot_be_asked(trained):
    with pytest.raises(UsageError, match="give one of them"):
        answer_prompts(str(trained("lora").path), ["x"], system="s", raw=True)
    with pytest.raises(UsageError, match="no base to compare with"):
        answer_prompts("tiny:llama", ["x"], compare=True)


def test_a_model_without_a_template_is_prompted_as_it_is(tmp_path, capsys):
    base = load_base("tiny:llama", dtype="float32")
    base.model.save_pretrained(tmp_path)
    base.tokenizer.chat_template = None
    base.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    answers = answer_prompts(str(tmp_path), ["hello"], max_new_tokens=3)
    assert answers == answer_prompts(str(tmp_path), ["hello"], raw=True, max_new_tokens=3)
    assert "no chat template" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--system: the tokenizer"):
        answer_prompts(str(tmp_path), ["hello"], system="s")
