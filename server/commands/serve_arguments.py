"""The command line of `mergeserve serve`."""

from server.commands.parser import CommandParser, Commands, HelpAll


def add_serve_command(commands: Commands) -> None:
    """Add `serve`."""
    commands.add_parser(
        "serve",
        help="serve a base model and merges of it",
        about="Serve a base model, its adapters and merges of them behind the OpenAI API.",
        example="mergeserve serve --demo\n"
        "mergeserve serve /models/base --source math=/adapters/math --source code=/adapters/code",
        usage="%(prog)s [MODEL] [options]",
        fill=_fill,
    )


def _fill(serve: CommandParser) -> None:
    from server.commands.arguments import EPILOG, add_settings
    from server.commands.early import check_serve
    from server.commands.option_groups import SERVE

    serve.set_defaults(check=check_serve)
    hidden = add_settings(serve, shown=SERVE)
    serve.add_argument("--help-all", action=HelpAll, hidden=hidden)
    serve.epilog = f"{EPILOG} `mergeserve serve --help-all` shows every option."
