"""`mergeserve merge`: a recipe in, a checkpoint out."""

import errno
import json
import os
import re
import shutil
import signal
from itertools import count
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from merging.checkpoint_writer import CheckpointWriter
from server.__main__ import main
from tests.adapters import save_adapter
from tests.models import save_tiny_model, tiny_model

TOKENS = torch.tensor([[5, 17, 120, 44, 9, 200, 31]])


class Models:
    """A base, two fine-tunes of it and an adapter, in folders."""

    def __init__(self, root: Path, family: str = "llama") -> None:
        self.root, self.numbers = root, count()
        self.base = save_tiny_model(root / "base", family)
        self.tuned = [save_tiny_model(root / f"tuned-{seed}", family, seed) for seed in (1, 2)]
        self.adapter = save_adapter(root / "adapter", tiny_model(family), seed=3)

    def recipe(self, **fields: object) -> Path:
        """A recipe file."""
        path = self.root / f"recipe-{next(self.numbers)}.yaml"
        path.write_text(yaml.safe_dump(fields, sort_keys=False))
        return path

    def task_arithmetic(self, *folders: Path, **fields: object) -> Path:
        """mergekit's recipe, with the weights 0.1, 0.2, ..."""
        models = [
            {"model": str(folder), "parameters": {"weight": number / 10}}
            for number, folder in enumerate(folders, start=1)
        ]
        base = {"merge_method": "task_arithmetic", "base_model": str(self.base), "models": models}
        return self.recipe(**{**base, **fields})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """No test writes to them."""
    return Models(tmp_path_factory.mktemp("models"))


def merged(recipe: Path, out: Path, *options: str) -> dict[str, torch.Tensor]:
    """The tensors of a merge that works."""
    assert main(["merge", str(recipe), str(out), *options]) == 0
    return load_file(out / "model.safetensors")


def refused(capsys: pytest.CaptureFixture[str], recipe: Path, out: Path, *options: str) -> str:
    """What a merge that is refused says; it leaves nothing."""
    before = sorted(os.listdir(out.parent))
    assert main(["merge", str(recipe), str(out), *options]) == 1
    assert sorted(os.listdir(out.parent)) == before
    return capsys.readouterr().err


def test_task_arithmetic_by_hand(models: Models, tmp_path: Path) -> None:
    """Every tensor is W0 + 0.1 (a - W0) + 0.2 (b - W0), in the base's dtype."""
    found = merged(models.task_arithmetic(*models.tuned), tmp_path / "out")
    base, first, second = (
        load_file(folder / "model.safetensors") for folder in (models.base, *models.tuned)
    )
    assert found.keys() == base.keys()
    for name, tensor in found.items():
        expected = base[name] + 0.1 * (first[name] - base[name]) + 0.2 * (second[name] - base[name])
        assert torch.allclose(tensor, expected, atol=1e-6), name


def test_another_vocabulary_is_aligned_when_asked(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A source whose tokens moved is refused with the rows that differ; with tokenizer_source each
    token is merged with its own row, and the result has the base's tokenizer.
    """
    folder = tmp_path / "moved"
    shutil.copytree(models.tuned[0], folder)
    text = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(text))
    said = refused(capsys, models.task_arithmetic(folder), tmp_path / "out")
    assert "2 rows are of other tokens: row" in said
    assert 'tokenizer_source to "base"' in said
    aligned = models.task_arithmetic(folder, tokenizer_source="base")
    found = merged(aligned, tmp_path / "out")["model.embed_tokens.weight"]
    base, own = (
        load_file(f / "model.safetensors")["model.embed_tokens.weight"]
        for f in (models.base, folder)
    )
    a, b = vocabulary["a"], vocabulary["b"]
    own[[a, b]] = own[[b, a]]
    assert torch.allclose(found, base + 0.1 * (own - base), atol=1e-6)
    assert "tokenizer_source: base" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        models.base / "tokenizer.json"
    ).read_bytes()


def test_a_source_that_changes_meanwhile_is_not_published(
    models: Models,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is noticed after all is written, and nothing is left."""
    folder = tmp_path / "ft"
    shutil.copytree(models.tuned[0], folder)
    flush = CheckpointWriter.flush

    def touching(writer: CheckpointWriter) -> None:
        flush(writer)
        os.utime(folder / "model.safetensors", ns=(1, 1))

    monkeypatch.setattr(CheckpointWriter, "flush", touching)
    said = refused(capsys, models.task_arithmetic(folder), tmp_path / "out")
    assert "ft/model.safetensors changed since" in said


def test_files_without_the_models_prefix(tmp_path: Path) -> None:
    """As hubs have GPT-2: base and source may lack it, and the result has the base's names."""
    models = Models(tmp_path, "gpt2")
    expected = merged(models.task_arithmetic(*models.tuned), tmp_path / "whole")
    for folder in (models.base, models.tuned[1]):
        tensors = load_file(folder / "model.safetensors")
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    found = merged(models.task_arithmetic(*models.tuned), tmp_path / "bare")
    assert {f"transformer.{name}" for name in found} == expected.keys()
    assert all(
        torch.equal(found[name.removeprefix("transformer.")], expected[name]) for name in expected
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "bare").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_transformers_loads_it_with_its_tokenizer(models: Models, tmp_path: Path) -> None:
    """No key is missing or unexpected; the chat template and the generation config came along."""
    merged(models.task_arithmetic(*models.tuned), tmp_path / "out")
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, use_safetensors=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.isfinite(model(TOKENS).logits).all()
    tokenizer, original = (
        AutoTokenizer.from_pretrained(f) for f in (tmp_path / "out", models.base)
    )
    assert tokenizer.chat_template == original.chat_template is not None
    assert tokenizer.encode("hello") == original.encode("hello")
    assert (tmp_path / "out" / "generation_config.json").is_file()


def test_the_card_reproduces_it(models: Models, tmp_path: Path) -> None:
    """The recipe in README.md makes the same bytes again. It has no paths of this machine."""
    recipe = models.task_arithmetic(
        *models.tuned, merge_method="dare_ties", parameters={"density": 0.5}
    )
    first = merged(recipe, tmp_path / "out", "--seed", "7")
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["tags"] == ["merge", "mergekit"]
    assert front["base_model"] == ["base", "tuned-1", "tuned-2"]
    assert "seed: 7" in card
    assert "digest: `sha256:" in card
    assert str(models.root) not in card
    again = tmp_path / "again.yaml"
    again.write_text(card.split("```yaml\n")[1].split("```")[0])
    sources = [f"tuned-{n}={models.root / f'tuned-{n}'}" for n in (1, 2)]
    options = ["--model", str(models.base), "--seed", "7"]
    options += [word for source in sources for word in ("--source", source)]
    options += ["--source", f"base={models.base}"]
    second = merged(again, tmp_path / "again", *options)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = merged(recipe, tmp_path / "other", "--seed", "8")
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_adapters_are_merged_without_a_base_copy(models: Models, tmp_path: Path) -> None:
    """An adapter in a mergekit recipe is its delta: half of it is half of what PEFT adds."""
    found = merged(
        models.task_arithmetic(
            models.adapter,
            models=[{"model": str(models.adapter), "parameters": {"weight": 0.5}}],
        ),
        tmp_path / "out",
    )
    base = load_file(models.base / "model.safetensors")
    factors = load_file(models.adapter / "adapter_model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    assert torch.allclose(
        found[f"{name}.weight"], base[f"{name}.weight"] + 0.5 * 2 * b @ a, atol=1e-6
    )
    assert torch.equal(found["model.norm.weight"], base["model.norm.weight"])


def test_adapters_and_checkpoints_together(models: Models, tmp_path: Path) -> None:
    """Both are deltas of one base."""
    both = merged(models.task_arithmetic(models.tuned[0], models.adapter), tmp_path / "out")
    one = merged(models.task_arithmetic(models.tuned[0]), tmp_path / "one")
    changed = {name for name in both if not torch.equal(both[name], one[name])}
    assert "model.layers.0.self_attn.q_proj.weight" in changed
    assert "model.embed_tokens.weight" not in changed


def test_without_a_base(models: Models, tmp_path: Path) -> None:
    """A method that needs none takes config and tokenizer from its first model."""
    recipe = models.recipe(
        merge_method="linear",
        models=[{"model": str(f), "parameters": {"weight": 1.0}} for f in models.tuned],
    )
    found = merged(recipe, tmp_path / "out")
    first, second = (load_file(folder / "model.safetensors") for folder in models.tuned)
    for name, tensor in found.items():
        assert torch.allclose(tensor, (first[name] + second[name]) / 2, atol=1e-6), name


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_stacked_layers(tmp_path: Path, family: str) -> None:
    """The config tells the new depth and the kind of each layer; the layers are those asked for."""
    models = Models(tmp_path, family)
    slices = [
        {"sources": [{"model": str(models.base), "layer_range": [0, 2]}]},
        {"sources": [{"model": str(models.tuned[0]), "layer_range": [1, 3]}]},
    ]
    found = merged(models.recipe(merge_method="passthrough", slices=slices), tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.num_hidden_layers == 4
    if family == "gemma3":
        kinds = AutoConfig.from_pretrained(models.base).layer_types
        assert config.layer_types == [kinds[0], kinds[1], kinds[1], kinds[2]]
    base, tuned = (load_file(f / "model.safetensors") for f in (models.base, models.tuned[0]))
    name = "model.layers.{}.mlp.up_proj.weight"
    for new, (source, old) in enumerate([(base, 0), (base, 1), (tuned, 1), (tuned, 2)]):
        assert torch.equal(found[name.format(new)], source[name.format(old)])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.isfinite(model(TOKENS).logits).all()


def test_a_tied_head_stays_tied_unless_it_is_changed(models: Models, tmp_path: Path) -> None:
    """An adapter on the head unties it, and the config says so."""
    found = merged(models.task_arithmetic(*models.tuned), tmp_path / "tied")
    assert "lm_head.weight" not in found
    assert AutoConfig.from_pretrained(tmp_path / "tied").tie_word_embeddings is True
    base = load_file(models.base / "model.safetensors")["model.embed_tokens.weight"]
    factors = {
        f"base_model.model.lm_head.lora_{letter}.weight": torch.randn(shape)
        for letter, shape in (("A", (2, 32)), ("B", (base.shape[0], 2)))
    }
    (tmp_path / "head").mkdir()
    save_file(factors, tmp_path / "head" / "adapter_model.safetensors")
    (tmp_path / "head" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["lm_head"]})
    )
    found = merged(models.task_arithmetic(tmp_path / "head"), tmp_path / "untied")
    delta = (
        factors["base_model.model.lm_head.lora_B.weight"]
        @ (factors["base_model.model.lm_head.lora_A.weight"])
    )
    assert torch.equal(found["model.embed_tokens.weight"], base)
    assert torch.allclose(found["lm_head.weight"], base + 0.1 * delta, atol=1e-5)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "untied")
    assert torch.allclose(model.lm_head.weight, found["lm_head.weight"])


@pytest.mark.parametrize(("given", "expected"), [("recipe", "bfloat16"), ("option", "float16")])
def test_dtype(models: Models, tmp_path: Path, given: str, expected: str) -> None:
    """The option wins over the recipe; weights and config agree."""
    options = ["--dtype", "float16"] if given == "option" else []
    recipe = models.task_arithmetic(*models.tuned, dtype="bfloat16")
    found = merged(recipe, tmp_path / "out", *options)
    assert {tensor.dtype for tensor in found.values()} == {getattr(torch, expected)}
    assert str(AutoConfig.from_pretrained(tmp_path / "out").dtype) == f"torch.{expected}"


def test_a_native_document(models: Models, tmp_path: Path) -> None:
    """A preset's document merges too, its sources named with --source."""
    native = models.recipe(
        name="tutor",
        mode="merge",
        method="task_arithmetic",
        sources={"x": {"weight": 0.1}, "y": {"weight": 0.2}},
    )
    options = ["--model", str(models.base), "--source", f"x={models.tuned[0]}"]
    found = merged(native, tmp_path / "a", *options, "--source", f"y={models.tuned[1]}")
    same = merged(models.task_arithmetic(*models.tuned), tmp_path / "b")
    assert all(torch.equal(found[name], same[name]) for name in same)


@pytest.mark.parametrize("is_given", [True, False])
def test_a_native_document_that_names_its_base(
    models: Models, tmp_path: Path, is_given: bool
) -> None:
    """By --source or by its path; it is the base that the document's slices mean too."""
    name = "w" if is_given else str(models.base)
    given = {"w": models.base} if is_given else {}
    given |= {"x": models.tuned[0], "y": models.tuned[1]}
    options = [part for pair in given.items() for part in ("--source", "=".join(map(str, pair)))]
    fields = {
        "method": "task_arithmetic",
        "sources": {"x": {"weight": 0.1}, "y": {"weight": 0.2}},
    }
    layers = [0, AutoConfig.from_pretrained(models.base).num_hidden_layers]
    parts = [{"model": model, "layer_range": layers} for model in (name, "x", "y")]
    same = merged(models.task_arithmetic(*models.tuned), tmp_path / "same")
    plain = models.recipe(base_model=name, **fields)
    sliced = models.recipe(base_model=name, slices=[{"sources": parts}], **fields)
    own = [{"sources": parts, "base_model": name}]
    of_slice = models.recipe(slices=own, **fields)
    model = ["--model", str(models.base)]
    for number, (recipe, more) in enumerate([(plain, []), (sliced, []), (of_slice, model)]):
        found = merged(recipe, tmp_path / str(number), *options, *more)
        assert found.keys() == same.keys()
        assert all(torch.allclose(found[name], same[name], atol=1e-6) for name in same)


def test_a_native_base_model_that_would_be_ignored(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused as the document spells it, though it is the base here."""
    recipe = models.recipe(
        method="linear",
        base_model=str(models.base),
        sources={str(folder): {"weight": 1} for folder in models.tuned},
    )
    assert "linear has no base_model" in refused(capsys, recipe, tmp_path / "out")


def test_a_quantised_base(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its bytes are no weights without their scales: refused, by the names of its tensors."""
    base = Path(shutil.copytree(models.base, tmp_path / "packed"))
    state = load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    state[name] = state[name].to(torch.float8_e4m3fn)
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    recipe = models.task_arithmetic(*models.tuned, base_model=str(base))
    said = refused(capsys, recipe, tmp_path / "out")
    assert name in said
    assert "dequantise it first" in said


def test_another_chat_template(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Jinja text in the recipe is what the result has; the name of mergekit's own is refused."""
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    merged(models.task_arithmetic(*models.tuned, chat_template=template), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template
    merged(models.task_arithmetic(*models.tuned, chat_template="auto"), tmp_path / "auto")
    kept = AutoTokenizer.from_pretrained(tmp_path / "auto").chat_template
    assert kept == AutoTokenizer.from_pretrained(models.base).chat_template
    recipe = models.task_arithmetic(*models.tuned, chat_template="chatml")
    assert "'chatml'" in refused(capsys, recipe, tmp_path / "none")


def test_all_reasons_at_once(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every model that is not found or does not fit, and every parameter, before anything is
    written.
    """
    recipe = models.task_arithmetic(tmp_path / "no", tmp_path / "nor")
    said = refused(capsys, recipe, tmp_path / "out")
    assert str(tmp_path / "no") in said
    assert str(tmp_path / "nor") in said
    other = save_tiny_model(tmp_path / "other", "qwen3")
    broken = save_tiny_model(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"x")
    said = refused(capsys, models.task_arithmetic(other, broken), tmp_path / "out")
    assert "qwen3" in said
    assert "truncated" in said
    said = refused(
        capsys, models.task_arithmetic(*models.tuned, parameters={"wait": 1}), tmp_path / "out"
    )
    assert "wait" in said


def test_a_base_with_an_adapter_on_it_is_refused_by_name(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """mergekit's "base+adapter": the way out is to name the adapter alone."""
    recipe = models.task_arithmetic(Path(f"{models.base}+{models.adapter}"))
    assert "adapter alone" in refused(capsys, recipe, tmp_path / "out")


def test_files_that_are_no_recipes(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is told what is wrong with it."""
    for content, reason in (
        ("a: [", "not YAML"),
        ("- 1", "expected a map"),
        ("x: 1", "merge_method"),
        ("a: 1\n---\nb: 1", "2 documents"),
        ("method: task_arithmetic\nsources: {x: {weight: 1}}\nfoo: 1", "--model"),
    ):
        path = tmp_path / "recipe.yaml"
        path.write_text(content)
        assert reason in refused(capsys, path, tmp_path / "out")
    said = refused(capsys, path, tmp_path / "out", "--model", str(models.base))
    assert "x is not there" in said
    assert "no such file" in refused(capsys, tmp_path / "none.yaml", tmp_path / "out")


def test_nothing_is_overwritten(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with files in it is refused before anything is read, with all else that is wrong."""
    said = refused(capsys, tmp_path / "no recipe", models.base)
    assert "not empty" in said
    assert "no recipe: there is no such file" in said


def test_values_that_are_not_finite_leave_nothing(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither NaN in a source nor an overflow of the dtype is written."""
    state = load_file(models.tuned[0] / "model.safetensors")
    for value, dtype in ((float("nan"), "float32"), (1e6, "float16")):
        broken = tmp_path / dtype
        shutil.copytree(models.tuned[0], broken)
        state["model.norm.weight"][0] = value
        save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
        recipe = models.task_arithmetic(models.tuned[1], broken, dtype=dtype)
        assert "model.norm.weight" in refused(capsys, recipe, tmp_path / "out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_merge_leaves_nothing(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """A checkpoint is whole or is not there, and what was begun is removed."""
    out = tmp_path / "out"

    def stopped(*arguments: object, **options: object) -> None:
        (unfinished,) = tmp_path.iterdir()
        assert unfinished.name.startswith(".out.unfinished")
        assert (unfinished / "model.safetensors").is_file()
        os.kill(os.getpid(), number)

    monkeypatch.setattr("merging.merged_checkpoint.build", stopped)
    code = 0
    try:
        code = main(["merge", str(models.task_arithmetic(*models.tuned)), str(out)])
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code == 128 + number
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(
    models: Models,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is found before anything is computed, and said."""

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full)
    said = refused(capsys, models.task_arithmetic(*models.tuned), tmp_path / "out")
    size = sum(t.nbytes for t in load_file(models.base / "model.safetensors").values())
    assert f"{tmp_path / 'out'} cannot be written: No space left on device: {size:,} bytes" in said
    free = re.search(r"are needed, and ([\d,]+) are free; nothing is left there: free", said)
    assert free is not None
    assert int(free[1].replace(",", "")) <= shutil.disk_usage(tmp_path).total


def test_progress_is_in_plain_lines_off_a_terminal(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line a step on stderr, and the result on stdout."""
    assert main(["merge", str(models.task_arithmetic(*models.tuned)), str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{tmp_path / 'out'}: ")
    assert said.out.count("\n") == 1
    assert said.err.count("merging") == 1
    assert "\r" not in said.err
