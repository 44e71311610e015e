"""Write golden.json: what mergekit makes of small tensors, for tests that run without it.

MERGESERVE_MERGEKIT_PYTHON=… python -m tests.merging.methods.conformance.make_golden
"""

import json
import os
import tempfile
from pathlib import Path

import torch

from tests.merging.methods.conformance.grid import MODELS, cases
from tests.merging.methods.conformance.run import merge_by_mergekit

GOLDEN = Path(__file__).with_name("golden.json")
SHAPE = (3, 4)
PER_METHOD = 8


def main() -> None:
    generator = torch.Generator().manual_seed(5)
    values = {m: torch.randn(SHAPE, generator=generator).mul(100).round() / 100 for m in MODELS}
    tensors = {f"unrelated/{model}/linear": value for model, value in values.items()}
    every = [case for case in cases() if case.set == "unrelated" and case.tensor == "linear"]
    chosen = []
    for method in dict.fromkeys(case.method for case in every):
        of_method = [case for case in every if case.method == method]
        chosen += of_method[:: -(-len(of_method) // PER_METHOD)]
    with tempfile.TemporaryDirectory() as folder:
        python = os.environ["MERGESERVE_MERGEKIT_PYTHON"]
        merged, errors = merge_by_mergekit(python, chosen, tensors, Path(folder))
    assert not errors, errors
    lines = [
        json.dumps(
            {
                "method": case.method,
                "sources": case.sources,
                "has_base": case.has_base,
                "parameters": case.parameters,
                "merged": [round(x, 6) for x in merged[case.id].flatten().tolist()],
            }
        )
        for case in chosen
    ]
    models = json.dumps({m: [round(x, 2) for x in v.flatten().tolist()] for m, v in values.items()})
    body = ",\n    ".join(lines)
    GOLDEN.write_text(
        f'{{\n  "mergekit": "0.1.5",\n  "shape": {json.dumps(SHAPE)},\n  "models": {models},\n'
        f'  "cases": [\n    {body}\n  ]\n}}\n'
    )


if __name__ == "__main__":
    main()
