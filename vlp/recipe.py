"""A run described by one YAML file: inheritance, overrides, validation with the nearest valid key."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from vlp import resolve
from vlp.checkpoint import CheckpointOptions, EarlyStoppingOptions
from vlp.data.batches import DataOptions
from vlp.durations import Schedule, Span
from vlp.encoders.openclip import ModelOptions
from vlp.encoders.recompute import Policy
from vlp.evaluation.run import EvaluateOptions
from vlp.health import HealthOptions
from vlp.momentum import check_queue
from vlp.objectives import base as objectives_base
from vlp.optim import OptimOptions
from vlp.options import explain
from vlp.shapes import ShapeOptions
from vlp.track import TrackOptions
from vlp.types import UserError
from vlp.watchdog import WatchdogOptions

# What any data and any towers give, or what the objective itself names the source of.
_ALWAYS = frozenset(
    {
        *("image", "text", "image_tokens", "text_tokens", "picture_ids", "caption_ids"),
        "captions",  # of models that have a captioner, which only the built one tells: `encoding.check`
        *("momentum", "momentum.image_tokens", "momentum.text_tokens", "queue", "teacher"),
    }
)


class TrainOptions(OptimOptions, ShapeOptions, HealthOptions, WatchdogOptions, frozen=True, extra="forbid"):
    """How long, how large, how precise, and how the weights move."""

    steps: int | None = Field(None, gt=0, description="length of the run in steps (or samples, or epochs)")
    samples: float | None = Field(None, gt=0, allow_inf_nan=False, description="length of the run in samples")
    epochs: float | None = Field(None, gt=0, allow_inf_nan=False, description="length of the run in epochs")
    global_batch_size: int = Field(gt=1, description="samples of one step over all processes")
    micro_batch_size: int | None = Field(
        None, gt=0, description="samples per pass and process; smaller than the batch means cached gradients"
    )
    engine: Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"] | None = Field(
        None, description="what processes share: nothing, or the model in parts; as accelerate launch says, else ddp"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the towers; logits and losses are always fp32"
    )
    gradient_checkpointing: Policy | None = Field(
        None,
        description="compute activations again in backward: all (full: a tenth of their memory, a quarter more time), "
        "or those that cost little (selective: about half, 4 to 10 %)",
    )
    ema_decay: float | None = Field(None, gt=0, lt=1, description="keep an average of the weights and evaluate it")
    early_stopping: EarlyStoppingOptions | None = Field(
        None,
        description="end when a figure of the evaluations gets no better, and keep the best checkpoint: "
        "`{metric: val/image_to_text_R@1, patience: 3}`",
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainOptions:
        if sum(length is not None for length in (self.steps, self.samples, self.epochs)) != 1:
            raise ValueError("give the length of the run by exactly one of steps, samples and epochs")
        return self


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """Everything that decides what a run computes."""

    name: str = Field(description="name of the run")
    run_dir: str = Field("", description="where the run lives; runs/NAME by default")
    seed: int = Field(0, ge=0, lt=2**63, description="of initialisation, order, augmentation and dropout")
    data: DataOptions
    model: ModelOptions
    objectives: tuple[objectives_base.Objective, ...] = Field(min_length=1)
    train: TrainOptions
    evaluate: EvaluateOptions = EvaluateOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    track: TrackOptions = TrackOptions()

    @field_validator("objectives", mode="before")
    @classmethod
    def _parse_objectives(cls, entries: Any) -> Any:
        if not isinstance(entries, list):
            raise ValueError("must be a list, such as [{name: infonce}]")
        return tuple(objectives_base.parse(entry) for entry in entries)

    @model_validator(mode="after")
    def _fusion_has_an_effect(self) -> Recipe:
        if self.model.fusion is not None and not any("fusion" in o.needs for o in self.objectives):
            raise ValueError("model.fusion has no effect without an objective that uses it: remove it, or add matching")
        return self

    @model_validator(mode="after")
    def _captioner_has_an_effect(self) -> Recipe:
        if self.model.captioner is not None and not any("captions" in o.needs for o in self.objectives):
            raise ValueError(
                "model.captioner has no effect without an objective that uses it: remove it, or add captioning"
            )
        return self

    @model_validator(mode="after")
    def _hard_captions_have_an_effect(self) -> Recipe:
        if self.data.hard_captions and not objectives_base.hard_texts(self.objectives):
            raise ValueError(
                "data.hard_captions has no effect without an objective that uses it: remove it, or add hard_negatives"
            )
        return self

    @model_validator(mode="after")
    def _the_start_of_the_scale_has_an_effect(self) -> Recipe:
        if self.train.temperature is not None and self.model.init_logit_scale is not None:
            raise ValueError("model.init_logit_scale has no effect with train.temperature: remove one of them")
        return self

    @model_validator(mode="after")
    def _early_stopping_has_evaluations(self) -> Recipe:
        if self.train.early_stopping is not None and not (self.evaluate.sets and self.evaluate.every):
            raise ValueError("train.early_stopping judges by evaluations: give evaluate.sets and evaluate.every")
        return self

    @model_validator(mode="after")
    def _lora_is_what_is_averaged_nowhere(self) -> Recipe:
        asked = {
            "train.ema_decay": self.train.ema_decay is not None,
            "an objective with a momentum twin": any("momentum" in o.needs for o in self.objectives),
        }
        for what, is_asked in asked.items():
            if self.model.lora is not None and is_asked:
                raise ValueError(
                    f"model.lora does not go with {what}: the average of two products is no product of averages; "
                    "remove one of them"
                )
        return self

    @model_validator(mode="after")
    def _objectives_agree_and_their_queue_fits_the_batch(self) -> Recipe:
        for need, field in (("momentum", "momentum"), ("teacher", "teacher"), ("captions", "label_smoothing")):
            objectives_base.shared_field(self.objectives, need, field)
        queue_size = objectives_base.shared_field(self.objectives, "queue", "queue_size") or 0
        check_queue(queue_size, self.rows)
        return self

    @model_validator(mode="before")
    @classmethod
    def _default_run_dir(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("run_dir"):
            return {**values, "run_dir": f"runs/{values.get('name')}"}
        return values

    def provides(self) -> frozenset[str]:
        """Columns and capabilities that its data and encoders give to objectives."""
        bias = self.model.init_logit_bias is not None or any(
            "logit_bias" in o.initial_logits() for o in self.objectives
        )
        fusion = self.model.fusion is not None
        given = {"logit_bias": bias, "fusion": fusion, "masked_text": fusion, "hard_texts": self.data.hard_captions}
        return _ALWAYS | {need for need, there in given.items() if there}

    @property
    def rows(self) -> int:
        """Rows of the global batch, as the losses see it."""
        return self.train.global_batch_size * (1 if self.data.neighbours is None else 2)

    def starts(self) -> dict[str, float]:
        """Start values of logit_scale and logit_bias from the objectives' papers; what the model section says wins."""
        return {name: value for objective in self.objectives for name, value in objective.initial_logits().items()}

    def total_steps(self, num_samples: int) -> int:
        """Steps of the run, for a data set of ``num_samples``."""
        options = self.train
        samples = options.samples if options.samples is not None else (options.epochs or 0) * num_samples
        steps = options.steps or math.ceil(samples / options.global_batch_size - 1e-9)
        return max(1, steps)

    def span(self, num_samples: int) -> Span:
        """Length of the run in steps, for a data set of ``num_samples``.

        Raises:
            UserError: a duration that is none, or that the run is too short for.
        """
        options = self.train
        span = Span(self.total_steps(num_samples), options.global_batch_size, num_samples)
        rising = span.steps(options.warmup, "train.warmup")
        if rising > span.total_steps:
            raise UserError(f"train.warmup: {options.warmup} is longer than the run of {span.total_steps} steps")
        if options.schedule == "wsd" and rising + span.steps(options.cooldown, "train.cooldown") > span.total_steps:
            raise UserError(
                f"train.cooldown: {options.cooldown} and the warm-up of {rising} steps are longer than the run of "
                f"{span.total_steps} steps: shorten one of them"
            )
        if isinstance(options.temperature, Schedule):
            options.temperature.check(span, "train.temperature")
        for objective in self.objectives:
            objective.check_schedules(span)
        return span

    def to_yaml(self) -> str:
        """The resolved recipe, every default written out."""
        tree = self.model_dump(mode="json", exclude={"objectives"})
        # model_dump of the base class would lose the fields of each objective.
        tree["objectives"] = [objective.model_dump(mode="json") for objective in self.objectives]
        order = [name for name in type(self).model_fields if name in tree]
        return yaml.safe_dump({name: tree[name] for name in order}, sort_keys=False, allow_unicode=True)


def find(reference: str) -> Path:
    """A recipe by path, or by its name in the recipes folder."""
    path = Path(reference)
    if path.is_file():
        return path
    named = resolve.recipes_folder() / f"{reference.removesuffix('.yaml')}.yaml"
    if named.is_file() and path.suffix in ("", ".yaml") and len(path.parts) <= 2:
        return named
    known = list(resolve.recipes())
    raise UserError(
        f"no recipe '{reference}'{resolve.nearest(path.stem, known)}: give a file, or one of {', '.join(known)}"
    )


def load(reference: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe with its bases, apply ``key=value`` overrides, and validate it.

    ``profile=NAME`` merges the section ``profiles.NAME`` of the recipe before the other overrides, wherever it stands.

    Raises:
        UserError: naming the key, and the nearest valid one where it is unknown.
    """
    path = find(reference)
    tree = _read(path, ())
    profiles = tree.pop("profiles", None) or {}
    if not isinstance(profiles, dict) or not all(isinstance(profile, dict) for profile in profiles.values()):
        raise UserError(f"{path}: profiles must be a mapping of names to changes, such as {{smoke: {{train: ...}}}}")
    pairs = [_override(text) for text in overrides]
    for name in [value for key, value in pairs if key == "profile"]:
        if str(name) not in profiles:
            raise UserError(f"{path}: no profile '{name}'; it has {', '.join(sorted(profiles)) or 'none'}")
        tree = _merge(tree, profiles[str(name)])
    for key, value in pairs:
        if key != "profile":
            _set(tree, key, value)
    return validate(tree, str(path))


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"'{text}' is no override: write key=value, such as train.steps=100")
    return key, _yaml(value, f"override {text}")


def validate(tree: dict[str, Any], where: str) -> Recipe:
    """Validate a tree of plain values as a recipe; errors name the key and the cure in one sentence."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise explain(error, Recipe, where) from None


def difference(path: Path, resolved: str) -> list[str]:
    """Keys in which the resolved recipe stored at ``path`` differs from ``resolved`` (YAML).

    What an earlier version of vlp stored is completed with the defaults of options that it did not have.

    Raises:
        UserError: what is stored there is no recipe of this version.
    """
    tree = _read(path, ())
    try:
        stored = validate(tree, str(path)).to_yaml()
    except UserError as error:
        raise UserError(
            f"{error}; this stored recipe does not fit this version of vlp: go on with the version that wrote it, or "
            "choose another run_dir"
        ) from error
    a, b = _flat(yaml.safe_load(stored)), _flat(yaml.safe_load(resolved))
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UserError(f"{path}: the chain of base: leads back to itself")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} cannot be read: {error}") from error
    tree = _yaml(text, str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, such as model: and data:")
    parent = tree.pop("base", None)
    if parent is None:
        return tree
    beside = path.parent / str(parent)
    return _merge(_read(beside if beside.is_file() else find(str(parent)), (*seen, path.resolve())), tree)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: `on` and `no` are words, and 1e-3 is a number. A key given twice is an error, as there."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            names = [key.value for key, _ in node.value]
            twice = next((name for name in names if names.count(name) > 1), names[0])
            raise yaml.constructor.ConstructorError(None, None, f"the key '{twice}' is there twice", node.start_mark)
        return mapping


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] not in ("bool", "float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$", re.IGNORECASE), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.\d+|\d+\.\d*|\d+(?=[eE]))([eE][-+]?\d+)?$|^[-+]?\.(inf|INF)$|^\.(nan|NaN)$"),
    list("-+.0123456789"),
)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise UserError(f"{where}: not valid YAML: {line}") from error


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``base``: mappings merge, null takes a key away, everything else is replaced (RFC 7386)."""
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``a.b.0.c`` in place, making mappings on the way."""
    *parents, last = dotted.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, list):
            node = node[_index(node, part, dotted)]
        else:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        if not isinstance(node, dict | list):
            raise UserError(f"override '{dotted}': {part} is a single value and has no keys")
    if isinstance(node, list):
        node[_index(node, last, dotted)] = value
    else:
        node[last] = value


def _index(node: list[Any], part: str, dotted: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(f"override '{dotted}': '{part}' is no position in a list of {len(node)}")
    return int(part)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {k: v for key, item in tree.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    if isinstance(tree, list):
        return {k: v for i, item in enumerate(tree) for k, v in _flat(item, f"{prefix}{i}.").items()}
    return {prefix.rstrip("."): tree}
