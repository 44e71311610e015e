"""Models whose files call tensors otherwise than the model does: merged live and offline, of
adapters and of checkpoints, they are what the arithmetic on transformers' own models gives.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from merging.plan import Plan, plan
from merging.recipe import Recipe
from merging.trim_cache import TrimCache
from merging.variant import VariantPlan
from server.__main__ import main
from server.engine.loading import load_engine
from server.engine.options import EngineOptions
from server.engine.request import Member, Request, SamplingParams
from server.engine.variant import Variant
from server.presets.contents import Content
from server.presets.sources import SourceRegistry
from server.presets.workshop import Workshop
from tests.adapters import peft_logits, save_adapter
from tests.tokenizers import byte_tokenizer

SMALL = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {**GROUPED, "num_experts_per_tok": 2}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
FAMILIES: dict[str, dict[str, object]] = {
    "gpt_neox": SMALL,
    "mixtral": {**EXPERTS, "num_local_experts": 4},
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 24},
    "gemma3": {
        "text_config": {**GROUPED, "model_type": "gemma3_text"},
        "vision_config": VISION,
    },
}
TARGETS = {
    "gpt_neox": ["query_key_value", "lm_head"],
    "mixtral": ["q_proj", "o_proj"],
    "qwen3_moe": ["q_proj", "o_proj"],
    "gemma3": r".*language_model.*\.(q_proj|down_proj)",
}
TOKENS = [5, 17, 120, 44, 9, 200, 31, 88, 3, 150, 61, 7]
pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
Names = Callable[[str], bool]


class World:
    """A base, a full fine-tune and an adapter of a family, in folders."""

    def __init__(self, family: str, root: Path) -> None:
        self.root = root
        config = AutoConfig.for_model(family, **FAMILIES[family])
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(std=0.2)
        model.save_pretrained(root / "base")
        byte_tokenizer().save_pretrained(root / "base")
        self.tune("tuned", lambda name: True)
        save_adapter(root / "lora", self.model(), target_modules=TARGETS[family])

    def tune(self, folder: str, changed: Names) -> None:
        """A copy of the base with noise on the tensors whose names in files are `changed`."""
        shutil.copytree(self.root / "base", self.root / folder)
        file = self.root / folder / "model.safetensors"
        generator = torch.Generator().manual_seed(len(folder))
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if changed(name):
                tensors[name] = tensor + 0.03 * torch.randn(tensor.shape, generator=generator)
        save_file(tensors, file, {"format": "pt"})

    def model(self, folder: str = "base") -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.root / folder, dtype=torch.float32).eval()

    def mean(self, *folders: str) -> PreTrainedModel:
        """The mean of models, parameter by parameter."""
        model, others = self.model(folders[0]), [self.model(f) for f in folders[1:]]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                own = [other.get_parameter(name) for other in others]
                parameter.copy_(torch.stack([parameter, *own]).mean(0))
        return model


@pytest.fixture(scope="module", params=FAMILIES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(request.param, tmp_path_factory.mktemp(request.param))


class Live:
    """The base of a world as the server loads it, and sources as it registers them."""

    def __init__(self, world: World) -> None:
        options = EngineOptions(device="cpu", dtype="float32", kv_memory=0.01)
        self.root, self.loaded = world.root, load_engine(world.root / "base", options)
        self.registry = SourceRegistry(
            self.loaded.base,
            resident=self.loaded.weights,
            base_tensor=self.loaded.base_tensor,
        )

    def plan(self, method: str, **sources: dict[str, object]) -> Plan:
        contents: dict[str, Content] = {n: self.registry.read(self.root / n)[0] for n in sources}
        recipe = Recipe.model_validate({"method": method, "sources": sources})
        return plan(recipe, contents, self.loaded.base, weights=self.loaded.weights)

    def logprobs(self, made: Plan) -> torch.Tensor:
        """Of the test's tokens but the first, under a plan that is built if it must be."""
        weights = made.blend if made.variant is None else self.built(made.variant)
        request = Request(
            (Member(tuple(TOKENS), weights),), SamplingParams(max_tokens=1, prompt_logprobs=0)
        )
        group = self.loaded.engine.add(request)
        while self.loaded.engine.scheduler.has_work:
            self.loaded.engine.step()
        return torch.tensor([token.logprob for token in group.prompt_logprobs[1:]])

    def built(self, made: VariantPlan) -> Variant:
        workshop = Workshop(self.loaded.variants, TrimCache(0))
        return workshop.build(made, lambda need: None, lambda: False).variant


def logprobs(logits: torch.Tensor) -> torch.Tensor:
    rows = torch.log_softmax(logits.float(), -1)
    return torch.stack([rows[i, token] for i, token in enumerate(TOKENS[1:])])


def of_model(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return logprobs(model(input_ids=torch.tensor([TOKENS])).logits[0])


@pytest.fixture(scope="module")
def live(world: World) -> Live:
    return Live(world)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_a_checkpoint_live(world: World, live: Live) -> None:
    """A full fine-tune at weight 1 is itself, and at one half the mean with the base."""
    whole = live.plan("task_arithmetic", tuned={"weight": 1.0})
    assert_close(live.logprobs(whole), of_model(world.model("tuned")))
    half = live.plan("task_arithmetic", tuned={"weight": 0.5})
    assert_close(live.logprobs(half), of_model(world.mean("base", "tuned")))


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_an_adapter_live(world: World, live: Live, method: str) -> None:
    """An adapter alone at weight 1 is what PEFT computes, as a blend and as written weights."""
    parameters = {"weight": 1.0} | ({"density": 1.0} if method == "ties" else {})
    made = live.plan(method, lora=parameters)
    assert (made.variant is None) == (method == "task_arithmetic")
    expected = logprobs(peft_logits(world.model(), world.root / "lora", TOKENS))
    assert_close(live.logprobs(made), expected)


def test_parts_of_a_parameter_that_are_not_changed_keep_the_bases_values(
    world: World, live: Live
) -> None:
    """A fine-tune of one expert, or of one layer: what lies in the same parameter stays the
    base's.
    """
    if not (world.root / "expert").is_dir():
        world.tune("expert", lambda name: "experts.2." in name or "layers.1.mlp" in name)
    made = live.plan("ties", expert={"weight": 1.0, "density": 1.0})
    assert made.variant is not None
    assert_close(live.logprobs(made), of_model(world.model("expert")))


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_offline_the_files_have_the_bases_names(world: World, tmp_path: Path, method: str) -> None:
    """A merge that is written has the names, tensor for tensor, that the base's files have, all
    that the sources touch is changed, and transformers loads what the arithmetic says.
    """
    density = {"density": 1.0} if method == "ties" else {}
    for source in ("lora", "tuned"):
        recipe = {
            "merge_method": method,
            "base_model": str(world.root / "base"),
            "dtype": "float32",
            "models": [
                {"model": str(world.root / source), "parameters": {"weight": 1.0, **density}}
            ],
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        out = tmp_path / source
        assert main(["merge", str(tmp_path / "recipe.yaml"), str(out)]) == 0
        base, merged = (load_file(f / "model.safetensors") for f in (world.root / "base", out))
        assert merged.keys() == base.keys()
        changed = {name for name in base if not torch.equal(base[name], merged[name])}
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        if source == "tuned":
            assert changed == base.keys()
            assert_close(of_model(model), of_model(world.model("tuned")))
        else:
            factors = load_file(world.root / "lora" / "adapter_model.safetensors")
            assert len(changed) == sum("lora_A" in name for name in factors)
            expected = logprobs(peft_logits(world.model(), world.root / "lora", TOKENS))
            assert_close(of_model(model), expected)


def test_an_adapter_under_the_names_of_files(world: World, live: Live, tmp_path: Path) -> None:
    """Older versions of transformers and PEFT wrote the modules of some models as their files name
    them: the same adapter.
    """
    files = {live.loaded.base.naming([own])[own]: own for own in file_names(world)}
    shutil.copytree(world.root / "lora", tmp_path / "old")
    path = tmp_path / "old" / "adapter_model.safetensors"
    renamed = {}
    for name, tensor in load_file(path).items():
        if ".lora_" not in name:
            continue  # PEFT's copy of the head
        module, letter = name.removeprefix("base_model.model.").split(".lora_")
        own = files.get(f"{module}.weight", f"{module}.weight").removesuffix(".weight")
        renamed[f"base_model.model.{own}.lora_{letter}"] = tensor
    save_file(renamed, path)
    old, warnings = live.registry.read(tmp_path / "old")
    new, _ = live.registry.read(world.root / "lora")
    assert old.factors.keys() == new.factors.keys()
    assert not any("no linear layer" in warning for warning in warnings)


def file_names(world: World) -> list[str]:
    return list(load_file(world.root / "base" / "model.safetensors"))
