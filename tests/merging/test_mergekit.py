"""mergekit configurations become recipes and come back; what has no native form is refused."""

from typing import Any

import pytest
import yaml

from merging.errors import RecipeError
from merging.mergekit import from_mergekit, to_mergekit
from merging.recipe import Recipe
from tests.merging.tiny import flat_base

PATHS = {"base": "org/base", "math": "org/math-7b", "code": "./models/code", "chat": "chat"}
NAMES = {path: name for name, path in PATHS.items()} | {name: name for name in PATHS}
NAMES |= {"org/math-7b@v2": "chat", "my+model": "code"}


def read(text: str) -> dict[str, Any]:
    return from_mergekit(yaml.safe_load(text), NAMES.get).fields


def recipe(text: str) -> Recipe:
    return Recipe.model_validate(read(text))


def reasons(text: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as error:
        read(text)
    return error.value.reasons


SAME = {
    "ties": """
merge_method: ties
base_model: org/base
models:
  - model: org/math-7b
    parameters: {weight: 0.6, density: [0.2, 0.8]}
  - model: ./models/code
    parameters:
      weight: [{filter: mlp, value: [0.1, 0.5, 1.0]}, {filter: self_attn, value: 0.3}, {value: 1}]
parameters: {normalize: false, lambda: 0.5}
dtype: float32
out_dtype: bfloat16
""",
    "linear": """
merge_method: linear
models:
  - {model: org/base, parameters: {weight: 1}}
  - {model: org/math-7b, parameters: {weight: 2.5}}
  - {model: chat, parameters: {weight: {value: 0.5, filter: mlp}}}
parameters: {weight: 0.25, normalize: true}
""",
    "slerp": """
merge_method: slerp
base_model: org/math-7b
models:
  - {model: chat}
parameters:
  t: [{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {filter: mlp, value: [1, 0]}, {value: 0.5}]
""",
    "slerp of slices": """
merge_method: slerp
base_model: org/math-7b
slices:
  - sources:
      - {model: org/math-7b, layer_range: [0, 32]}
      - {model: ./models/code, layer_range: [0, 32]}
parameters: {t: 0.5}
dtype: float32
out_dtype: float16
""",
    "frankenmerge": """
merge_method: passthrough
slices:
  - sources:
      - {model: org/math-7b, layer_range: [0, 16]}
  - sources:
      - model: ./models/code
        layer_range: [8, 24]
        parameters: {scale: [{filter: o_proj, value: 0}, {value: 1}]}
  - sources:
      - {model: org/base, layer_range: [20, 30]}
    parameters: {scale: 0.9}
""",
    "task arithmetic of slices": """
merge_method: task_arithmetic
base_model: org/base
slices:
  - sources:
      - {model: org/base, layer_range: [0, 8]}
      - {model: org/math-7b, layer_range: [0, 8], parameters: {weight: [0, 1]}}
    parameters: {lambda: [1.0, 0.5]}
  - sources:
      - {model: org/base, layer_range: [8, 16]}
      - {model: ./models/code, layer_range: [4, 12]}
      - {model: chat, layer_range: [8, 16]}
    base_model: chat
    parameters: {weight: 0.1}
parameters: {lambda: 2.0}
""",
    "nuslerp without a base": """
merge_method: nuslerp
models:
  - {model: org/math-7b, parameters: {weight: 1}}
  - {model: chat, parameters: {weight: 3}}
parameters: {nuslerp_flatten: false}
""",
    "multislerp with a base": """
merge_method: multislerp
base_model: org/base
models:
  - {model: org/math-7b, parameters: {weight: 1}}
  - {model: chat, parameters: {weight: 3}}
""",
    "karcher": """
merge_method: karcher
models: [{model: org/math-7b}, {model: chat}, {model: org/base}]
parameters: {max_iter: 20, tol: 1.0e-6}
""",
    "model stock": """
merge_method: model_stock
base_model: org/base
models: [{model: org/math-7b}, {model: chat}]
parameters: {filter_wise: true}
""",
    "della": """
merge_method: della
base_model: org/base
models:
  - {model: org/math-7b, parameters: {weight: 1, density: 0.5, epsilon: 0.1}}
parameters: {int8_mask: true, rescale: false}
""",
    "arcee fusion": """
merge_method: arcee_fusion
base_model: org/math-7b
models: [{model: chat}]
""",
}
"""Configurations in the form in which they come back."""


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_the_round_trip_gives_the_configuration_back(text: str) -> None:
    """A configuration becomes a valid recipe, and that gives the configuration again."""
    assert to_mergekit(recipe(text), PATHS.__getitem__) == yaml.safe_load(text)


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_a_recipe_survives_the_other_round_trip(text: str) -> None:
    """The recipe of what is given back is the same recipe."""
    one = recipe(text)
    again = from_mergekit(to_mergekit(one, PATHS.__getitem__), NAMES.get).fields
    assert Recipe.model_validate(again) == one


EQUAL = {
    "the base among the models": (
        """
merge_method: ties
base_model: org/base
models: [{model: org/base, parameters: {weight: 9}}, {model: chat, parameters: {weight: 1}}]
""",
        """
merge_method: ties
base_model: base
models: [{model: chat, parameters: {weight: 1}}]
""",
    ),
    "numbers as text": (
        """
merge_method: karcher
models: [{model: chat}, {model: math}]
parameters: {tol: "1e-5", max_iter: "20"}
""",
        """
merge_method: karcher
models: [{model: chat}, {model: math}]
parameters: {tol: 0.00001, max_iter: 20}
""",
    ),
    "numbers as text in settings": (
        """
merge_method: nearswap
base_model: math
models: [{model: chat}]
parameters: {t: [{filter: mlp, value: ["1e-5", 1]}, {value: 2e-3}]}
""",
        """
merge_method: nearswap
base_model: math
models: [{model: chat}]
parameters: {t: [{filter: mlp, value: [0.00001, 1]}, {value: 0.002}]}
""",
    ),
    "booleans as text": (
        "{merge_method: ties, base_model: base, models: [{model: chat}], "
        "parameters: {weight: 1, normalize: 'False', rescale: 1}}",
        "{merge_method: ties, base_model: base, models: [{model: chat}], "
        "parameters: {weight: 1, normalize: false, rescale: true}}",
    ),
    "one module": (
        """
merge_method: ties
base_model: base
modules:
  default:
    models: [{model: chat}, {model: math, parameters: {weight: 3}}]
    parameters: {weight: [{filter: mlp, value: 2}], density: 0.5}
parameters: {weight: 1, density: 0.1, lambda: 0.3}
""",
        """
merge_method: ties
base_model: base
models: [{model: chat}, {model: math, parameters: {weight: 3}}]
parameters: {weight: [{filter: mlp, value: 2}, {value: 1}], density: 0.5, lambda: 0.3}
""",
    ),
    "one module of slices": (
        """
merge_method: passthrough
modules:
  default:
    slices: [{sources: [{model: chat, layer_range: [0, 4]}]}]
""",
        """
merge_method: passthrough
slices: [{sources: [{model: chat, layer_range: [0, 4]}]}]
""",
    ),
    "a base_model of linear is one more model": (
        """
merge_method: linear
base_model: math
models: [{model: chat, parameters: {weight: 1}}]
parameters: {weight: 2}
""",
        """
merge_method: linear
models: [{model: chat, parameters: {weight: 1}}, {model: math}]
parameters: {weight: 2}
""",
    ),
    "tokenizers and dtypes that change nothing": (
        """
merge_method: linear
models: [{model: chat, parameters: {weight: 1}}]
tokenizer_source: base
dtype: float32
out_dtype: torch.bfloat16
chat_template: null
""",
        """
merge_method: linear
models: [{model: chat, parameters: {weight: 1}}]
tokenizer: {source: org/base, tokens: {}, pad_to_multiple_of: null}
dtype: bfloat16
""",
    ),
    "the vocabulary of all models": (
        """
merge_method: linear
models: [{model: chat, parameters: {weight: 1}}]
tokenizer_source: union
""",
        """
merge_method: linear
models: [{model: chat, parameters: {weight: 1}}]
tokenizer: {}
""",
    ),
    "models as mappings": (
        """
merge_method: linear
models:
  - {model: {model: {path: org/math-7b, revision: v2}}, parameters: {weight: 1}}
  - {model: {model: my+model}, parameters: {weight: 1}}
""",
        """
merge_method: linear
models: [{model: chat, parameters: {weight: 1}}, {model: code, parameters: {weight: 1}}]
""",
    ),
    "nothing said": (
        "{merge_method: linear, models: [{model: chat, parameters: {weight: 1}}], "
        "parameters: null}",
        "{merge_method: linear, models: [{model: chat, parameters: {weight: 1}}], "
        "parameters: {normalize: []}}",
    ),
}
"""Pairs of configurations that mean the same."""


@pytest.mark.parametrize("texts", EQUAL.values(), ids=EQUAL)
def test_what_means_the_same_becomes_the_same_recipe(texts: tuple[str, str]) -> None:
    """mergekit's own equivalences hold: the recipes are equal."""
    one, other = map(recipe, texts)
    assert one == other


@pytest.mark.parametrize("source", ["base", "union", "chat"])
def test_a_tokenizer_source_is_kept(source: str) -> None:
    """Whose vocabulary it is shows when the recipe is planned; written, it is what was read."""
    text = f"{{merge_method: linear, tokenizer_source: {source}, "
    read = recipe(text + "models: [{model: chat, parameters: {weight: 1}}]}")
    assert read.tokenizer_source == source
    written = to_mergekit(read, PATHS.__getitem__)["tokenizer_source"]
    assert written == {**PATHS, "base": "base"}.get(source, source)
    without = read.model_copy(update={"tokenizer_source": None})
    digests = {"chat": "sha256:1"}
    assert read.digest(digests, flat_base()) != without.digest(digests, flat_base())


def test_a_method_that_can_do_without_a_base_has_none_unless_it_is_named() -> None:
    """mergekit has no default base_model; a recipe has, so it is set to null."""
    assert recipe(SAME["nuslerp without a base"]).base_model is None
    assert recipe(SAME["multislerp with a base"]).base_model == "base"


GOOD = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [{"model": "chat"}],
    "parameters": {"weight": 1},
}
STACK = {"merge_method": "passthrough"}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({**GOOD, "merge_method": "tiess"}, "merge_method: 'tiess' is not known; known are"),
        ({**GOOD, "models": []}, "models, slices, modules: exactly one is needed, got none"),
        ({**GOOD, "slices": [1]}, "models, slices, modules: exactly one is needed, got models, sl"),
        ({**GOOD, "base_model": "org/nothing"}, "base_model: 'org/nothing' is neither the name"),
        ({**GOOD, "models": [{"model": "base+x/lora"}]}, "models[0].model: 'base+x/lora' is an"),
        ({**GOOD, "models": [{}]}, "models[0].model: is missing"),
        ({**GOOD, "models": [{"model": "chat"}] * 2}, "models[1].model: 'chat' is there twice"),
        (
            {**GOOD, "base_model": "org/base", "models": [{"model": "org/base"}] * 2},
            "models[1].model: 'org/base' is there twice",
        ),
        ({"base_model": "base", "experts": [{"source_model": "chat"}]}, "experts: is of mergekit-"),
        (
            {**GOOD, "models": [{"model": {"model": "chat", "override_architecture": "X"}}]},
            "models[0].model.override_architecture: the architecture is the base's",
        ),
        (
            {**GOOD, "models": [{"model": {"model": {"path": "chat"}, "lora": {"path": "l"}}}]},
            "models[0].model: 'chat+l' is an adapter on a model, which mergekit merges first",
        ),
        ({**GOOD, "tokenizer_source": "nobody"}, "tokenizer_source: 'nobody' is neither the name"),
        ({**GOOD, "tokenizer": {"source": "nobody"}}, "tokenizer.source: 'nobody' is neither"),
        (
            {**GOOD, "tokenizer": {"source": "base", "tokens": {"<x>": {}}}},
            "tokenizer.tokens: would change the vocabulary",
        ),
        ({**GOOD, "tokenizer": {"tokns": {}}}, "tokenizer.tokns: unknown key; known are source"),
        ({**GOOD, "dtype": "float16", "out_dtype": "bfloat16"}, "out_dtype: a merge computes in"),
        (
            {"merge_method": "linear", "modules": {"a": {"models": [1]}, "b": {"models": [1]}}},
            "modules: models of several modules are not served: a, b",
        ),
        ({**STACK, "slices": [{"sources": []}]}, "slices[0].sources: must be a list with"),
        (
            {
                **STACK,
                "slices": [
                    {
                        "sources": [
                            {"model": "org/base", "layer_range": [0, 1]},
                            {"model": "org/base", "layer_range": [1, 2]},
                        ]
                    }
                ],
            },
            "slices[0].sources: 'org/base' is in it twice",
        ),
    ],
)
def test_what_has_no_native_form_is_refused_by_name(config: dict[str, Any], reason: str) -> None:
    """One thing that has no native form is one reason, led by where it stands."""
    with pytest.raises(RecipeError) as error:
        from_mergekit(config, NAMES.get)
    assert len(error.value.reasons) == 1
    assert error.value.reasons[0].startswith(reason)


def test_all_of_it_is_refused_at_once() -> None:
    """Every reason comes in one error."""
    text = """
merge_method: ties
base_model: nothing
models: [{model: nobody}, {model: chat+lora}]
tokenizer_source: nothing
chat_template: alpaca
extra: 1
"""
    starts = [reason.split(":")[0] for reason in reasons(text)]
    assert starts == [
        *("base_model", "models[0].model", "models[1].model", "tokenizer_source"),
    ]


LAYERS = {"model": "chat", "layer_range": [0, 1]}


@pytest.mark.parametrize(
    ("more", "ignored"),
    [
        ({"name": "my-model"}, "name: mergekit does not read it; it does nothing"),
        ({"dtyp": "float16"}, "dtyp: mergekit does not read it; it does nothing; did you mean 'd"),
        ({"colour": 1}, "colour: mergekit does not read it; it does nothing"),
        ({"normalize": False}, "normalize: mergekit does not read it here, and it does nothing; p"),
        ({"chat_template": "auto"}, "chat_template: a preset has the chat template of the base"),
        ({"chat_template": "{{ messages }}"}, "chat_template: a preset has the chat template of"),
        (
            {"parameters": {"weight": 1, "filter_wise": True}},
            "parameters.filter_wise: ties does not read it; it does nothing",
        ),
        (
            {"parameters": {"weight": 1, "lamda": 2}},
            "parameters.lamda: ties does not read it; it does nothing; did you mean 'lambda'?",
        ),
        (
            {"models": [{"model": "chat", "parameters": {"normalize": False}}]},
            "models[0].parameters.normalize: ties reads it for all models together",
        ),
        (
            {"models": [{"model": "chat", "weight": 1}]},
            "models[0].weight: mergekit does not read it here, and it does nothing; parameters sta",
        ),
        (
            {"models": [{"model": "base", "parameters": {"weight": 1}}, {"model": "chat"}]},
            "models[0].parameters: 'base' is the base_model, and mergekit reads no parameters of",
        ),
        (
            {"models": None, "slices": [{"sources": [LAYERS], "residual_weight": 0.5}]},
            "slices[0].residual_weight: mergekit does not read it; it does nothing",
        ),
        (
            {"models": None, "slices": [{"sources": [LAYERS], "parameters": {"t": 1}}]},
            "slices[0].parameters.t: ties does not read it; it does nothing",
        ),
        (
            {"models": None, "slices": [{"sources": [{**LAYERS, "parameters": {"t": 1}}]}]},
            "slices[0].sources[0].parameters.t: ties does not read it; it does nothing",
        ),
    ],
)
def test_what_mergekit_does_not_read_is_left_out_and_told(
    more: dict[str, Any], ignored: str
) -> None:
    """At every level: the recipe is the same as without it, and says where it stood."""
    converted = from_mergekit({**GOOD, **more}, NAMES.get)
    assert len(converted.ignored) == 1
    assert converted.ignored[0].startswith(ignored)
    plain = {key: value for key, value in more.items() if key in ("models", "slices")}
    for part in plain.get("models") or ():
        part.pop("parameters", None)
    for part in plain.get("slices") or ():
        part["sources"] = [LAYERS]
        part.pop("parameters", None)
    assert converted.fields == from_mergekit({**GOOD, **plain}, NAMES.get).fields


def test_a_misspelled_parameter_that_is_missed_is_told_with_it() -> None:
    """Where the recipe is refused, what was left out may be why."""
    models = [{"model": "org/base"}, {"model": "chat", "parameters": {"wieght": 1}}]
    config = {**GOOD, "merge_method": "task_arithmetic", "models": models, "parameters": None}
    with pytest.raises(RecipeError) as error:
        from_mergekit(config, NAMES.get)
    missing, misspelled = error.value.reasons
    assert missing == "sources.chat.weight: is missing"
    assert misspelled.startswith("models[1].parameters.wieght: task_arithmetic does not read it")
    assert misspelled.endswith("did you mean 'weight'?")


def test_reasons_call_the_base_as_the_configuration_does() -> None:
    """Its name here is not one that stands in the file."""
    sources = [{"model": "chat", "layer_range": [0, 1]}, {"model": "math", "layer_range": [1, 2]}]
    slices = {**GOOD, "base_model": "org/base", "models": None, "slices": [{"sources": sources}]}
    with pytest.raises(RecipeError) as error:
        from_mergekit(slices, NAMES.get)
    assert "base_model 'org/base' is not among them" in str(error.value)


def test_native_settings_of_sources_are_folded_into_slices() -> None:
    """A source's settings hold in every slice, after those that the slice has for it."""
    layers = {"model": "math", "layer_range": [0, 4]}
    one = Recipe.model_validate(
        {
            "method": "task_arithmetic",
            "sources": {"math": {"weight": [{"filter": "mlp", "value": 1}, {"value": 2}]}},
            "slices": [
                {"sources": [{**layers, "parameters": {"weight": {"filter": "q", "value": 3}}}]},
                {"sources": [layers]},
            ],
        }
    )
    first, second = to_mergekit(one, PATHS.__getitem__)["slices"]  # type: ignore[misc]
    folded = [{"filter": "q", "value": 3}, {"filter": "mlp", "value": 1}, {"value": 2}]
    assert first["sources"][0]["parameters"] == {"weight": folded}  # type: ignore[index, call-overload]
    assert second["sources"][0]["parameters"] == {"weight": folded[1:]}  # type: ignore[index, call-overload]
    base = {"model": "org/base", "layer_range": [0, 4]}  # mergekit wants it among the sources
    assert first["sources"][1] == second["sources"][1] == base  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"method": "lines", "parameters": {"alpha": 1, "beta": 1}},
            "method: mergekit has no lines",
        ),
        (
            {"method": "ties", "parameters": {"semantics": "peft"}},
            "parameters.semantics: mergekit has no such parameter",
        ),
    ],
)
def test_what_mergekit_lacks_is_refused_by_name(fields: dict[str, Any], reason: str) -> None:
    """Methods and parameters beyond mergekit's have no form there."""
    one = Recipe.model_validate({"sources": {"math": {"weight": 1}}, **fields})
    with pytest.raises(RecipeError) as error:
        to_mergekit(one, PATHS.__getitem__)
    assert error.value.reasons[0].startswith(reason)


def test_native_parameters_at_mergekit_s_default_are_left_out() -> None:
    """Saying that a method is to do as mergekit does needs no parameter there."""
    one = Recipe.model_validate(
        {
            "method": "ties",
            "sources": {"math": {"weight": 1}},
            "parameters": {"semantics": "mergekit", "lambda": 2},
        }
    )
    assert to_mergekit(one, PATHS.__getitem__)["parameters"] == {"lambda": 2}
