"""The `mmrl` command. One file a verb; nothing heavy is imported before a verb runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from mmrl.cli import (
    ablate,
    advise,
    bench,
    calibrate,
    compare,
    config,
    cost,
    data,
    demo,
    evaluate,
    export,
    hints,
    importer,
    methods,
    pack,
    predict,
    push,
    report,
    serve,
    status,
    train,
)
from mmrl.cli import app as app_verb
from mmrl.console import boundary
from mmrl.errors import UsageError


class Anywhere(TyperGroup):
    """Takes --plugin behind the verb, too, where everybody writes it, and says so when it is interrupted, which Typer does not. An option
    that is not known is answered with what there is."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            boundary.interrupted()
        except Exception as error:
            if not hints.is_no_such_option(error):
                raise
            raise hints.no_such_option(error) from error

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own, rest, words = [], [], iter(args)
        for word in words:
            if word == "--":
                rest += [word, *words]
            elif word == "--plugin":
                if (file := next(words, None)) is None:
                    raise UsageError("--plugin names no file; give a Python file behind it.")
                own += [word, file]
            else:
                (own if word.startswith("--plugin=") else rest).append(word)
        return super().parse_args(ctx, [*own, *rest])


app = typer.Typer(
    name="mmrl",
    cls=Anywhere,
    help="Teach CLIP new classes from a handful of images, and keep it good at classes it has never seen.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("calibrate")(calibrate.calibrate)
app.command("predict")(predict.predict)
app.command("serve")(serve.serve)
app.command("advise")(advise.advise)
app.command("bench")(bench.bench)
app.command("ablate")(ablate.ablate)
app.command("compare")(compare.compare)
app.command("cost")(cost.cost)
app.command("methods")(methods.methods)
app.command("demo")(demo.demo)
app.command("app")(app_verb.app)
app.command("status")(status.status)
app.command("report")(report.report)
app.command("export")(export.export)
app.command("pack")(pack.pack)
app.command("push")(push.push)
app.command("import-checkpoint")(importer.import_checkpoint)
app.add_typer(data.app, name="data")
app.add_typer(config.app, name="config")


@app.callback(invoke_without_command=True)
def _before(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
    plugin: list[Path] = typer.Option(
        [], "--plugin", metavar="FILE.py", help="Python file that adds methods or data sets, before or behind the verb; may be repeated."
    ),
) -> None:
    if version:
        from mmrl.version import __version__

        typer.echo(__version__)
        raise typer.Exit()
    if plugin:
        from mmrl import plugins

        plugins.add(plugin)


def run() -> None:
    """Entry point: a user's mistake is one message on stderr, and 2; a failure is one message, and 1."""
    boundary.guarded(app)


if __name__ == "__main__":
    run()
