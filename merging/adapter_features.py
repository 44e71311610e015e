"""What adapters have beyond a static low-rank delta on linear layers, and what becomes of it."""

from collections.abc import Mapping

RETRAIN = "train a plain LoRA instead"
CONVERT = (
    "convert it with save_pretrained(..., path_initial_model_for_weight_conversion=...) where it "
    "was trained"
)
EACH = "register the adapters themselves, and merge or ensemble them here"

DENSE: Mapping[str, str] = {
    "use_dora": "DoRA rescales the base's weights row by row",
    "lora_bias": "it trains a bias of its own on every layer",
    "bias": "it trains the base's biases",
    "modules_to_save": "it replaces whole modules of the base",
    "lora_embedding": "it changes an embedding",
    "trainable_token_indices": "it replaces rows of an embedding",
    "target_parameters": "it changes bare parameters, not linear layers",
    "use_qalora": "QALoRA pools the inputs of lora_A",
    "use_bdlora": "BD-LoRA keeps its factors in blocks",
    "kasa_config": "KaSA truncates the base's weights",
    "velora_config": "VeLoRA keeps tensors of its own",
    "monteclora_config": "MonteCLoRA keeps tensors of its own",
    "ensure_weight_tying": "it changes embedding and head together",
}
"""Fields of a LoRA's config: why its delta is no product of two factors. PEFT merges it."""

REFUSED: Mapping[str, tuple[str, str]] = {
    "layer_replication": ("it repeats layers of the base", "train on the base as it is"),
    "alora_invocation_tokens": ("aLoRA acts only after its invocation tokens", RETRAIN),
    "arrow_config": ("Arrow routes every token among adapters", EACH),
    "megatron_config": ("it is for Megatron's parallel layers", "convert it for transformers"),
}
"""Fields with which there are no static weights: why, and the way out."""

STATIC_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the base as it is."""

REPEATED_INITS: Mapping[str, str] = {
    "pissa": "PiSSA takes the largest singular vectors out of the base",
    "olora": "OLoRA takes a QR decomposition out of the base",
}
"""Values that change the base before training in a way that PEFT repeats when it loads them."""

MUTATING_INITS: Mapping[str, str] = {
    "pissa": CONVERT,
    "olora": CONVERT,
    "corda": CONVERT,
    "lora_ga": CONVERT,
    "loftq": "merge it with PEFT into the quantised base that it was trained on, and register that "
    "checkpoint",
}
"""Values that change the base in a way that cannot be repeated: PiSSA's fast SVD draws numbers,
CorDA and LoRA-GA look at data, LoftQ quantises. By their beginnings, with the way out.
"""

MERGED_TYPES: Mapping[str, str] = {
    "ADALORA": "AdaLoRA has a diagonal between its factors",
    "LOHA": "LoHa multiplies two products element by element",
    "LOKR": "LoKr is a Kronecker product",
    "VERA": "VeRA scales projections that all layers share",
    "OFT": "OFT rotates the base's weights",
    "BOFT": "BOFT rotates the base's weights",
    "IA3": "(IA)3 rescales the base's weights",
    "FOURIERFT": "FourierFT is sparse in the frequencies",
    "C3A": "C3A is a circular convolution",
    "HRA": "HRA reflects the base's weights",
    "VBLORA": "VB-LoRA composes its factors of shared vectors",
    "RANDLORA": "RandLoRA is a sum of many random factors",
    "LN_TUNING": "it trains norms",
    "TRAINABLE_TOKENS": "it replaces rows of an embedding",
    "SHIRA": "SHiRA is sparse and of full rank",
    **dict.fromkeys(
        ("ADAMSS", "BEFT", "BONE", "DEFT", "DELORA", "FROD", "GLORA", "GRALORA", "HIRA", "LILY"),
        "its delta is no product of two factors",
    ),
    **dict.fromkeys(
        ("MISS", "OSF", "PEANUT", "PSOFT", "PVERA", "ROAD", "SUPERTUNING", "TINYLORA", "UNILORA"),
        "its delta is no product of two factors",
    ),
    "WAVEFT": "WaveFT is sparse in wavelets",
}
"""PEFT types but LORA that PEFT can merge into a base: why the delta is dense."""

PROMPTS = (
    "its trained vectors stand before the prompt, and there are no weights to merge",
    "write what it does into the prompt, or train a plain LoRA instead",
)

STATELESS_TYPES: Mapping[str, tuple[str, str]] = {
    "PROMPT_TUNING": PROMPTS,
    "MULTITASK_PROMPT_TUNING": PROMPTS,
    "P_TUNING": PROMPTS,
    "PREFIX_TUNING": PROMPTS,
    "CPT": PROMPTS,
    "CARTRIDGE": PROMPTS,
    "ADAPTION_PROMPT": ("it adds gated attention to trained vectors", RETRAIN),
    "XLORA": ("X-LoRA weighs adapters anew for every token", EACH),
    "POLY": ("Poly routes among adapters by task", EACH),
    "SHADOW": ("a network beside the base computes it", RETRAIN),
}
"""PEFT types without static weights: why, and the way out."""


def refusal(feature: str) -> str:
    """The reason against a feature of a LoRA's config, with the way out."""
    reason, way_out = REFUSED[feature]
    return f"{feature} is not supported: {reason}; {way_out}"


def type_refusal(peft_type: object) -> str | None:
    """The reason against a PEFT type; None if there is none."""
    if peft_type == "LORA" or peft_type in MERGED_TYPES:
        return None
    if isinstance(peft_type, str) and peft_type in STATELESS_TYPES:
        reason, way_out = STATELESS_TYPES[peft_type]
        return f"peft_type {peft_type!r} is not supported: {reason}; {way_out}"
    return (
        f"peft_type {peft_type!r} is not known: merge it into the base where it was trained, and "
        f"register that checkpoint; or {RETRAIN}"
    )


def init_refusal(init: object) -> str | None:
    """The reason against a value of init_lora_weights; None if there is none."""
    if init in STATIC_INITS or (isinstance(init, str) and init.lower() in REPEATED_INITS):
        return None
    for prefix, way_out in MUTATING_INITS.items():
        if isinstance(init, str) and init.lower().startswith(prefix):
            return (
                f"init_lora_weights {init!r} is not supported: it changes the base's weights "
                f"before training, and its folder does not hold how; {way_out}"
            )
    return f"init_lora_weights {init!r} is not known: {CONVERT}"
