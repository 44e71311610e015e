"""adapter_config.json: rank and scale by module as PEFT resolves them, and refusals by name."""

import contextlib
import math
from pathlib import Path

import pytest
from peft import LoraConfig, PeftType
from peft.utils.other import get_pattern_key

from merging.adapter_config import KNOWN, AdapterConfig, parse_config, read_config
from merging.adapter_features import DENSE, MERGED_TYPES, REFUSED, STATELESS_TYPES
from merging.errors import SourceError

Q0, Q1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"


def config(**fields: object) -> AdapterConfig:
    return parse_config({"peft_type": "LORA", "r": 8, "lora_alpha": 16, **fields})


def test_rank_and_scale_of_a_plain_adapter() -> None:
    """Without patterns every module has r, and alpha / r."""
    plain = config()
    assert plain.refusals == {}
    assert (plain.rank_of(Q0), plain.alpha_of(Q0), plain.scale_of(Q0)) == (8, 16, 2.0)


def test_rslora_divides_by_the_root_of_the_rank() -> None:
    """The scale is alpha / sqrt(r) of the module's own rank."""
    rs = config(use_rslora=True, rank_pattern={"layers.1.self_attn.q_proj": 4})
    assert rs.scale_of(Q0) == pytest.approx(16 / math.sqrt(8))
    assert rs.scale_of(Q1) == 8.0


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "proj",
        "layers.0.self_attn.q_proj",
        "^model.layers.0.self_attn.q_proj",
        r"layers\.[0-9]+\.self_attn\.q_proj",
        "self_attn.q_proj|mlp.up_proj",
        ".*",
        "q_proj.weight",
        Q0,
    ],
)
def test_patterns_match_as_in_peft(pattern: str) -> None:
    """For each pattern the rank is the one that PEFT's own matching gives."""
    patterns = {pattern: 4}
    for module in (Q0, Q1, "model.layers.0.mlp.up_proj", "lm_head"):
        expected = patterns.get(get_pattern_key(list(patterns), module), 8)
        assert config(rank_pattern=patterns).rank_of(module) == expected


def test_the_first_pattern_in_the_file_wins() -> None:
    """Patterns are tried in the order of the file, which is the order in which PEFT tries them."""
    assert config(rank_pattern={"q_proj": 2, Q0: 4}).rank_of(Q0) == 2
    assert config(rank_pattern={Q0: 4, "q_proj": 2}).rank_of(Q0) == 4


def test_rank_and_alpha_patterns_are_separate() -> None:
    """A module may take its rank from one pattern and its alpha from another."""
    both = config(rank_pattern={"q_proj": 4}, alpha_pattern={"layers.1.*": 2})
    assert (both.scale_of(Q0), both.scale_of(Q1)) == (4.0, 0.5)


@pytest.mark.parametrize("feature", sorted(DENSE.keys() - {"ensure_weight_tying"}))
def test_what_peft_can_merge_makes_the_delta_dense(feature: str) -> None:
    """A field that makes more of a LoRA than two factors is no refusal: it says why by name."""
    found = config(**{feature: ["something"]})
    assert found.refusals == {}
    assert list(found.dense) == [feature]
    assert found.dense[feature].startswith(f"{feature}: ")


@pytest.mark.parametrize("peft_type", sorted(MERGED_TYPES))
def test_types_that_peft_can_merge_are_dense(peft_type: str) -> None:
    """They need no rank and no alpha, and the reason names the type."""
    found = parse_config({"peft_type": peft_type})
    assert found.refusals == {}
    assert found.dense["peft_type"].startswith(peft_type)


@pytest.mark.parametrize("peft_type", [*PeftType])
def test_every_type_of_this_peft_is_known(peft_type: str) -> None:
    """A type is low-rank, or PEFT merges it, or it is refused with a way out: none is unknown."""
    assert peft_type.value in {"LORA", *MERGED_TYPES, *STATELESS_TYPES}


@pytest.mark.parametrize("feature", sorted(REFUSED))
def test_what_has_no_static_weights_is_refused_by_its_name(feature: str) -> None:
    """What no weights can do is refused by name, with a way out."""
    refusals = config(**{feature: ["something"]}).refusals
    assert list(refusals) == [feature]
    assert refusals[feature].startswith(f"{feature} is not supported: ")
    assert "; " in refusals[feature]


@pytest.mark.parametrize("neutral", [None, False, [], {}, ""])
def test_a_feature_that_is_off_is_fine(neutral: object) -> None:
    """Falsy values switch nothing on, of known fields and of unknown ones."""
    fields = dict.fromkeys([*REFUSED, *DENSE, "invented"], neutral)
    found = config(**{**fields, "bias": "none"})
    assert (found.refusals, found.dense) == ({}, {})


def test_a_field_of_another_peft_is_refused_if_it_is_set() -> None:
    """What this release does not know may change the result: it is refused by name and value."""
    assert (
        config(invented=0.5)
        .refusals["invented"]
        .startswith("invented is not known, and is set to 0.5")
    )


def test_every_field_of_this_peft_is_known() -> None:
    """No field that PEFT 0.21 writes is mistaken for one of another version."""
    assert set(LoraConfig().to_dict()) <= KNOWN | set(REFUSED) | set(DENSE)


def test_what_peft_writes_by_default_is_accepted() -> None:
    """A config as PEFT saves it, with all its defaults, has nothing to refuse."""
    assert (
        parse_config(
            LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]).to_dict()
        ).refusals
        == {}
    )


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_inits_that_leave_the_base_alone_are_fine(init: object) -> None:
    """How factors were initialised does not matter while the base stays as it is."""
    assert config(init_lora_weights=init).refusals == {}


@pytest.mark.parametrize("init", ["pissa", "olora", "OLoRA"])
def test_inits_that_peft_repeats_make_the_delta_dense(init: str) -> None:
    """What they take out of the base follows from the base alone."""
    found = config(init_lora_weights=init)
    assert found.refusals == {}
    assert list(found.dense) == ["init_lora_weights"]


@pytest.mark.parametrize("init", ["pissa_niter_16", "corda", "lora_ga"])
def test_inits_that_change_the_base_must_be_converted(init: str) -> None:
    """What these took out of the base cannot be told: the refusal names PEFT's conversion."""
    reason = config(init_lora_weights=init).refusals["init_lora_weights"]
    assert "path_initial_model_for_weight_conversion" in reason


@pytest.mark.parametrize(("init", "words"), [("loftq", "changes the base"), ("new", "not known")])
def test_other_inits_are_refused(init: str, words: str) -> None:
    """LoftQ has no conversion, and an unknown init may do anything."""
    assert words in config(init_lora_weights=init).refusals["init_lora_weights"]


@pytest.mark.parametrize("peft_type", [*sorted(STATELESS_TYPES), "INVENTED", None])
def test_other_kinds_of_adapter_are_refused(peft_type: str | None) -> None:
    """What has no weights, or is not known; the refusal names what was found."""
    assert repr(peft_type) in config(peft_type=peft_type).refusals["peft_type"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", None),
        ("r", 0),
        ("r", 8.0),
        ("r", True),
        ("lora_alpha", None),
        ("lora_alpha", "16"),
        ("lora_alpha", math.nan),
        ("lora_alpha", math.inf),
        ("rank_pattern", ["q_proj"]),
        ("alpha_pattern", 3),
    ],
)
def test_wrong_values_are_refused_by_field(field: str, value: object) -> None:
    """A rank that is no positive integer, or an alpha that is no number, is named."""
    refusals = config(**{field: value}).refusals
    assert list(refusals) == [field]
    assert repr(value) in refusals[field]


@pytest.mark.parametrize(
    ("field", "patterns", "words"),
    [
        ("rank_pattern", {"q_proj": -1}, "rank_pattern['q_proj'] must be a positive integer"),
        ("alpha_pattern", {"q_proj": "x"}, "alpha_pattern['q_proj'] must be a finite number"),
        ("rank_pattern", {"q_proj(": 4}, "rank_pattern['q_proj('] is not a pattern"),
        ("rank_pattern", {"(?i)q_proj": 4}, "rank_pattern['(?i)q_proj'] is not a pattern"),
        ("rank_pattern", {"a{99999999999}": 4}, "rank_pattern['a{99999999999}'] is not a pattern"),
        ("alpha_pattern", {"(a+)+": 4}, "alpha_pattern['(a+)+'] repeats a group"),
        ("alpha_pattern", {"(a|a){9}b": 4}, "alpha_pattern['(a|a){9}b'] repeats a group"),
        ("rank_pattern", {".*.*.*.*x": 4}, "rank_pattern['.*.*.*.*x'] repeats a group, or has"),
        ("rank_pattern", {"q" * 201: 4}, f"rank_pattern['{'q' * 201}'] is longer than 200"),
    ],
)
def test_wrong_patterns_are_refused(field: str, patterns: object, words: str) -> None:
    """A pattern that cannot be compiled, or has no usable value, is named."""
    (reason,) = config(**{field: patterns}).refusals.values()
    assert reason.startswith(words)


@pytest.mark.parametrize(
    ("fields", "targets"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, ("q_proj", "v_proj")),
        ({"target_modules": ["q_proj"], "layers_to_transform": None}, ("q_proj",)),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, ()),
        ({"target_modules": ["q_proj"], "layers_to_transform": 0}, ()),
        ({"target_modules": ["q_proj"], "layers_pattern": "layers"}, ()),
        ({"target_modules": ["q_proj"], "exclude_modules": ["k_proj"]}, ()),
        ({"target_modules": ".*_proj"}, ()),
        ({}, ()),
    ],
)
def test_targets_are_those_of_every_layer(
    fields: dict[str, object], targets: tuple[str, ...]
) -> None:
    """A list of targets holds for every layer, unless another field leaves some of them out."""
    assert config(**fields).targets == targets


def test_every_reason_is_collected() -> None:
    """Several things wrong give several reasons."""
    refusals = config(use_dora=True, r=0, invented=1, alora_invocation_tokens=[1]).refusals
    assert set(refusals) == {"r", "invented", "alora_invocation_tokens"}


@pytest.mark.parametrize("name", ["org/model", "", None, 3])
def test_the_recorded_base_name(name: object) -> None:
    """A base's name is a text that is not empty, or there is none."""
    assert config(base_model_name_or_path=name).base_name == (
        "org/model" if name == "org/model" else None
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is not JSON"), ("[]", "is not a JSON object"), ("[" * 100_000, "is not JSON")],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """A config that is no JSON object is refused by its path."""
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(SourceError, match=words):
        read_config(tmp_path)


def test_a_value_of_any_depth_is_refused(tmp_path: Path) -> None:
    """A value nested almost as deep as JSON is read, or deeper, is refused by no other error."""
    for depth in range(800, 1100, 5):
        text = f'{{"peft_type": "LORA", "r": {"[" * depth}{"]" * depth}, "lora_alpha": 1}}'
        (tmp_path / "adapter_config.json").write_text(text)
        with contextlib.suppress(SourceError):
            assert "r" in read_config(tmp_path).refusals


def test_a_base_name_that_is_no_unicode_is_repaired(tmp_path: Path) -> None:
    """Halves of surrogate pairs do not get as far as an answer."""
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "\\ud800x"}')
    assert read_config(tmp_path).base_name == "?x"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A folder without a config is refused by the path that was looked for."""
    with pytest.raises(SourceError, match=r"adapter_config\.json cannot be read"):
        read_config(tmp_path)
