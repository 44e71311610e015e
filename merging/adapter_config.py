"""adapter_config.json of PEFT: rank and scale of each module, and what cannot be served, by name.

Follows PEFT 0.21.2. A static low-rank delta on linear layers is a blend. What else PEFT can merge
into a base is a dense delta (`dense` says why); whatever has no static weights, and anything that
this release does not know, is refused with a way out.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from merging.adapter_features import (
    DENSE,
    MERGED_TYPES,
    REFUSED,
    REPEATED_INITS,
    init_refusal,
    refusal,
    type_refusal,
)
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

PATTERNS = ("target_modules", "exclude_modules", "layers_pattern")
"""Fields that may be a pattern, which PEFT matches against every module."""

NARROWING = ("exclude_modules", "layers_to_transform", "layers_pattern")
"""Fields with which an adapter leaves out some of the modules that it targets."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The fields that matter at inference, and `refusals`: reasons against serving, by field.

    A rank that is refused is 0. `targets` are the module names that the adapter says it changes in
    every layer; empty where it says otherwise. `dense`: why its delta is no product of two factors,
    by field. `fields`: the whole config.
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
    dense: Mapping[str, str]
    fields: Mapping[str, object]

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
    refusals = dict(_refusals(config))
    base_name = config.get("base_model_name_or_path")
    if isinstance(base_name, str):
        base_name = base_name.encode(errors="replace").decode()  # JSON spells what is no Unicode
    # Of another type PEFT reads the fields; these are a LoRA's.
    own = refusals if config.get("peft_type") == "LORA" else {}
    return AdapterConfig(
        rank=_positive(config.get("r"), "r", own),
        alpha=_number(config.get("lora_alpha"), "lora_alpha", own),
        rank_pattern={
            pattern: _positive(value, f"rank_pattern[{pattern!r}]", own)
            for pattern, value in _patterns(config, "rank_pattern", refusals)
        },
        alpha_pattern={
            pattern: _number(value, f"alpha_pattern[{pattern!r}]", own)
            for pattern, value in _patterns(config, "alpha_pattern", refusals)
        },
        use_rslora=bool(config.get("use_rslora")),
        ties_head=bool(config.get("ensure_weight_tying")),
        targets=_targets(config),
        base_name=base_name if isinstance(base_name, str) and base_name else None,
        refusals=refusals,
        dense=dict(_dense(config)),
        fields=dict(config),
    )


def _targets(config: Mapping[str, object]) -> tuple[str, ...]:
    targets = config.get("target_modules")
    if not isinstance(targets, list) or any(config.get(field) for field in NARROWING):
        return ()
    if config.get("layers_to_transform") == 0:  # a layer's number, though it is falsy
        return ()
    return tuple(target for target in targets if isinstance(target, str))


def _refusals(config: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    peft_type = config.get("peft_type")
    if reason := type_refusal(peft_type):
        yield "peft_type", reason
    if peft_type != "LORA":
        return
    for key, value in config.items():
        if key in REFUSED and value:
            yield key, refusal(key)
        elif key not in REFUSED and key not in DENSE and key not in KNOWN and value:
            yield (
                key,
                (
                    f"{key} is not known, and is set to {value!r}: it comes from another PEFT; "
                    "remove it if it says nothing about inference"
                ),
            )
    if reason := init_refusal(config.get("init_lora_weights")):
        yield "init_lora_weights", reason


def _dense(config: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Why the delta is dense, by field."""
    peft_type = config.get("peft_type")
    if isinstance(peft_type, str) and peft_type in MERGED_TYPES:
        yield "peft_type", f"{peft_type}: {MERGED_TYPES[peft_type]}"
        return
    for key, reason in DENSE.items():
        # Tying matters where head and embedding are changed, which the tensors show.
        is_set = config.get(key) not in (None, "none") and bool(config.get(key))
        if is_set and key != "ensure_weight_tying":
            yield key, f"{key}: {reason}"
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() in REPEATED_INITS:
        yield "init_lora_weights", f"init_lora_weights: {REPEATED_INITS[init.lower()]}"


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


def endless_patterns(config: AdapterConfig) -> Iterator[str]:
    """Why PEFT should not be given the patterns of a config: it might match them for ever."""
    for key in PATTERNS:
        pattern = config.fields.get(key)
        if isinstance(pattern, str) and re.search(r"\)[*+{]", re.sub(r"\\.", "", pattern)):
            yield f"{key} repeats a group, which may take for ever to match: name the modules"


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
