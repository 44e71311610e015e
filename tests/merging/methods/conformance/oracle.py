"""Merge by mergekit 0.1.5: run by a Python that has it, and by nothing else of this project.

    python oracle.py CASES.json TENSORS.safetensors OUT.safetensors

CASES holds a list of cases (see grid.py). Tensor `x` of model `m` of set `s` is `s/m/x` in TENSORS.
OUT gets a tensor by the case's id and tensor; its metadata the text of errors.
"""

import json
import sys

import torch
from mergekit.merge_methods import merge_state_dicts
from safetensors.torch import load_file, save_file


def main(cases_path: str, tensors_path: str, out_path: str) -> None:
    tensors, merged, errors = load_file(tensors_path), {}, {}
    with open(cases_path) as file:
        cases = json.load(file)
    for case in cases:
        models = {
            model: {case["tensor"]: tensors[f"{case['set']}/{model}/{case['tensor']}"]}
            for model in case["models"]
        }
        torch.manual_seed(case["seed"])
        try:
            result = merge_state_dicts(
                models,
                case["method"],
                base=case["base"],
                parameters=case["parameters"],
                dtype=getattr(torch, case["dtype"]),
            )
            merged[case["id"]] = result[case["tensor"]].contiguous().clone()
        except Exception as error:
            errors[case["id"]] = f"{type(error).__name__}: {error}"
    save_file(merged, out_path, metadata=errors)


if __name__ == "__main__":
    main(*sys.argv[1:])
