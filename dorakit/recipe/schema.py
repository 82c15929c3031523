"""The recipe: every section, every field, every default, and nothing else.

Frozen pydantic models, free of torch. A default stands here or nowhere. Each field names the module that reads it
(`read_by`), which `dorakit validate --explain` prints and a test holds against that module's source: a field that
nothing reads is a bug. Text, positions, `extends` and `--set` are the loader's business.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

# The validation context of what has its places and sources from elsewhere: the loader's trees.
AS_IT_IS = object()
MODES = ("full", "lora", "dora", "qlora", "qdora")


def _only_int(value: Any) -> Any:
    if type(value) is not int:
        raise PydanticCustomError("literal_error", "not a whole number")
    return value


# A Literal compares with ==, strict or not, and 1 == 1.0 == True.
Whole = BeforeValidator(_only_int)
Positive = Annotated[int, Field(ge=1)]
PositiveNumber = Annotated[float, Field(gt=0.0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


def setting(default: Any = ..., *, reads: str, says: str, **constraints: Any) -> Any:
    """Declare a field: its default (required when left out), the module that reads it, what it means."""
    if isinstance(default, (list, dict, BaseModel)):
        constraints["default_factory"] = lambda: default.copy() if isinstance(default, (list, dict)) else default
        return Field(description=says, json_schema_extra={"read_by": reads}, **constraints)
    return Field(default, description=says, json_schema_extra={"read_by": reads}, **constraints)


class Section(BaseModel):
    """What every section shares: no unknown keys, no coercion, no change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSection(Section):
    """The base model, frozen in every mode but `full`."""

    base: str = setting(
        reads="model/load.py",
        says="Hub id, local directory (starting with ./, ../, / or ~), .gguf file, pkg:<installed package>/<file>, "
        "or tiny:<architecture> (seeded random weights, two layers, byte tokenizer).",
    )
    revision: str = setting("main", reads="build.py", says="Branch, tag or commit of a hub id.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto",
        reads="build.py",
        says="Compute dtype; auto is bfloat16 where the hardware has it and float32 elsewhere. float16 is for evaluation "
        "only.",
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = setting(
        "auto",
        reads="build.py",
        says="Attention implementation, as transformers names it. auto is transformers' own choice (sdpa, where a model has "
        "it), taken document by document where documents are packed; on a CPU in bfloat16 rows of up to 512 tokens take another, "
        "faster form of the same sum.",
    )
    architecture: str | None = setting(
        None, reads="recipe/rules.py", says="Architecture that `--twin` builds small, e.g. llama."
    )
    added_tokens: list[str] = setting(
        [],
        reads="build.py",
        says="Special tokens to add to the tokenizer. Their embeddings must be trained: list the embedding under "
        "adapter.modules_to_save (or use mode: full).",
    )


class MagnitudeSection(Section):
    """DoRA's magnitude vector m, one number per output row."""

    learning_rate_ratio: float = setting(
        1.0, reads="training/groups.py", says="Learning rate of m as a multiple of optimizer.learning_rate.", gt=0.0
    )
    weight_decay: float = setting(0.0, reads="training/groups.py", says="Weight decay of m.", ge=0.0)
    init: Literal["dequantized", "original"] = setting(
        "dequantized",
        reads="recipe/schema.py",
        says="Row norms that m starts from: of the weights in use (step 0 equals the base), or of the weights before "
        "quantization (corrects the row norms of NF4; step 0 then differs from the base).",
    )


class VeRASection(Section):
    """VeRA's vectors and random matrices."""

    d_initial: float = setting(0.1, reads="adapters/vera.py", says="What every element of d starts from.")
    seed: Annotated[int, Field(ge=0)] = setting(
        0, reads="adapters/vera.py", says="Seed of the frozen A and B, projection_prng_key in PEFT."
    )


class MiSSSection(Section):
    """MiSS's matrix."""

    mini_rank: Positive | None = setting(
        None,
        reads="adapters/miss.py",
        says="Columns of D, repeated over the outputs, which it must divide (PEFT's mini); without it a column for each output.",
    )


class MoRASection(Section):
    """MoRA's square matrix."""

    kind: Annotated[Literal[1, 6], Whole] = setting(
        6,
        reads="adapters/mora.py",
        says="How x comes to M, a type of the authors: 1 sums blocks of it (for large ranks), 6 takes each block, rotated "
        "by its number.",
    )


class PiSSASection(Section):
    """PiSSA's singular value decomposition."""

    iterations: Positive | None = setting(
        None, reads="recipe/schema.py", says="Power iterations of a randomised SVD; without it the exact SVD."
    )


class AdapterSection(Section):
    """What is trained."""

    mode: Literal["full", "lora", "dora", "qlora", "qdora"] = setting(
        reads="recipe/schema.py", says="full, lora, dora, or with an NF4 base qlora, qdora."
    )
    update: Literal["lora", "vera", "miss", "hira", "bat", "mora"] = setting(
        "lora", reads="build.py", says="What is added to each weight: a name of `dorakit methods`."
    )
    start: Literal["kaiming", "pissa", "olora"] = setting(
        "kaiming", reads="starting.py", says="Where A and B begin: a name of `dorakit methods`."
    )
    rank: Positive = setting(16, reads="build.py", says="Rank r of A and B.")
    alpha: float = setting(32.0, reads="build.py", says="Scaling numerator: s = alpha / rank.", gt=0.0)
    dropout: Fraction = setting(
        0.0, reads="build.py", says="Dropout on the input of A; the base term is never dropped."
    )
    target_modules: Literal["all-linear"] | str | list[str] = setting(
        "all-linear",
        reads="build.py",
        says="all-linear (every linear layer that text passes through, but lm_head), a list of name suffixes, or one "
        "regular expression over whole module names. Every entry must match at least one module.",
    )
    rank_pattern: dict[str, Positive] = setting(
        {}, reads="build.py", says="Rank per module: name suffix or regular expression -> rank."
    )
    alpha_pattern: dict[str, PositiveNumber] = setting(
        {}, reads="build.py", says="Alpha per module, as rank_pattern; with both, s = its alpha / its rank."
    )
    modules_to_save: list[str] = setting(
        [], reads="build.py", says="Name suffixes of modules trained whole and saved with the adapter."
    )
    rslora: bool = setting(False, reads="build.py", says="Scale by alpha / sqrt(rank) instead (rsLoRA).")
    magnitude: MagnitudeSection = setting(
        MagnitudeSection(), reads="training/loop.py", says="DoRA's magnitude vector (mode dora or qdora)."
    )
    vera: VeRASection = setting(VeRASection(), reads="recipe/schema.py", says="Settings of update vera.")
    miss: MiSSSection = setting(MiSSSection(), reads="recipe/schema.py", says="Settings of update miss.")
    mora: MoRASection = setting(MoRASection(), reads="recipe/schema.py", says="Settings of update mora.")
    pissa: PiSSASection = setting(PiSSASection(), reads="recipe/schema.py", says="Settings of start pissa.")

    @property
    def update_settings(self) -> dict[str, Any]:
        """What only this update takes: settings of `attach_`."""
        sections: dict[str, Section] = {"vera": self.vera, "miss": self.miss, "mora": self.mora}
        return sections[self.update].model_dump() if self.update in sections else {}

    @property
    def start_settings(self) -> dict[str, Any]:
        """What only this start takes: settings of its function."""
        return {"iterations": self.pissa.iterations} if self.start == "pissa" else {}


class QuantizationSection(Section):
    """Storage of the frozen base in the modes qlora and qdora."""

    format: Literal["nf4"] = setting("nf4", reads="build.py", says="4-bit NormalFloat, the QLoRA paper's data type.")
    block_size: Annotated[Literal[64, 128, 256, 512], Whole] = setting(
        64, reads="build.py", says="Weights that share one absmax."
    )
    double_quant: bool = setting(
        True, reads="build.py", says="Quantize the absmax values too (0.37 bit saved a weight)."
    )
    skip_modules: list[str] = setting(
        ["lm_head"], reads="build.py", says="Name suffixes of linear layers to keep unquantized."
    )


class SourceSection(Section):
    """One source of rows."""

    path: str = setting(
        reads="data/sources.py",
        says="A .json, .jsonl, .csv, .parquet or .txt file, a directory saved by datasets, or a hub data set. "
        "Relative paths resolve against data.root.",
    )
    format: Literal["chat", "instruction", "completion", "text"] = setting(
        reads="data/formats.py",
        says="chat (messages or ShareGPT), instruction (instruction, input, output), completion (prompt, completion) "
        "or text.",
    )
    split: str | None = setting(
        None, reads="data/sources.py", says="Split of a hub data set or saved DatasetDict; train where none is named."
    )
    name: str | None = setting(None, reads="data/hub.py", says="Configuration name of a hub data set.")
    revision: str | None = setting(None, reads="data/hub.py", says="Revision of a hub data set.")
    weight: float = setting(
        1.0, reads="data/tokens.py", says="Rows taken, as a multiple of the source: 0.5 half, 2.0 each twice.", gt=0.0
    )
    offset: Annotated[int, Field(ge=0)] = setting(0, reads="data/sources.py", says="Rows to skip first.")
    limit: Positive | None = setting(None, reads="data/sources.py", says="At most this many rows.")
    columns: dict[str, str] = setting(
        {}, reads="data/formats.py", says="Column names where they differ: expected name -> name in the data."
    )
    prompt: str = setting(
        "default",
        reads="data/formats.py",
        says="For format instruction: default (Alpaca's prompt), llm-adapters (training prompt of the DoRA paper), "
        "orca-math (Answer.AI's), chat (the chat template), or a text that holds {instruction}.",
    )


class ValidationSection(Section):
    """Held-out rows: a fraction or a number of the training rows, or a file of their own; none by default."""

    fraction: Fraction = setting(0.0, reads="data/tokens.py", says="Share of the training rows to hold out.")
    rows: Annotated[int, Field(ge=0)] = setting(0, reads="data/tokens.py", says="Number of training rows to hold out.")
    path: str | None = setting(
        None,
        reads="data/tokens.py",
        says="A file or data set of validation rows, in the form of the first training source.",
    )
    split: str | None = setting(
        None, reads="data/tokens.py", says="Split of `path`, where that is a data set; validation where none is named."
    )

    @model_validator(mode="after")
    def _one_way(self) -> ValidationSection:
        if (self.fraction > 0) + (self.rows > 0) + (self.path is not None) > 1:
            raise ValueError("give one of fraction, rows and path")
        return self


class DataSection(Section):
    """Rows, and how they become tokens."""

    root: str = setting(
        ".",
        reads="recipe/paths.py",
        says="Directory that relative data paths start from, itself relative to the recipe. Where none is stated, each "
        "starts from the file that it is written in.",
    )
    train: list[SourceSection] = setting(reads="data/sources.py", says="Training sources.", min_length=1)
    validation: ValidationSection = setting(ValidationSection(), reads="data/tokens.py", says="Held-out rows.")
    chat_template: str | None = setting(
        None,
        reads="data/chat.py",
        says="Jinja chat template, or a file under data.root that holds one, instead of the tokenizer's own.",
    )
    train_on: Literal["completion", "all", "last"] = setting(
        "completion",
        reads="data/documents.py",
        says="Tokens that carry the loss: completion (in chats every turn of the assistant), all, or last (the last "
        "turn of the assistant).",
    )
    max_seq_len: Annotated[int, Field(ge=8)] = setting(
        1024, reads="data/tokens.py", says="Tokens per document at most."
    )
    overlength: Literal["drop", "truncate", "error"] = setting(
        "drop", reads="data/tokens.py", says="What happens to longer documents; the count is always printed."
    )
    packing: bool = setting(
        False,
        reads="training/loop.py",
        says="Lay several documents into one row of max_seq_len tokens; they do not see each other.",
    )


class NonfiniteSection(Section):
    """How often a loss or gradient that is not finite is passed over."""

    skip: Positive = setting(reads="training/nonfinite.py", says="Steps that may be passed over in all.")


class TrainingSection(Section):
    """The loop."""

    epochs: float = setting(3.0, reads="training/prepare.py", says="Passes over the training rows.", gt=0.0)
    max_steps: Positive | None = setting(
        None, reads="training/prepare.py", says="Stop after this many optimizer steps."
    )
    batch_size: Positive = setting(16, reads="training/loop.py", says="Documents per optimizer step, over everything.")
    micro_batch_size: Positive = setting(4, reads="training/loop.py", says="Rows per forward pass.")
    micro_batch_tokens: Positive | None = setting(
        None,
        reads="training/loop.py",
        says="Tokens per forward pass, padding included, instead of micro_batch_size; a longer row is a pass of its own.",
    )
    max_grad_norm: float = setting(
        1.0, reads="training/loop.py", says="Clip the gradient to this norm; 0 does not clip.", ge=0.0
    )
    gradient_checkpointing: bool = setting(
        False, reads="training/loop.py", says="Recompute activations in the backward pass: less memory, more time."
    )
    compile: bool = setting(
        False,
        reads="training/loop.py",
        says="Compile the decoder layers with torch.compile. Needs a C++ compiler and a minute; not with gradient_checkpointing.",
    )
    deterministic: bool = setting(
        False, reads="training/loop.py", says="Deterministic kernels on CUDA too (always on where there is none)."
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = setting(
        42, reads="training/loop.py", says="Seed of every random draw."
    )
    log_every: Positive = setting(10, reads="training/loop.py", says="Steps between two lines of metrics.")
    eval_every: Annotated[int, Field(ge=0)] = setting(
        100, reads="training/loop.py", says="Steps between two validations; 0 validates at the end only."
    )
    save_every: Annotated[int, Field(ge=0)] = setting(
        100, reads="training/loop.py", says="Steps between two checkpoints; 0 saves at the end only."
    )
    keep_checkpoints: Annotated[int, Field(ge=2)] = setting(
        2, reads="training/loop.py", says="Newest checkpoints to keep."
    )
    keep_best: bool = setting(
        False, reads="training/loop.py", says="End with the weights of the lowest validation loss instead of the last."
    )
    sample_prompts: list[str] = setting(
        [],
        reads="training/validation.py",
        says="Prompts to complete before the first step and at each validation, to see the model change.",
    )
    sample_rows: Annotated[int, Field(ge=0)] = setting(
        3,
        reads="training/validation.py",
        says="Held-out rows to answer before the first step and after the last, for the report: of the validation rows, "
        "else of a file that evaluation.path names; with prompts of at most 512 tokens, and 64 new ones. 0 answers none.",
    )
    nonfinite: Literal["stop"] | NonfiniteSection = setting(
        "stop",
        reads="training/loop.py",
        says="On a loss or gradient that is not finite, no step is taken: stop, or {skip: N} to go on at most N times.",
    )


class LoRAPlusSection(Section):
    """LoRA+: another learning rate for B."""

    ratio: float = setting(
        16.0, reads="training/rules/lora_plus.py", says="Learning rate of B as a multiple of A's.", gt=0.0
    )


class OptimizerSection(Section):
    """The optimizer and its schedule."""

    name: Literal["adamw", "sgd", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit"] = (
        setting("adamw", reads="training/optim.py", says="torch's adamw and sgd; the others are bitsandbytes'.")
    )
    rule: Literal["lora-plus", "lora-pro"] | None = setting(
        None, reads="training/rules/rule.py", says="What surrounds a step: a name of `dorakit methods`."
    )
    lora_plus: LoRAPlusSection = setting(
        LoRAPlusSection(), reads="training/rules/lora_plus.py", says="Settings of rule lora-plus."
    )
    learning_rate: float = setting(reads="training/optim.py", says="Peak learning rate.", gt=0.0)
    betas: tuple[Fraction, Fraction] = setting(
        (0.9, 0.999), reads="training/optim.py", says="Decay rates of the running averages.", strict=False
    )
    eps: float = setting(1e-8, reads="training/optim.py", says="Added to Adam's denominator.", gt=0.0)
    weight_decay: float = setting(
        0.0, reads="training/groups.py", says="Decoupled weight decay; never on DoRA's magnitude.", ge=0.0
    )
    schedule: Literal["cosine", "linear", "constant"] = setting(
        "cosine", reads="training/optim.py", says="Learning rate after the warmup; cosine and linear end at 0."
    )
    warmup_ratio: Fraction = setting(0.0, reads="training/optim.py", says="Warmup as a share of all steps.")
    warmup_steps: Annotated[int, Field(ge=0)] | None = setting(
        None, reads="training/optim.py", says="Warmup in steps, instead of warmup_ratio."
    )


class ParallelSection(Section):
    """How several processes share a training; torchrun or `--nproc` starts them."""

    strategy: Literal["auto", "single", "ddp", "fsdp"] = setting(
        "auto",
        reads="training/start.py",
        says="ddp: every process has the whole model and a share of each step's documents; fsdp: the base is shared out "
        "too, and in mode full gradients and optimizer states with it. "
        "auto is ddp where there are several processes, single where there is one.",
    )
    cpu_offload: bool = setting(
        False, reads="training/prepare.py", says="With fsdp: keep the base in the host's memory between its uses."
    )
    timeout_minutes: float = setting(
        30.0, reads="training/loop.py", says="A process that does not answer for so long counts as lost.", gt=0.0
    )


class EvaluationSection(Section):
    """What `dorakit eval` measures."""

    path: str | None = setting(
        None,
        reads="evaluation/task.py",
        says="A file or data set of test rows, in the form of the first training source; else the validation rows.",
    )
    split: str | None = setting(
        None,
        reads="evaluation/task.py",
        says="Split of `path` or of `--data`, where that is a data set; test where none is named.",
    )
    prompt: str | None = setting(
        None, reads="evaluation/task.py", says="Prompt of the test rows where it differs from the training rows'."
    )
    offset: Annotated[int, Field(ge=0)] = setting(0, reads="evaluation/task.py", says="Test rows to skip first.")
    limit: Positive | None = setting(None, reads="evaluation/task.py", says="At most this many test rows.")
    metric: Literal["exact_match", "last_number", "option", "option_likelihood", "none"] = setting(
        "none",
        reads="evaluation/metrics.py",
        says="How a generated answer (what follows its reasoning in <think> tags, if there is any) is judged: the whole "
        "text, its last number, or the first of `options` in it; "
        "option_likelihood generates nothing and takes the likeliest of `options`; none computes loss and perplexity only.",
    )
    options: list[Annotated[str, Field(min_length=1)]] = setting(
        [], reads="evaluation/metrics.py", says="The answers among which option and option_likelihood look."
    )
    max_new_tokens: Positive = setting(64, reads="evaluation/task.py", says="Tokens to generate at most per row.")
    batch_size: Positive = setting(32, reads="evaluation/task.py", says="Rows per generation batch.")

    @model_validator(mode="after")
    def _options_with_option(self) -> EvaluationSection:
        if self.metric.startswith("option") != bool(self.options):
            raise ValueError("options and metric: option (or option_likelihood) belong together")
        return self


class MergeSection(Section):
    """Defaults of `dorakit merge`."""

    onto: Literal["trained", "original"] = setting(
        "trained",
        reads="export/merge_plan.py",
        says="Base to merge into: the one trained on (dequantized NF4 in the q modes), or the original weights, which "
        "is another model.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto",
        reads="export/merge_plan.py",
        says="Dtype of the merged weights. auto is bfloat16, or float32 where rounding to bfloat16 would take more than "
        "max_lost.",
    )
    max_lost: float = setting(
        0.05,
        reads="export/merge_plan.py",
        says="Largest share of what was learned that rounding to the dtype may take: KL(live || merged) / "
        "KL(live || base), both computed in float32.",
        gt=0.0,
        le=1.0,
    )


class LoggingSection(Section):
    """Where metrics go besides metrics.jsonl."""

    to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = setting(
        [],
        reads="training/trackers/telling.py",
        says="Trackers to write to, each behind the extra of its name (docs/trackers.md). They keep to this machine unless "
        "their own environment variables say otherwise.",
    )


class Recipe(Section):
    """A whole recipe, validated and frozen: from a file by `from_yaml`, from Python by keyword or by `model_validate`.

    All three hold it to the same rules, fill in the same defaults and raise RecipeError. Relative paths given in Python
    start from the working directory, those of data from data.root.
    """

    version: Annotated[Literal[1], Whole] = setting(reads="recipe/messages.py", says="Version of this schema.")
    extends: str | None = setting(
        None, reads="recipe/loader.py", says="Recipe to start from: sections merge, lists replace."
    )
    output_dir: str = setting(
        "runs/{name}",
        reads="run.py",
        says="Run directory, relative to the working directory; {name} is the recipe's file name without .yaml.",
    )
    model: ModelSection = setting(reads="build.py", says="The base model.")
    adapter: AdapterSection = setting(reads="build.py", says="What is trained.")
    quantization: QuantizationSection = setting(
        QuantizationSection(), reads="build.py", says="Storage of the base in the q modes."
    )
    data: DataSection = setting(reads="training/loop.py", says="Rows, and how they become tokens.")
    training: TrainingSection = setting(TrainingSection(), reads="training/loop.py", says="The loop.")
    optimizer: OptimizerSection = setting(reads="training/loop.py", says="The update rule and its schedule.")
    parallel: ParallelSection = setting(ParallelSection(), reads="training/start.py", says="Several processes.")
    evaluation: EvaluationSection = setting(
        EvaluationSection(), reads="evaluation/task.py", says="What `dorakit eval` measures."
    )
    merge: MergeSection = setting(MergeSection(), reads="export/merge_plan.py", says="Defaults of `dorakit merge`.")
    logging: LoggingSection = setting(LoggingSection(), reads="training/start.py", says="Trackers.")

    _origin: Origin = PrivateAttr()

    @property
    def trains_whole(self) -> bool:
        """Whether the model itself is trained, with no adapter."""
        return self.adapter.mode == "full"

    @property
    def has_magnitude(self) -> bool:
        """Whether the adapters have DoRA's magnitude."""
        return self.adapter.mode in ("dora", "qdora")

    @property
    def stores_nf4(self) -> bool:
        """Whether the frozen base is stored as NF4."""
        return self.adapter.mode in ("qlora", "qdora")

    @property
    def has_original_magnitude(self) -> bool:
        """Whether a magnitude starts as the row norms of the weight before it was quantized."""
        return self.has_magnitude and self.adapter.magnitude.init == "original"

    @property
    def origin(self) -> Origin:
        """Where this recipe came from: file, text, and the source of each value."""
        return self._origin

    @model_validator(mode="wrap")
    @classmethod
    def _given_in_python(cls, given: Any, handler: ModelWrapValidatorHandler[Recipe], info: ValidationInfo) -> Recipe:
        if info.context is AS_IT_IS or isinstance(given, Recipe):
            return handler(given)
        from dorakit.recipe.from_python import recipe_from_python

        settled = recipe_from_python(given)
        recipe = handler({name: getattr(settled, name) for name in settled.model_fields_set})
        recipe._origin = settled.origin
        return recipe

    @classmethod
    def from_yaml(cls, path: str, overrides: list[str] | None = None, *, twin: bool = False) -> Recipe:
        """Read, merge, override and validate a recipe file.

        Args:
            path: The YAML file.
            overrides: `section.key=value` texts, validated as the file is.
            twin: Swap the base for a tiny random model of the same architecture, and absent data for made rows.

        Raises:
            RecipeError: With every problem found, each with its place.
        """
        from dorakit.recipe.loader import load_recipe

        return load_recipe(path, overrides or [], twin=twin)


class Origin(BaseModel):
    """Where a recipe came from.

    `name` is the file name without .yaml, `text` the file as read, `sources` maps each dotted key to
    `default`, `file:line`, `--set`, `--twin` or `python`; `notes` are lines to print and record (settings not read, adjusted).
    """

    model_config = ConfigDict(frozen=True)

    path: str
    name: str
    text: str
    sources: dict[str, str]
    notes: list[str] = []
    is_twin: bool = False


Recipe.model_rebuild()
