"""How the options of `mergeserve serve` are grouped and named in help texts."""

from typing import Final

METAVARS: Final = {
    "model": "MODEL",
    "config": "FILE",
    "source": "NAME=MODEL[,parent=NAME]",
    "source_dir": "DIR",
    "presets": "FILE",
    "host": "ADDRESS",
    "dtype": "DTYPE",
    "overrides": "LEVEL",
    "device": "DEVICE",
    "database_url": "URL",
    "api_key": "KEY",
    "admin_key": "KEY",
    "api_key_file": "FILE",
    "admin_key_file": "FILE",
    "served_model_name": "NAME",
    "chat_template": "FILE",
    "defaults": "JSON",
    "variant_memory": "GIB",
    "dense_cache": "GIB",
    "kv_memory": "GIB",
    "request_timeout": "S",
    "fidelity_sample": "SHARE",
    "shutdown_timeout": "S",
}

GROUPS: Final = {
    "what is served": (
        *("model", "demo", "source", "source_dir", "presets", "database_url"),
        *("dtype", "device", "served_model_name", "chat_template", "allow_base_mismatch"),
    ),
    "where, and for whom": (
        *("config", "host", "port", "api_key", "admin_key", "api_key_file", "admin_key_file"),
        *("insecure_bind", "metrics_open"),
    ),
    "what callers may do": ("overrides", "inline_recipes", "serve_sources", "list_ensembles"),
    "how much": (
        *("max_rows", "max_model_len", "max_queued", "kv_memory", "variant_memory", "num_threads"),
        *("dense_cache",),
        *("request_timeout", "shutdown_timeout", "revisions_kept"),
    ),
}
"""Settings by the title of their group; a setting that is in none stands under `OTHER`."""

OTHER: Final = "more"

SERVE: Final = frozenset(
    {
        *("demo", "source", "source_dir", "presets", "dtype", "device"),
        *("config", "host", "port", "api_key", "admin_key"),
        *("overrides",),
        *("max_rows", "max_model_len", "kv_memory", "variant_memory"),
    }
)
"""Settings that `mergeserve serve --help` tells of; --help-all tells of all."""

EXPORT: Final = frozenset(
    {
        *("model", "demo", "source", "presets", "database_url", "dtype"),
        *("config", "api_key", "admin_key"),
    }
)
"""Those that an export may need."""
