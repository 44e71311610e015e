"""Whether two configs compute the same with the same weights."""

import pytest

from merging.config_check import Config, config_reason, config_warnings

LLAMA = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": None,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rms_norm_eps": 9.999999747378752e-06,
    "attn_logit_softcapping": None,
    "max_position_embeddings": 2048,
}


@pytest.mark.parametrize(
    "changed",
    [
        {"num_attention_heads": 8},
        {"num_key_value_heads": 4},
        {"hidden_act": "gelu"},
        {"rope_theta": 500000.0},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"attn_logit_softcapping": 50.0},
    ],
    ids=str,
)
def test_what_changes_the_function_is_refused(changed: Config) -> None:
    """By the name of what differs, with both values, whichever of the two is the base's."""
    changed = {**LLAMA, **changed}
    for own, base in ((changed, LLAMA), (LLAMA, changed)):
        reason = config_reason(own, base)
        assert reason is not None
        assert reason.count("(the base's") == 1
        assert config_reason(own, own) is None


def test_everything_that_differs_is_in_one_reason() -> None:
    """With the way out once."""
    told = config_reason(LLAMA | {"num_attention_heads": 8, "rope_theta": 5e5}, LLAMA)
    assert told == (
        "its config.json has num_attention_heads 8 (the base's 4), rope_theta 500000.0 (the base's "
        "10000.0): with it the same weights compute something else, and merged they mean nothing; "
        "take a fine-tune of this base, or correct that config.json if it is wrong"
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"hidden_act": "swish"},
        {"head_dim": 16},  # null is what the model's code makes of the other values
        {"max_position_embeddings": 8192, "torch_dtype": "float16", "use_cache": False},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000}},
        {"rope_scaling": {"rope_type": "default"}},
        {"rms_norm_eps": 1e-5},
    ],
    ids=str,
)
def test_other_words_for_the_same_are_no_difference(changed: Config) -> None:
    """transformers writes rotary embeddings in several forms; numbers may have been float32."""
    assert config_reason({**LLAMA, **changed}, LLAMA) is None
    assert list(config_warnings({**LLAMA, **changed}, LLAMA)) == []


def test_what_is_not_there_says_nothing() -> None:
    """Its value is the default of the model's code, which the weights were trained with."""
    assert config_reason({}, LLAMA) is None
    assert config_reason(LLAMA, {"model_type": "llama"}) is None


def test_rotary_embeddings_of_each_kind_of_layer() -> None:
    """They are compared as they are, and not with those of one kind."""
    local = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    other = {"sliding_attention": {"rope_type": "default", "rope_theta": 20000.0}}
    assert config_reason({"rope_parameters": local}, {"rope_parameters": local}) is None
    assert config_reason({"rope_parameters": local}, {"rope_parameters": other}) is not None
    flat = {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert config_reason({"rope_parameters": local}, flat) is None


def test_a_gemma_ignores_the_activation_of_its_old_key() -> None:
    """`hidden_activation` counts where it is there; gelu is its approximation in the first Gemmas,
    which newer files say, and itself in other models.
    """
    old = {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}
    assert config_reason(old, {"hidden_act": "gelu_new"}) is None
    assert config_reason({"hidden_act": "gelu"}, old) is not None
    gemma = {"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": None}
    assert config_reason({"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh"}, gemma) is None


def test_scaling_is_refused_on_a_base_that_has_no_word_of_it() -> None:
    """Many files leave `rope_scaling` out where there is none."""
    base = {"rope_theta": 1e6}
    scaled = base | {"rope_scaling": {"type": "yarn", "factor": 4.0}}
    assert "rope_type 'yarn'" in str(config_reason(scaled, base))
    assert config_reason(base | {"rope_scaling": None}, base) is None


def test_old_names_of_long_rotary_embeddings() -> None:
    """Phi-3's first files said su and yarn for what is longrope now; others mean yarn by it."""
    now = {"model_type": "phi3", "rope_scaling": {"type": "longrope", "long_factor": [1.0]}}
    for old in ("su", "yarn"):
        before = {"model_type": "phi3", "rope_scaling": {"type": old, "long_factor": [1.0]}}
        assert config_reason(before, now) is None
        assert (config_reason({**before, "model_type": "qwen2"}, now) is None) == (old == "su")


def test_kinds_of_layers_follow_the_same_rules() -> None:
    """What one of two files does not say, or says as null, is no difference."""
    base = {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    own = {
        "full_attention": {**base["full_attention"], "partial_rotary_factor": 1.0, "factor": None}
    }
    assert config_reason({"rope_parameters": own}, {"rope_parameters": base}) is None


def test_what_changes_little_is_a_warning() -> None:
    """The model runs with the base's value, and that is said."""
    own = LLAMA | {"rms_norm_eps": 1e-6, "sliding_window": 4096}
    base = LLAMA | {"sliding_window": None}
    assert config_reason(own, base) is None
    assert list(config_warnings(own, base)) == [
        "its config has rms_norm_eps 1e-06; it runs with the base's 9.999999747378752e-06",
        "its config has sliding_window 4096; it runs with the base's None",
    ]
