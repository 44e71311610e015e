"""Read a mergekit configuration into the fields of a recipe."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from pydantic import JsonValue

from merging.mergekit_ignored import unknown_key, unread_parameter
from merging.mergekit_reference import REFERENCE_KEYS, mappings, merge_first, reference_text
from merging.mergekit_setting import fold, plain
from merging.methods import METHODS
from merging.recipe import BASE, UNION

Settings = dict[str, JsonValue]
Values = Mapping[str, object]

EXPERTS: Final = (
    "experts: is of mergekit-moe, which makes a mixture of experts of whole models, and no merge; "
    "run mergekit-moe where it is installed, and serve its result as MODEL"
)

KEYS: Final = (
    *("merge_method", "base_model", "models", "slices", "modules", "parameters"),
    *("dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template"),
)


class Reader:
    """Reads one configuration. After `read`, `reasons` has what has no native form, and `ignored`
    what mergekit does not read either: it is left out. `spellings` are the models' own, by name.
    """

    def __init__(self, name_of: Callable[[str], str | None]) -> None:
        self._name_of = name_of
        self.reasons: list[str] = []
        self.ignored: list[str] = []
        self.spellings: dict[str, str] = {}

    def read(self, config: Values) -> dict[str, JsonValue]:
        """The fields of a recipe; they hold only if there are no `reasons`."""
        if "experts" in config:
            self.reasons.append(EXPERTS)
            return {}
        name = config.get("merge_method")
        method = METHODS.get(name) if isinstance(name, str) else None
        if method is None:
            known = ", ".join(METHODS)
            self.reasons.append(f"merge_method: {name!r} is not known; known are {known}")
        self._method = method
        self._known_keys(config, KEYS, "")
        self._takes_base = method is not None and method.base == "input"
        self._base_model = self._model(config.get("base_model"), "base_model")
        content, shared = self._content(config)
        sources: Settings = {}
        slices: list[tuple[JsonValue, list[str]]] = []
        if content.get("models"):
            sources = self._models(content["models"])
        elif content.get("slices"):
            slices = list(self._slices(content["slices"]))
            sources = {name: {} for name in sorted({n for _, names in slices for n in names})}
        dtype = self._dtype(config)
        return {
            "method": str(name),
            "base_model": BASE if self._takes_base else self._base_model,
            "sources": sources,
            "parameters": shared,
            "slices": [part for part, _ in slices] or None,
            "dtype": dtype,
            "tokenizer_source": self._tokenizer(config),
        }

    def _content(self, config: Values) -> tuple[Values, Settings]:
        """Where the models or slices stand, and the settings that all of them share."""
        given = [key for key in ("models", "slices", "modules") if config.get(key)]
        if len(given) != 1:
            what = ", ".join(given) or "none"
            self.reasons.append(f"models, slices, modules: exactly one is needed, got {what}")
            return {}, {}
        shared = self._settings(config.get("parameters"), "parameters")
        if given != ["modules"]:
            return config, shared
        modules = self._mapping(config["modules"], "modules")
        if len(modules) != 1:
            names = ", ".join(str(name) for name in modules)
            self.reasons.append(f"modules: models of several modules are not served: {names}")
            return {}, shared
        path, module = next((f"modules.{key}", value) for key, value in modules.items())
        module = self._mapping(module, path)
        self._known_keys(module, ("models", "slices", "parameters"), f"{path}.")
        if bool(module.get("models")) == bool(module.get("slices")):
            self.reasons.append(f"{path}: exactly one of models and slices is needed")
        return module, fold(
            [self._settings(module.get("parameters"), f"{path}.parameters"), shared]
        )

    def _models(self, models: object) -> Settings:
        sources: Settings = {}
        seen: list[str | None] = []
        for index, item in enumerate(self._list(models, "models")):
            path, entry = f"models[{index}]", self._mapping(item, f"models[{index}]")
            self._known_keys(entry, ("model", "parameters"), f"{path}.")
            name = self._model(entry.get("model"), f"{path}.model", required=True)
            is_base = name is not None and name == self._base_model and not self._takes_base
            settings = self._settings(entry.get("parameters"), f"{path}.parameters", name, is_base)
            if name is not None and name in seen:
                self.reasons.append(
                    f"{path}.model: {self.spellings[name]!r} is there twice, and mergekit "
                    "takes a model once; list it once, with the sum of its weights"
                )
            seen.append(name)
            if name is not None and not is_base:
                sources[name] = settings
        if self._takes_base and self._base_model is not None:
            sources.setdefault(self._base_model, {})  # mergekit adds it as one more model
        return sources

    def _slices(self, slices: object) -> Iterator[tuple[JsonValue, list[str]]]:
        """The native slices, each with the names of its sources."""
        for index, item in enumerate(self._list(slices, "slices")):
            path, part = f"slices[{index}]", self._mapping(item, f"slices[{index}]")
            self._known_keys(part, ("sources", "base_model", "parameters"), f"{path}.")
            own = self._model(part.get("base_model"), f"{path}.base_model")
            base_model = None if self._takes_base else own or self._base_model
            sources = [
                self._slice_source(source, f"{path}.sources[{place}]", base_model)
                for place, source in enumerate(self._list(part.get("sources"), f"{path}.sources"))
            ]
            self._check_once([str(source["model"]) for source in sources], f"{path}.sources")
            read: dict[str, JsonValue] = {"sources": list(sources)}
            if own is not None and not self._takes_base:
                read["base_model"] = own
            if parameters := self._settings(part.get("parameters"), f"{path}.parameters"):
                read["parameters"] = parameters
            yield read, [str(s["model"]) for s in sources if s["model"] != base_model]

    def _slice_source(
        self, item: object, path: str, base_model: str | None
    ) -> dict[str, JsonValue]:
        source = self._mapping(item, path)
        self._known_keys(source, ("model", "layer_range", "parameters"), f"{path}.")
        name = self._model(source.get("model"), f"{path}.model", required=True)
        layers = self._list(source.get("layer_range"), f"{path}.layer_range")
        read: dict[str, JsonValue] = {"model": name or "", "layer_range": list(layers)}  # type: ignore[arg-type]
        is_base = name is not None and name == base_model
        settings = self._settings(source.get("parameters"), f"{path}.parameters", name, is_base)
        return read | {"parameters": settings} if settings and not is_base else read

    def _check_once(self, names: Sequence[str], path: str) -> None:
        """mergekit tells the sources of a slice apart by their models."""
        for name in sorted({name for name in names if name and names.count(name) > 1}):
            self.reasons.append(
                f"{path}: {self.spellings[name]!r} is in it twice, and mergekit takes a model once "
                "in a slice; use another slice for its other layers"
            )

    def _model(self, value: object, path: str, required: bool = False) -> str | None:
        """The name of a model that a configuration refers to."""
        if value is None:
            if required:
                self.reasons.append(f"{path}: is missing")
            return None
        text = self._reference(value, path)
        if text is None:
            return None
        name = self._name_of(text)
        if name is not None:
            self.spellings.setdefault(name, text)
        elif "+" in text:
            self.reasons.append(f"{path}: {merge_first(text)}")
        else:
            self.reasons.append(
                f"{path}: {text!r} is neither the name of a source, nor a path or hub id that one "
                "was registered from"
            )
        return name

    def _reference(self, value: object, path: str) -> str | None:
        """The text of a reference; also in its form as a mapping."""
        for where, given in mappings(value, path):
            self._known_keys(given, REFERENCE_KEYS, f"{where}.")
            if given.get("override_architecture") is not None:
                self.reasons.append(
                    f"{where}.override_architecture: the architecture is the base's; leave it out"
                )
        text = reference_text(value)
        if text is None and isinstance(value, Mapping):
            self.reasons.append(f"{path}.path: is missing")
        elif text is None:
            self.reasons.append(f"{path}: must be a name, a path or a hub id, got {value!r}")
        return text

    def _settings(
        self, value: object, path: str, source: str | None = None, is_base: bool = False
    ) -> Settings:
        """What a method reads of the parameters of a level; they are a `source`'s, or shared."""
        if value is None:
            return {}
        given, method = self._mapping(value, path), self._method
        if method is None:
            return {}
        if is_base and given:
            self.ignored.append(
                f"{path}: {self.spellings[str(source)]!r} is the base_model, and mergekit reads no "
                "parameters of it; they do nothing"
            )
            return {}
        settings: Settings = {}
        for name, item in given.items():
            why = unread_parameter(method, str(name), path, of_source=source is not None)
            parameter = method.parameter(str(name))
            if why is not None:
                self.ignored.append(why)
            # an empty list says nothing in mergekit, and the next level is asked
            elif parameter is not None and (read := plain(item, parameter.type)) != []:
                settings[name] = read
        return settings

    def _dtype(self, config: Values) -> str | None:
        dtype, out = (
            None if (text := config.get(key)) is None else str(text).removeprefix("torch.")
            for key in ("dtype", "out_dtype")
        )
        if out is not None and dtype not in (None, out, "float32"):
            self.reasons.append(
                f"out_dtype: a merge computes in float32, and {dtype} (dtype) is not kept; leave "
                "dtype out"
            )
        return out or dtype

    def _tokenizer(self, config: Values) -> str | None:
        """What tokens are aligned to. Whether that is the base's vocabulary is seen when the recipe
        is planned; what changes it by itself is refused here.
        """
        source = self._tokenizer_source(config.get("tokenizer_source"), "tokenizer_source")
        if (tokenizer := config.get("tokenizer")) is not None:
            given = self._mapping(tokenizer, "tokenizer")
            keys = ("source", "tokens", "pad_to_multiple_of")
            self.reasons += [  # the one place where mergekit refuses them, too
                f"tokenizer.{key}: unknown key; known are {', '.join(keys)}"
                for key in given
                if key not in keys
            ]
            source = self._tokenizer_source(given.get("source", UNION), "tokenizer.source")
            for key in ("tokens", "pad_to_multiple_of"):
                if given.get(key):
                    self.reasons.append(
                        f"tokenizer.{key}: would change the vocabulary, which is the base's; leave "
                        "it out"
                    )
        if config.get("chat_template") is not None:
            self.ignored.append(
                "chat_template: a preset has the chat template of the base; serve with "
                "--chat-template FILE to give all of them another"
            )
        return source

    def _tokenizer_source(self, value: object, path: str) -> str | None:
        if value is None or value in (BASE, UNION):
            return None if value is None else str(value)
        name = self._model(value, path)
        return BASE if name == self._base_model else name

    def _known_keys(self, given: Values, known: tuple[str, ...], path: str) -> None:
        self.ignored += [
            unknown_key(self._method, str(key), path, known)
            for key, value in given.items()
            if key not in known and value is not None
        ]

    def _mapping(self, value: object, path: str) -> Values:
        if isinstance(value, Mapping):
            return value
        self.reasons.append(f"{path}: must be a mapping, got {value!r}")
        return {}

    def _list(self, value: object, path: str) -> list[object]:
        if isinstance(value, list | tuple) and value:
            return list(value)
        self.reasons.append(f"{path}: must be a list with something in it, got {value!r}")
        return []
