"""The settings of `mergeserve serve`: from the command line, the environment and a YAML file.

The command line wins over `MERGESERVE_*`, which wins over the file of `--config`. Every option is
one field here; the command line is generated from these fields.
"""

import ipaddress
import os
from pathlib import Path
from typing import Literal, Self

import yaml
from platformdirs import user_data_path
from pydantic import Field, FilePath, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from merging.base import Base
from merging.regular_file import MAX_YAML, read_file
from server.api.keys import read_key_file
from server.presets.policy import InlineRecipes, OverrideLevel, Policy
from server.presets.sampling_defaults import SamplingDefaults
from server.setting_values import Defaults, Folders, Keys, Sources, YesNo, items

ENV_PREFIX = "MERGESERVE_"
SECRET_FIELDS = frozenset({"api_key", "admin_key"})


class SettingsError(Exception):
    """The settings cannot be used; one sentence a reason."""

    def __init__(self, *reasons: str) -> None:
        self.reasons = reasons
        super().__init__("; ".join(reasons))


class Settings(BaseSettings):
    """Every option of `mergeserve serve`. None: worked out when the server starts."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    model: str | None = Field(None, min_length=1, description="folder or hub id of the base model")
    config: Path | None = Field(None, description="YAML file with any of these options")
    source: Sources = Field(
        (), description="adapter or checkpoint, by folder or hub id; several times"
    )
    source_dir: Folders = Field(
        (), description="folder from which sources may be registered over HTTP"
    )
    presets: FilePath | None = Field(
        None, description="YAML list of preset documents, created if absent"
    )
    demo: bool = Field(False, description="serve the demo model with its adapters and presets")
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="auto, bfloat16, float16 or float32; auto is bfloat16 where it is fast",
    )
    database_url: str | None = Field(
        None,
        pattern=r"^sqlite:///.+",
        description="where presets are kept, sqlite:///PATH; default: the user's data folder",
    )
    api_key: Keys = Field((), description="KEY or NAME:KEY that may read and generate")
    admin_key: Keys = Field(
        (), description="KEY or NAME:KEY that may also change presets and sources"
    )
    api_key_file: FilePath | None = Field(None, description="file with one API key a line")
    admin_key_file: FilePath | None = Field(None, description="file with one admin key a line")
    served_model_name: str | None = Field(
        None,
        min_length=1,
        description="the base's id in the API; default: its hub id or folder's name",
    )
    chat_template: FilePath | None = Field(
        None, description="Jinja file used instead of the model's own chat template"
    )
    defaults: Defaults | None = Field(
        None,
        description="sampling values for requests and presets that give none, as JSON; of --demo: "
        '{"temperature": 0}',
    )
    num_threads: int | None = Field(None, ge=1, description="processor threads; default: torch's")
    max_rows: int = Field(64, ge=1, le=4096, description="sequences that run at the same time")
    max_model_len: int | None = Field(
        None,
        ge=1,
        description="tokens of prompt and answer; default: the model's",
    )
    max_queued: int = Field(256, ge=1, description="requests that may wait for a row")
    variant_memory: float | None = Field(
        None,
        gt=0,
        description="GiB for merged weights; default: half of what is free",
    )
    dense_cache: float = Field(
        20.0, gt=0, description="GiB on disk for the deltas of adapters that PEFT has to merge"
    )
    kv_memory: float | None = Field(
        None, gt=0, description="GiB for the KV cache; default: a quarter of what is free"
    )
    overrides: OverrideLevel | None = Field(
        None,
        description="what a request may change of a preset: none, mode or weights; default: "
        "weights on a loopback server without keys, else none",
    )
    inline_recipes: InlineRecipes | None = Field(
        None,
        description="recipes inside requests; default: blend on a loopback server without "
        "keys, else off",
    )
    serve_sources: YesNo | None = Field(
        None,
        description="whether a source can be called by its own name; default: yes on a loopback "
        "server without keys, else no",
    )
    list_ensembles: YesNo = Field(
        "no", description="whether /v1/models also lists NAME:ensemble for each preset"
    )
    metrics_open: bool = Field(False, description="serve /metrics without a key")
    request_timeout: float | None = Field(
        None, gt=0, description="seconds after which a request is given up; default: never"
    )
    fidelity_sample: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the presets' answers that the other mode scores afterwards",
    )
    shutdown_timeout: float = Field(
        30.0, ge=0, description="seconds that running requests get to finish after SIGTERM"
    )
    revisions_kept: int = Field(1000, ge=1, description="revisions of a preset that can be called")
    log_format: Literal["text", "json"] = Field("text", description="log lines as text or JSON")
    insecure_bind: bool = Field(
        False, description="listen beyond loopback without both kinds of key"
    )
    allow_base_mismatch: bool = Field(
        False,
        description="accept sources of another base: adapters that record its digest, checkpoints "
        "whose weights have nothing in common with this one's",
    )
    new_database: bool = Field(
        False, description="set the database aside, if there is one, and begin a new one"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The command line, then the environment, then the file."""
        path = init_settings().get("config") or os.environ.get(f"{ENV_PREFIX}CONFIG")
        content = _read_config(Path(path)) if path else {}
        return init_settings, env_settings, InitSettingsSource(settings_cls, content)

    @model_validator(mode="before")
    @classmethod
    def _refuse_yes_as_a_number(cls, data: dict[str, object]) -> dict[str, object]:
        """YAML reads `no` as false, which would do for 0."""
        numbers = (int, float, int | None, float | None)
        for name, field in cls.model_fields.items():
            if isinstance(data.get(name), bool) and field.annotation in numbers:
                raise ValueError(f"--{name.replace('_', '-')}: expected a number")
        return data

    @model_validator(mode="before")
    @classmethod
    def _add_keys_of_files(cls, data: dict[str, object]) -> dict[str, object]:
        for name in SECRET_FIELDS:
            if path := data.get(f"{name}_file"):
                given = items(data.get(name) or ())
                assert isinstance(given, list | tuple)
                data[name] = [*given, *read_key_file(Path(str(path)))]
        return data

    @model_validator(mode="after")
    def _check_bind(self) -> Self:
        if not (self.is_loopback or self.insecure_bind or (self.api_key and self.admin_key)):
            missing = [
                option
                for option, keys in (("--api-key", self.api_key), ("--admin-key", self.admin_key))
                if not keys
            ]
            raise ValueError(
                f"--host {self.host} is reachable from other machines, so both kinds of key are "
                f"needed: set {' and '.join(missing)}, or give --insecure-bind to go without"
            )
        return self

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if self.demo and self.model:
            raise ValueError(f"--demo brings its own model: leave out {self.model!r}, or --demo")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def policy(self) -> Policy:
        """What callers may do.

        By default everything but inline variants on a loopback server without keys, else nothing.
        """
        trusted = self.is_loopback and not (self.api_key or self.admin_key)
        return Policy(
            overrides=self.overrides or ("weights" if trusted else "none"),
            inline_recipes=self.inline_recipes or ("blend" if trusted else "off"),
            serve_sources=self.serve_sources == "yes" if self.serve_sources else trusted,
            list_ensembles=self.list_ensembles == "yes",
        )

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        """What a request gets where neither it nor its preset says anything, before OpenAI's.

        The demo's model is too small to be sampled from: it is greedy unless told otherwise.
        """
        return self.defaults or SamplingDefaults(temperature=0.0 if self.demo else None)

    def database_for(self, base: Base) -> str:
        """The database's URL; by default one file for each base in the user's data folder."""
        if self.database_url:
            return self.database_url
        from server.presets.database_choice import database_of  # late: it needs torch

        return f"sqlite:///{database_of(base, user_data_path('mergeserve'))}"


def _read_config(path: Path) -> dict[str, object]:
    try:
        content = yaml.safe_load(read_file(path, MAX_YAML).decode())
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"--config {path}: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise SettingsError(f"--config {path}: expected a map of options, like `port: 8000`")
    if "config" in (content or {}):
        raise SettingsError(f"--config {path}: a file cannot name another one: leave out config")
    return {str(key).replace("-", "_"): value for key, value in (content or {}).items()}
