"""The `mmrl` command. One file a verb; nothing heavy is imported before a verb runs."""

from __future__ import annotations

import typer

from mmrl.cli import ablate, bench, boundary, config, cost, data, demo, evaluate, importer, methods, pack, predict, report, status, train

app = typer.Typer(
    name="mmrl",
    help="Teach CLIP new classes from a handful of images, and keep it good at classes it has never seen.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("bench")(bench.bench)
app.command("ablate")(ablate.ablate)
app.command("cost")(cost.cost)
app.command("methods")(methods.methods)
app.command("demo")(demo.demo)
app.command("status")(status.status)
app.command("report")(report.report)
app.command("pack")(pack.pack)
app.command("import-checkpoint")(importer.import_checkpoint)
app.add_typer(data.app, name="data")
app.add_typer(config.app, name="config")


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:
        from mmrl.version import __version__

        typer.echo(__version__)
        raise typer.Exit()


def run() -> None:
    """Entry point: a user's mistake is one message on stderr, and 2; a failure is one message, and 1."""
    boundary.guarded(app)


if __name__ == "__main__":
    run()
