"""The names of an adapter's tensors as PEFT writes them, whatever wrapped the model when they were
saved.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Final

import torch

from merging.errors import SourceError

PREFIX: Final = "base_model.model."
"""What PEFT puts before every module's path in the model."""

WRAPPERS: Final = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module)\.")
"""What torch.compile and FSDP put into paths, at any depth."""

NAMED: Final = re.compile(r"\.lora_([AB])\.([^.]+)\.weight$")
"""A factor as it is called in memory, with its adapter's name."""

SAVE: Final = "save it with peft's model.save_pretrained(FOLDER)"


def peft_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under the names that PEFT's save_pretrained gives them: without wrappers and the
    adapter's name, with PEFT's prefix. Names that it writes stay as they are.

    SourceError where more than one adapter is meant, or two tensors would have one name.
    """
    names = {name: _unwrapped(name) for name in tensors}
    adapters = sorted({match[2] for name in names.values() if (match := NAMED.search(name))})
    if len(adapters) > 1:
        raise SourceError(
            f"it holds several adapters, {', '.join(adapters)}: save each by itself with peft's "
            "model.save_pretrained(FOLDER, selected_adapters=[NAME])"
        )
    names = {old: NAMED.sub(r".lora_\1.weight", name) for old, name in names.items()}
    if not any(name.startswith(PREFIX) for name in names.values()):
        names = {old: PREFIX + name for old, name in names.items()}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise SourceError(f"it holds {twice[0]} under two names: {SAVE}")
    return {names[old]: tensor for old, tensor in tensors.items()}


def _unwrapped(name: str) -> str:
    """Without what DataParallel, torch.compile and FSDP add, outside PEFT's prefix or inside."""
    bare = WRAPPERS.sub("", name).removeprefix("module.")
    inside = bare.removeprefix(PREFIX)
    return bare if inside == bare else PREFIX + inside.removeprefix("module.")
