import json
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_recipe, tiny_run, write_rows

from dorakit import Recipe, evaluate, load_adapter, merge, quantize
from dorakit.errors import DataError, GateError, ModelError, UsageError
from dorakit.evaluation.gates import check_gates
from dorakit.evaluation.generation import answer_prompts
from dorakit.evaluation.perplexity import token_loss
from dorakit.evaluation.rows import file_rows
from dorakit.evaluation.task import rows_to_measure
from dorakit.model.load import load_base
from dorakit.target import open_target


def loss_by_transformers(model, tokenizer, rows):
    """Token-weighted: every row alone, its mean loss times its number of predicted tokens."""
    total = count = 0
    for row in rows:
        prompt, completion = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in row)
        ids = torch.tensor([[*prompt, *completion, tokenizer.eos_token_id]])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        predicted = len(completion) + 1
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * predicted
        count += predicted
    return total / count, count


def held_out_rows(run):
    lines = (Path(run.recipe.data.root) / "test.jsonl").read_text().splitlines()
    return [(row["prompt"], row["completion"]) for row in map(json.loads, lines)]


def test_loss_is_transformers_loss_per_token(trained):
    """Planted bugs caught: a mean of the rows' means; the prompt's tokens counted; the adapter not attached."""
    run = trained("dora")
    result = evaluate(run, quiet=True, output=run.path.parent / "out" / "loss.json")
    live = load_base("tiny:llama", dtype="float32")
    load_adapter(live.model, run.adapter)
    loss, tokens = loss_by_transformers(live.model.eval(), live.tokenizer, held_out_rows(run))
    assert result["tokens"] == tokens
    assert result["loss"] == pytest.approx(loss, rel=1e-5)
    assert result["perplexity"] == pytest.approx(2.718281828 ** result["loss"], rel=1e-6)
    assert json.loads((run.path.parent / "out" / "loss.json").read_text())["loss"] == result["loss"]
    assert not (run.path / "eval").exists()


def test_loss_does_not_depend_on_the_batches(trained):
    run = trained("lora")
    live = open_target(str(run.path))
    rows = rows_to_measure(run.recipe, live.tokenizer)
    losses = [
        token_loss(live.model, live.tokenizer, rows.documents, micro_batch_size=size, quiet=True) for size in (1, 3, 7)
    ]
    assert [tokens for _, tokens in losses] == [losses[0][1]] * 3
    assert [loss for loss, _ in losses] == pytest.approx([losses[0][0]] * 3, rel=1e-6)


@pytest.mark.parametrize("mode", ["lora", "qdora"])
def test_base_switches_the_adapter_off(run_of, mode):
    """Planted bug caught: --base that measures the adapter."""
    run = run_of(mode)
    with_adapter, without = evaluate(run, quiet=True), evaluate(run, base=True, quiet=True)
    assert (with_adapter["variant"], without["variant"]) == ("adapter", "base")
    assert without["loss"] - with_adapter["loss"] > 0.1
    if mode == "lora":
        base = load_base("tiny:llama", dtype="float32")
        expected, _ = loss_by_transformers(base.model, base.tokenizer, held_out_rows(run))
        assert without["loss"] == pytest.approx(expected, rel=1e-5)
    files = {file.name for file in run.eval.iterdir()}
    kinds = ("json", "predictions.jsonl", "losses.jsonl")
    assert files == {f"{v}-test.{kind}" for v in ("adapter", "base") for kind in kinds}


def test_base_of_a_full_run_is_where_it_began(run_of):
    run = run_of("full")
    after, before = evaluate(run, quiet=True), evaluate(run, base=True, quiet=True)
    untouched = evaluate("tiny:llama", recipe=run.recipe, quiet=True)
    assert after["variant"] == "full"
    assert before["loss"] == pytest.approx(untouched["loss"], rel=1e-6)
    assert before["loss"] - after["loss"] > 0.1


def test_merged_and_quantized_directories_are_measured_with_their_runs_rows(run_of):
    run = run_of("dora")
    live = evaluate(run, quiet=True)
    merge(run, quiet=True)
    quantize(run, quiet=True)
    merged = evaluate(run.merged, quiet=True)
    quantized = evaluate(run.quantized, quiet=True)
    assert merged["loss"] == pytest.approx(live["loss"], rel=1e-4)
    assert quantized["loss"] == pytest.approx(live["loss"], rel=0.05)
    receipt = json.loads((run.quantized / "quantize.json").read_text())
    assert receipt["perplexity"]["before"] == pytest.approx(merged["perplexity"], rel=1e-5)
    assert receipt["perplexity"]["after"] == pytest.approx(quantized["perplexity"], rel=1e-5)
    assert {file.stem for file in run.eval.glob("*.json")} == {"adapter-test", "merged-test", "quantized-test"}
    with pytest.raises(UsageError, match="whole model"):
        evaluate(run.merged, base=True, quiet=True)


def test_accuracy_counts_the_answers_that_are_right(tmp_path):
    """Planted bugs caught: predictions in another order than their rows; the prompt left in the generated text."""
    run = tiny_run(tmp_path, "lora", ("optimizer.learning_rate=1e-6",))  # still varied in its answers
    first = evaluate(run, quiet=True)
    predictions = [json.loads(line) for line in (run.eval / "adapter-test.predictions.jsonl").read_text().splitlines()]
    rows = held_out_rows(run)
    assert [p["prompt"] for p in predictions] == [prompt for prompt, _ in rows]
    right = [p["generated"].strip() == completion.strip() for p, (_, completion) in zip(predictions, rows, strict=True)]
    assert first["accuracy"] == sum(right) / 7
    assert len({p["generated"] for p in predictions}) > 3
    alone = answer_prompts(str(run.path), [rows[1][0]], max_new_tokens=6)
    assert predictions[1]["generated"] == alone[0]["text"]
    # Ask again with the answers that it gave, but for one.
    file = run.path / "again.jsonl"
    wanted = [p["generated"] if i else "never" for i, p in enumerate(predictions)]
    file.write_text(
        "".join(json.dumps({"prompt": p, "answer": w}) + "\n" for (p, _), w in zip(rows, wanted, strict=True))
    )
    again = evaluate(run, data=str(file), quiet=True, batch_size=2)
    assert again["accuracy"] == pytest.approx(6 / 7)
    assert again["accuracy_standard_error"] == pytest.approx((6 / 49 / 7) ** 0.5)
    assert again["loss"] is None and "no loss of these rows" in again["notes"][0]
    assert [s["correct"] for s in again["samples"]] == [False, True, True, True, True]
    assert (run.eval / "adapter-again.json").is_file()


def test_limit_offset_and_validation_rows(run_of, trained, tmp_path, monkeypatch):
    run = run_of("lora")
    assert evaluate(run, limit=3, quiet=True)["rows"] == 3
    shifted = evaluate(run, recipe=run.recipe_with(["evaluation.offset=5"]), quiet=True)
    assert shifted["rows"] == 2
    held_out = evaluate(run, recipe=run.recipe_with(["evaluation.path=null"]), quiet=True)
    assert (held_out["rows"], held_out["data"]) == (6, "validation")
    assert (run.eval / "adapter-validation.json").is_file()
    # The rows are those that training left out: the loss is that of its own validation.
    logged = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    validated = [line["validation/loss"] for line in logged if "validation/loss" in line]
    assert held_out["loss"] == pytest.approx(validated[-1], rel=1e-5)
    write_rows(tmp_path / "own.jsonl", 2)
    monkeypatch.chdir(tmp_path)
    assert evaluate(run, data="own.jsonl", quiet=True)["data"] == "own.jsonl"
    with pytest.raises(DataError, match=r"neither evaluation\.path nor data\.validation"):
        evaluate(run, recipe=run.recipe_with(["evaluation.path=null", "data.validation.rows=0"]), quiet=True)


def test_another_measurement_of_the_same_rows_has_a_place_of_its_own(run_of):
    """Planted bugs caught: 3 rows in the place of 7; a loss in the place of an accuracy; a file whose rows changed taken for
    the same; a name more for what was measured before.
    """
    run = run_of("lora")
    plain = run.recipe_with(["evaluation.metric=none"])
    asked = [{}, {"limit": 3}, {"recipe": plain}, {"recipe": run.recipe_with(["evaluation.max_new_tokens=4"])}]
    names = [f"adapter-test{number}.json" for number in ("", "-2", "-3", "-4")]
    for _ in range(2):
        results = [evaluate(run, quiet=True, **one) for one in asked]
        assert [Path(result["output"]).name for result in results] == names
    kept = [json.loads((run.eval / name).read_text()) for name in names]
    assert [(one["rows"], one["metric"]) for one in kept] == [
        (7, "exact_match"), (3, "exact_match"), (7, "none"), (7, "exact_match"),
    ]  # fmt: skip
    said = [one["notes"][-1] for one in kept[1:]]
    assert said == [
        f"adapter-test.json holds another measurement ({what}): this one is {name}"
        for what, name in zip(
            (
                "limit none there, 3 here",
                "metric exact_match there, none here; max_new_tokens 6 there, none here",
                "max_new_tokens 6 there, 4 here",
            ),
            names[1:],
            strict=True,
        )
    ]
    assert (run.eval / "adapter-test.predictions.jsonl").is_file() and not list(run.eval.glob("*-3.predictions*"))
    file = Path(kept[0]["data_path"])
    before = file.read_text()
    file.write_text(before.replace('"prompt": "', '"prompt": "Now ', 1))
    try:
        other = evaluate(run, quiet=True)
    finally:
        file.write_text(before)  # other tests measure on it
    assert other["output"].endswith("adapter-test-5.json") and "(other rows)" in other["notes"][-1]


def test_the_loss_of_each_row_lies_beside_the_result(trained, tmp_path):
    """Planted bugs caught: losses in the order of length; of a row, the loss of the one before."""
    run = trained("lora")
    result = evaluate(run, output=tmp_path / "loss.json", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "loss.losses.jsonl").read_text().splitlines()]
    rows = rows_to_measure(run.recipe, open_target(str(run.path)).tokenizer).documents
    assert [(line["row"], line["tokens"]) for line in lines] == [(row.row, row.num_labels) for row in rows]
    live = load_base("tiny:llama", dtype="float32")
    load_adapter(live.model, run.adapter)
    live.model.eval()
    for line, row in zip(lines, held_out_rows(run), strict=True):
        alone, tokens = loss_by_transformers(live.model, live.tokenizer, [row])
        assert line["nats"] == pytest.approx(alone * tokens, rel=1e-5)
    assert result["loss"] == pytest.approx(sum(line["nats"] for line in lines) / result["tokens"])


def test_test_rows_that_are_training_rows_too_are_counted(run_of):
    """Planted bugs caught: never looked for; every row is one."""
    run = run_of("lora")
    assert evaluate(run, quiet=True)["rows_trained_on"] == 0
    (source,) = run.recipe.data.train
    result = evaluate(run, data=str(Path(run.recipe.data.root, source.path)), quiet=True)
    assert (result["rows"], result["rows_trained_on"]) == (24, 18)
    assert "18 of 24 rows are in the training rows too" in result["notes"]


def test_output_leaves_what_lies_beside_it_alone(trained, tmp_path):
    """Planted bug caught: predictions written over, or removed with, the user's rows of the same name."""
    run, rows = trained("lora"), tmp_path / "test.jsonl"
    write_rows(rows, 2)
    before = rows.read_bytes()
    result = evaluate(run, data=str(rows), output=tmp_path / "test.json", quiet=True)
    assert result["predictions"] == str(tmp_path / "test.predictions.jsonl")
    assert len((tmp_path / "test.predictions.jsonl").read_text().splitlines()) == 2
    plain = run.recipe_with(["evaluation.metric=none"])
    assert evaluate(run, data=str(rows), recipe=plain, output=tmp_path / "test.json", quiet=True)["predictions"] is None
    assert rows.read_bytes() == before


def test_output_that_cannot_be_written_is_refused_before_measuring(trained, tmp_path, monkeypatch):
    """Planted bug caught: found out when the result of hours is written."""
    monkeypatch.setattr("dorakit.evaluation.task.open_target", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    (tmp_path / "directory.json").mkdir()
    with pytest.raises(UsageError, match="file is a file"):
        evaluate(trained("lora"), output=tmp_path / "file" / "deep" / "r.json", quiet=True)
    with pytest.raises(UsageError, match="that is a directory"):
        evaluate(trained("lora"), output=tmp_path / "directory.json", quiet=True)


def test_what_cannot_be_measured(trained, tmp_path):
    with pytest.raises(UsageError, match="belongs to no run"):
        evaluate("tiny:llama", quiet=True)
    with pytest.raises(UsageError, match=r"name a \.json file"):
        evaluate(trained("lora"), output=tmp_path / "result.txt", quiet=True)
    with pytest.raises(UsageError, match="--base-model goes with an adapter"):
        evaluate(trained("lora"), base_model="tiny:llama", output=tmp_path / "r.json", quiet=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p" * 8190, "answer": "1"}, r"long\.jsonl:2: a prompt of 8,190 tokens and 6 new ones"),
        ({"prompt": "p", "completion": "c" * 9000}, r"long\.jsonl:2: 9002 tokens, and the model has 8192 positions"),
    ],
)
def test_rows_that_do_not_fit_the_model_are_found_first(trained, tmp_path, monkeypatch, row, message):
    """Planted bug caught: found after the loss of all rows was taken, and without the row's name."""
    monkeypatch.setattr("dorakit.evaluation.task.row_losses", lambda *_, **__: pytest.fail("measured"))
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in ({"prompt": "1 + 1 =", "completion": " 2"}, row)))
    recipe = trained("lora").recipe_with(["data.max_seq_len=10000"])
    with pytest.raises(ModelError, match=message):
        evaluate(trained("lora"), data=str(file), recipe=recipe, output=tmp_path / "r.json", quiet=True)


def test_overlong_rows_are_counted_not_hidden(tmp_path):
    recipe: Recipe = tiny_recipe(tmp_path, "lora", ("data.max_seq_len=17",))
    tokenizer = load_base("tiny:llama", dtype="float32").tokenizer
    rows = file_rows(recipe, tokenizer, "test.jsonl", as_questions=True)
    assert (rows.num_rows, len(rows.questions)) == (7, 7)
    assert 0 < len(rows.documents) < 7
    assert f"{7 - len(rows.documents)} of 7 rows are not in the loss" in rows.notes[-1]


RESULT = {"accuracy": 0.5, "loss": 2.0, "perplexity": 7.4, "unparsed": 1, "unfinished": 0, "metric": "option"}


@pytest.mark.parametrize(
    ("gate", "error"),
    [
        (("--min", "accuracy", 0.5), None),
        (("--max", "loss", 2.0), None),
        (("--min", "accuracy", 0.51), r"accuracy is 0.5, --min asked for 0.51"),
        (("--max", "perplexity", 7.0), r"perplexity is 7.4, --max asked for 7"),
    ],
)
def test_gates(gate, error):
    if error is None:
        check_gates([gate], RESULT)
    else:
        with pytest.raises(GateError, match=error):
            check_gates([gate], RESULT)


def test_gates_name_measures_that_exist():
    with pytest.raises(UsageError, match="no such measure; there are accuracy"):
        check_gates([("--min", "acuracy", 0.5)], None)
    with pytest.raises(UsageError, match="not measured"):
        check_gates([("--min", "accuracy", 0.5)], {**RESULT, "accuracy": None})
    with pytest.raises(GateError, match="accuracy is nan"):
        check_gates([("--min", "accuracy", 0.5)], {**RESULT, "accuracy": float("nan")})
