"""adapter_config.json of PEFT: rank and scale of each module, and what cannot be served, by name.

Follows PEFT 0.21.2. Only a static low-rank delta on a linear layer is a blend; whatever else a
config switches on is refused with a way out, and so is anything that this release does not know.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from merging.errors import SourceError
from merging.mlx_adapter import is_mlx, peft_config
from merging.regular_file import read_file

FILE = "adapter_config.json"

KNOWN = frozenset(
    {
        # read here
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "init_lora_weights",
        "base_model_name_or_path",
        "bias",
        "ensure_weight_tying",
        # shown by the tensors
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "fan_in_fan_out",
        # about training or origin
        "task_type",
        "auto_mapping",
        "peft_version",
        "revision",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "qalora_group_size",
        "runtime_config",
    }
)

MAX_PATTERN = 200  # characters
MAX_REPEATS = 3  # of `*`, `+`, `?` and `{}` in a pattern

RETRAIN = "train a plain LoRA instead"
CONVERT = (
    "convert it with save_pretrained(..., path_initial_model_for_weight_conversion=...) where it "
    "was trained"
)

NARROWING = ("exclude_modules", "layers_to_transform", "layers_pattern")
"""Fields with which an adapter leaves out some of the modules that it targets."""

FEATURES: Mapping[str, tuple[str, str]] = {
    "use_dora": ("DoRA rescales the base's weights row by row", RETRAIN),
    "lora_bias": ("it trains a bias of its own on every layer", "train with lora_bias=False"),
    "bias": ("it trains the base's biases", "train with bias='none'"),
    "modules_to_save": ("it replaces whole modules of the base", "train without modules_to_save"),
    "lora_embedding": ("it changes an embedding", "train without the embedding as a target"),
    "trainable_token_indices": ("it replaces rows of an embedding", "train without it"),
    "target_parameters": ("it changes bare parameters, not linear layers", "use target_modules"),
    "layer_replication": ("it repeats layers of the base", "train on the base as it is"),
    "alora_invocation_tokens": ("aLoRA acts only after its invocation tokens", RETRAIN),
    "arrow_config": ("Arrow routes every token among adapters", "register those adapters"),
    "use_qalora": ("QALoRA pools the inputs of lora_A", RETRAIN),
    "use_bdlora": ("BD-LoRA keeps its factors in blocks", "convert it to a plain LoRA"),
    "kasa_config": ("KaSA truncates the base's weights", RETRAIN),
    "velora_config": ("VeLoRA keeps tensors of its own", "convert it to a plain LoRA"),
    "monteclora_config": ("MonteCLoRA keeps tensors of its own", "convert it to a plain LoRA"),
    "megatron_config": ("it is for Megatron's parallel layers", "convert it for transformers"),
}
"""What is not a static low-rank delta on a linear layer: why it is refused, and the way out."""

STATIC_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the base as it is."""

MUTATING_INITS = {
    "pissa": CONVERT,
    "olora": CONVERT,
    "corda": CONVERT,
    "lora_ga": CONVERT,
    "loftq": RETRAIN,
}
"""Values that change the base before training, so that the delta is not to the base itself."""


def refusal(feature: str) -> str:
    """The reason against a feature, with the way out."""
    reason, way_out = FEATURES[feature]
    return f"{feature} is not supported: {reason}; {way_out}"


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The fields that matter at inference, and `refusals`: reasons against serving, by field.

    A rank that is refused is 0. `targets` are the module names that the adapter says it changes in
    every layer; empty where it says otherwise.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    base_name: str | None
    ties_head: bool
    targets: tuple[str, ...]
    refusals: Mapping[str, str]

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(_pattern_key(self.rank_pattern, module), self.rank)

    def alpha_of(self, module: str) -> float:
        return self.alpha_pattern.get(_pattern_key(self.alpha_pattern, module), self.alpha)

    def scale_of(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) with rslora (https://arxiv.org/abs/2312.03732)."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.use_rslora else rank)


def _pattern_key(patterns: Mapping[str, object], module: str) -> str:
    """The first pattern that matches the end of the module's path, from a dot or the start on."""
    return next((p for p in patterns if re.match(_whole(p), module)), module)


def _whole(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def read_config(folder: Path) -> AdapterConfig:
    """Read the config in an adapter's folder.

    Raises SourceError if there is none, or if it is not a JSON object; anything else that is wrong
    is in `refusals`.
    """
    path = folder / FILE
    try:
        config = json.loads(read_file(path))
        if not isinstance(config, dict):
            raise SourceError(f"{path} is not a JSON object")
        return parse_config(peft_config(config) if is_mlx(config) else config)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON: {error}") from error


def parse_config(config: Mapping[str, object]) -> AdapterConfig:
    """Take from a config what matters at inference, and every reason against serving it."""
    refusals = dict(_feature_refusals(config))
    base_name = config.get("base_model_name_or_path")
    if isinstance(base_name, str):
        base_name = base_name.encode(errors="replace").decode()  # JSON spells what is no Unicode
    return AdapterConfig(
        rank=_positive(config.get("r"), "r", refusals),
        alpha=_number(config.get("lora_alpha"), "lora_alpha", refusals),
        rank_pattern={
            pattern: _positive(value, f"rank_pattern[{pattern!r}]", refusals)
            for pattern, value in _patterns(config, "rank_pattern", refusals)
        },
        alpha_pattern={
            pattern: _number(value, f"alpha_pattern[{pattern!r}]", refusals)
            for pattern, value in _patterns(config, "alpha_pattern", refusals)
        },
        use_rslora=bool(config.get("use_rslora")),
        ties_head=bool(config.get("ensure_weight_tying")),
        targets=_targets(config),
        base_name=base_name if isinstance(base_name, str) and base_name else None,
        refusals=refusals,
    )


def _targets(config: Mapping[str, object]) -> tuple[str, ...]:
    targets = config.get("target_modules")
    if not isinstance(targets, list) or any(config.get(field) for field in NARROWING):
        return ()
    if config.get("layers_to_transform") == 0:  # a layer's number, though it is falsy
        return ()
    return tuple(target for target in targets if isinstance(target, str))


def _feature_refusals(config: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        yield "peft_type", f"peft_type {peft_type!r} is not supported: only 'LORA' is; {RETRAIN}"
    for key, value in config.items():
        if key == "bias" and value in ("none", None):
            continue
        if key in FEATURES and value:
            yield key, refusal(key)
        elif key not in FEATURES and key not in KNOWN and value:
            yield (
                key,
                (
                    f"{key} is not known, and is set to {value!r}: it comes from another PEFT; "
                    "remove it if it says nothing about inference"
                ),
            )
    init = config.get("init_lora_weights")
    if init not in STATIC_INITS:
        yield "init_lora_weights", _init_refusal(init)


def _init_refusal(init: object) -> str:
    for prefix, way_out in MUTATING_INITS.items():
        if isinstance(init, str) and init.lower().startswith(prefix):
            return (
                f"init_lora_weights {init!r} is not supported: it changes the base's weights "
                f"before training; {way_out}"
            )
    return f"init_lora_weights {init!r} is not known"


def _patterns(
    config: Mapping[str, object], key: str, refusals: dict[str, str]
) -> Iterator[tuple[str, object]]:
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        refusals[key] = f"{key} must map patterns to values, got {patterns!r}"
        return
    for pattern, value in patterns.items():
        if problem := _pattern_problem(pattern):
            refusals[f"{key}[{pattern!r}]"] = f"{key}[{pattern!r}] {problem}"
        else:
            yield pattern, value


def _pattern_problem(pattern: str) -> str | None:
    """Why a pattern cannot be used. What may take very long to match is refused, too."""
    if len(pattern) > MAX_PATTERN:
        return f"is longer than {MAX_PATTERN} characters"
    bare = re.sub(r"\\.", "", pattern)
    if re.search(r"\)[*+{]", bare) or len(re.findall(r"[*+?{]", bare)) > MAX_REPEATS:
        return f"repeats a group, or has more than {MAX_REPEATS} repetitions: name the modules"
    try:
        re.compile(_whole(pattern))
    except (re.error, OverflowError, RecursionError) as error:
        return f"is not a pattern: {error}"
    return None


def _positive(value: object, key: str, refusals: dict[str, str]) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    refusals[key] = f"{key} must be a positive integer, got {value!r}"
    return 0


def _number(value: object, key: str, refusals: dict[str, str]) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30:
        return value
    refusals[key] = f"{key} must be a finite number, got {value!r}"
    return 1.0
