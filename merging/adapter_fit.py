"""An adapter under the names that the base's modules have in the model."""

from dataclasses import replace

from merging.adapter import Adapter
from merging.base import Base


def under_model_names(adapter: Adapter, base: Base) -> Adapter:
    """The adapter with its modules, and the tensors of the base that it holds, named as in `base`.

    Older versions of transformers had some models under the names that their files still have, and
    so have the adapters that were trained with them. What the base does not know keeps its name.
    """
    unknown = {f"{m}.weight": m for m in adapter.factors if m not in base.linears}
    names = {unknown[n]: new.removesuffix(".weight") for n, new in base.naming(unknown).items()}
    renamed = {
        old: new for old, new in names.items() if new in base.linears and new not in adapter.factors
    }
    copies = base.naming(adapter.base_copies)
    if not renamed and all(old == new for old, new in copies.items()):
        return adapter
    return replace(
        adapter,
        factors=dict(sorted((renamed.get(m, m), f) for m, f in adapter.factors.items())),
        base_copies={copies[name]: digest for name, digest in adapter.base_copies.items()},
    )
