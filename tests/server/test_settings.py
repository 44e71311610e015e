"""Settings: where they come from, what wins, what is refused, and what follows from them."""

import os
import re
from pathlib import Path

import pytest

from server.presets.policy import Policy
from server.setting_values import SourceSpec
from server.settings import Settings, SettingsError
from server.settings_loading import load_settings
from tests.server.presets.tiny import tiny_base

OPEN = Policy(overrides="weights", inline_recipes="blend", serve_sources=True)
CLOSED = Policy(overrides="none", inline_recipes="off", serve_sources=False)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own environment."""
    for name in list(os.environ):
        if name.startswith("MERGESERVE_"):
            monkeypatch.delenv(name)


def reasons(**given: object) -> str:
    """Why these settings are refused."""
    with pytest.raises(SettingsError) as caught:
        load_settings(given)
    return str(caught.value)


def config(tmp_path: Path, text: str) -> Path:
    """Write a configuration file."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_every_field_is_described() -> None:
    """Every option says what it is for."""
    assert all(field.description for field in Settings.model_fields.values())


def test_options_are_those_of_the_contract() -> None:
    """`serve` has exactly these options."""
    expected = """
        model config source source_dir presets demo host port device dtype database_url api_key
        admin_key api_key_file admin_key_file served_model_name chat_template num_threads max_rows
        max_model_len max_queued variant_memory dense_cache kv_memory overrides inline_recipes
        serve_sources list_ensembles metrics_open request_timeout fidelity_sample shutdown_timeout
        revisions_kept log_format insecure_bind allow_base_mismatch new_database defaults
    """
    assert Settings.model_fields.keys() == set(expected.split())


def test_command_line_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line wins over the environment, and that over the file."""
    path = config(tmp_path, "port: 1\nmax_rows: 2\nmax-queued: 3\n")
    monkeypatch.setenv("MERGESERVE_PORT", "4")
    monkeypatch.setenv("MERGESERVE_MAX_ROWS", "5")
    found = load_settings({"config": str(path), "port": "6"})
    assert (found.port, found.max_rows, found.max_queued) == (6, 5, 3)


def test_lists_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list from one place replaces that from a weaker one."""
    path = config(tmp_path, "api_key: [weak]\n")
    assert load_settings({"config": path, "api_key": ["a", "b"]}).api_key[0].value == "a"
    monkeypatch.setenv("MERGESERVE_API_KEY", "x:c, d")
    found = load_settings({"config": path}).api_key
    assert [(key.name, key.value) for key in found] == [("x", "c"), ("", "d")]


def test_file_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment can name the file."""
    monkeypatch.setenv("MERGESERVE_CONFIG", str(config(tmp_path, "port: 9")))
    assert load_settings({}).port == 9


def test_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable is as good as none."""
    monkeypatch.setenv("MERGESERVE_PORT", "")
    assert load_settings({}).port == 8000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prot: 1", "did you mean port?"),
        ("[1]", "expected a map"),
        ("a: [", "--config"),
        ("port: no", "--port"),
        ("1: 2", "unknown setting 1"),
        ("config: other.yaml", "leave out config"),
    ],
)
def test_bad_file(tmp_path: Path, text: str, reason: str) -> None:
    """A file that cannot be used says why; an unknown key is an error with a suggestion."""
    assert reason in reasons(config=config(tmp_path, text))


def test_missing_file() -> None:
    """A file that there is not is an error."""
    assert "/nowhere.yaml" in reasons(config="/nowhere.yaml")


def test_unknown_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown variable with our prefix is an error; those of other commands are not."""
    monkeypatch.setenv("MERGESERVE_URL", "http://x")
    monkeypatch.setenv("MERGESERVE_CACHE_DIR", "/x")
    load_settings({})
    monkeypatch.setenv("MERGESERVE_PROT", "1")
    assert "did you mean MERGESERVE_PORT?" in reasons()


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"port": "x"}, "--port"),
        ({"port": 65536}, "--port"),
        ({"device": "tpu"}, "--device"),
        ({"dtype": "int8"}, "--dtype"),
        ({"database_url": "postgresql://x"}, "--database-url"),
        ({"max_rows": 0}, "--max-rows"),
        ({"kv_memory": "nan"}, "--kv-memory"),
        ({"request_timeout": 0}, "--request-timeout"),
        ({"serve_sources": "maybe"}, "--serve-sources"),
        ({"source": ["x"]}, "--source"),
        ({"source": ["base=x"]}, "--source"),
        ({"source": ["a/b=x"]}, "--source"),
        ({"source_dir": ["/nowhere"]}, "--source-dir"),
        ({"presets": "/nowhere"}, "--presets"),
        ({"chat_template": "/nowhere"}, "--chat-template"),
        ({"api_key_file": "/nowhere"}, "/nowhere"),
        ({"api_key": " , "}, "--api-key: there is nothing between the commas"),
    ],
)
def test_bad_value(given: dict[str, object], option: str) -> None:
    """A value that cannot be used is refused with its option and the value."""
    message = reasons(**given)
    assert option in message


def test_every_reason_is_listed() -> None:
    """All mistakes are told at once."""
    message = reasons(port="x", max_rows=0)
    assert "--port" in message
    assert "--max-rows" in message


def test_sources(tmp_path: Path) -> None:
    """Sources are NAME=DIR, in YAML also a map; a path may contain an equals sign."""
    expected = (SourceSpec("a", "x=y"), SourceSpec("b", "org/z"))
    assert load_settings({"source": ["a=x=y", "b=org/z"]}).source == expected
    path = config(tmp_path, "source: {a: x=y, b: org/z}")
    assert load_settings({"config": path}).source == expected


def test_keys_of_files(tmp_path: Path) -> None:
    """A key file has one key a line, and adds to the keys that are given."""
    path = tmp_path / "keys"
    path.write_text("# ours\nalice:one\n\n two \n")
    found = load_settings({"api_key_file": path, "api_key": ["zero"]}).api_key
    assert [(key.name, key.value) for key in found] == [("", "zero"), ("alice", "one"), ("", "two")]


@pytest.mark.parametrize("option", ["api_key_file", "admin_key_file"])
def test_key_file_without_a_key(tmp_path: Path, option: str) -> None:
    """A key file that holds no key is an error, and does not open the server."""
    path = tmp_path / "keys"
    path.write_text("# none yet\n\n")
    assert f"{path} has no key" in reasons(**{option: path})


def test_keys_are_not_shown(tmp_path: Path) -> None:
    """Neither the settings nor an error about a key show its value."""
    settings = load_settings({"api_key": ["alice:hidden"], "admin_key": ["hidden"]})
    assert "hidden" not in repr(settings)
    assert "hidden" not in str(settings)
    assert "hidden" not in reasons(api_key=["hidden key"])
    path = tmp_path / "keys"
    path.write_text("hidden key\n")
    assert "hidden" not in reasons(admin_key_file=path)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    """On loopback a server may run without keys."""
    assert load_settings({"host": host}).policy == OPEN


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
@pytest.mark.parametrize(
    ("keys", "missing"),
    [
        ({}, "--api-key and --admin-key"),
        ({"api_key": ["a"]}, "--admin-key"),
        ({"admin_key": ["a"]}, "--api-key"),
    ],
)
def test_bind_beyond_loopback(host: str, keys: dict[str, object], missing: str) -> None:
    """Beyond loopback both kinds of key are needed, unless --insecure-bind says otherwise."""
    message = reasons(host=host, **keys)
    assert host in message
    assert f"set {missing}," in message
    assert "--insecure-bind" in message
    assert load_settings({"host": host, "insecure_bind": True, **keys}).policy == CLOSED


def test_bind_with_both_keys() -> None:
    """With both kinds of key any address will do."""
    load_settings({"host": "0.0.0.0", "api_key": ["a"], "admin_key": ["b"]})


@pytest.mark.parametrize("keys", [{"api_key": ["a"]}, {"admin_key": ["a"]}])
def test_keys_close_the_policy(keys: dict[str, object]) -> None:
    """Once keys are set, callers may do nothing that the operator did not allow."""
    assert load_settings(keys).policy == CLOSED


def test_policy_is_the_operators_choice() -> None:
    """Explicit settings win over the derived ones, either way."""
    opened = {"overrides": "mode", "inline_recipes": "variant", "serve_sources": "yes"}
    assert load_settings({"api_key": ["a"], **opened}).policy == Policy("mode", "variant", True)
    closed = {"overrides": "none", "inline_recipes": "off", "serve_sources": "no"}
    assert load_settings(closed).policy == CLOSED


@pytest.mark.parametrize(("text", "value"), [("yes", "yes"), ("no", "no"), ("'yes'", "yes")])
def test_yes_and_no_in_yaml(tmp_path: Path, text: str, value: str) -> None:
    """YAML reads a bare yes as true, which means the same."""
    path = config(tmp_path, f"serve_sources: {text}")
    assert load_settings({"config": path}).serve_sources == value


def test_demo_and_model() -> None:
    """--demo brings its own model."""
    assert "--demo" in reasons(demo=True, model="x")


def test_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By default each base has its own file in the user's data folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    found = load_settings({})
    base = tiny_base("org/model", "a")
    assert found.database_for(base) == f"sqlite:///{tmp_path}/mergeserve/base-{'a' * 16}.db"
    given = load_settings({"database_url": "sqlite:////x/y.db"})
    assert given.database_for(base) == "sqlite:////x/y.db"


def test_defaults_are_json_or_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling defaults are JSON on the command line and in the environment, and a map in YAML."""
    path = config(tmp_path, "defaults: {temperature: 0.5, stop: [x]}\n")
    assert load_settings({"config": path}).sampling_defaults.stop == ("x",)
    monkeypatch.setenv("MERGESERVE_DEFAULTS", '{"top_p": 0.5}')
    assert load_settings({"config": path}).sampling_defaults.top_p == 0.5
    assert load_settings({"defaults": '{"temperature": 0}'}).sampling_defaults.temperature == 0


def test_demo_is_greedy_unless_told_otherwise() -> None:
    """The demo's model answers greedily; defaults that are given take the place of that."""
    assert load_settings({"demo": True}).sampling_defaults.temperature == 0
    assert load_settings({}).sampling_defaults.temperature is None
    given = load_settings({"demo": True, "defaults": '{"top_p": 0.5}'}).sampling_defaults
    assert (given.temperature, given.top_p) == (None, 0.5)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("temperature=0", "--defaults: expected JSON, such as '{\"temperature\": 0}'"),
        ('{"temperature": 9}', "--defaults: temperature: .*less than or equal to 2 .got 9"),
        ('{"temprature": 0}', "--defaults: temprature: Extra inputs are not permitted"),
    ],
)
def test_wrong_defaults_are_named(text: str, wanted: str) -> None:
    """Defaults that are no JSON, an unknown one and one out of bounds are refused by name."""
    assert re.search(wanted, reasons(defaults=text))
