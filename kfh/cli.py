"""The command `kfh`: the list of commands; each is loaded when it is called.

`kfh --help` loads none of them, and no command loads torch before its options are read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer import TyperException
from typer.core import TyperGroup


class Command(NamedTuple):
    """A command: its name, the function (or typer app) behind it, its panel, and one line.

    `home` is `module:name` in `kfh.commands`, or `room.module:name` in another room of `kfh`.
    """

    name: str
    home: str
    panel: str
    help: str


START, TRACES, HEADS = "Start", "1 · Traces with labels", "2 · Heads"
TRAINING, REPORT = "3 · Training", "4 · Report"
# In the order of the work.
COMMANDS = {
    command.name: command
    for command in (
        Command("demo", "demo:demo", START, "Probe the pocket model, draw, train, compare."),
        Command("study", "study.job:study", START, "A chain of commands to a whole result."),
        Command("import", "bring.imports:bring", TRACES, "Data sets and logs of others to traces."),
        Command("rollout", "rollout:rollout", TRACES, "Sample and verify responses; keep traces."),
        Command("segment", "probe:segment", TRACES, "Cut the reasoning of each trace into steps."),
        Command("label", "label:label", TRACES, "Label steps by cause, rules or judges; compare."),
        Command("estimate", "bring.estimate:estimate", HEADS, "What a probe will take."),
        Command("probe", "probe:probe", HEADS, "Rank the attention heads; save the head set."),
        Command("heads", "heads:heads", HEADS, "What else are these heads? Show, import, compare."),
        Command("plot", "show:plot", HEADS, "Draw what folders hold; traces; the paper's page."),
        Command("ablate", "ablate:ablate", HEADS, "Remove steps or change heads; answer again."),
        Command("stability", "heads:stability", HEADS, "Are the heads of probes the same?"),
        Command("sample-size", "heads:sample_size", HEADS, "How many traces are enough?"),
        Command("sft", "train:sft", TRAINING, "Teach a model the form of reasoning by traces."),
        Command("shrink", "train:shrink", TRAINING, "Leave out the tokens a task does not use."),
        Command("train", "train:train", TRAINING, "Train with step-level credit, or a baseline."),
        Command("eval", "evaluate:evaluate", TRAINING, "Accuracy and length on question sets."),
        Command("compare", "compare:compare", TRAINING, "Methods × seeds on one model and task."),
        Command("export", "bring.exports:bring_back", REPORT, "Labels and scores for others."),
        Command("report", "show:report", REPORT, "One page of what was found, with its caveats."),
    )
}
# What goes on from what is there, called again after an interruption; a training run is asked to.
GO_ON = {"rollout", "label", "probe", "heads", "ablate", "eval", "compare", "study"}


class Commands(TyperGroup):
    """The commands by name; the one that is called is loaded in place of its line."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Load the command that the arguments name."""
        if args and args[0] in COMMANDS:
            self.add_command(load(args[0]), args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Call the command; say what was meant by a mistyped option, and how to go on."""
        try:
            return super().invoke(ctx)
        except TyperException as error:
            if near := getattr(error, "possibilities", None):
                error.message += f"; did you mean {' or '.join(near)}?"
                error.possibilities = None  # type: ignore[attr-defined]  # they would follow
            raise
        except KeyboardInterrupt as stop:  # typer would leave without a word
            on = "; the same command goes on from here" if ctx.invoked_subcommand in GO_ON else ""
            typer.secho(f"kfh: {str(stop) or f'interrupted{on}'}", fg="yellow", err=True)
            raise typer.Exit(130) from stop


def load(name: str) -> Any:
    """The command of this name with all its options."""
    module, _, attribute = COMMANDS[name].home.partition(":")
    room = "" if "." in module else "commands."
    command = getattr(import_module(f"kfh.{room}{module}"), attribute)
    if isinstance(command, typer.Typer):
        group = typer.main.get_command(command)
        group.name = name
        return group
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name)(command)
    return typer.main.get_command(alone)


app = typer.Typer(
    cls=Commands,
    help="Key-Focus Heads: find the attention heads that look back at the reasoning steps that "
    "mattered, show them, and train with them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _command in COMMANDS.values():
    app.command(_command.name, help=_command.help, rich_help_panel=_command.panel)(lambda: None)


def whole() -> Any:
    """The command with all its commands loaded, as a reference lists them."""
    group: Any = typer.main.get_command(app)
    for name in COMMANDS:
        group.add_command(load(name), name)
    return group


@app.callback(invoke_without_command=True)
def version(
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    """Options of the command itself."""
    if version:
        from kfh import __version__

        typer.echo(f"kfh {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: errors that the user can mend are printed without a traceback."""
    from probing.errors import KfhError

    if "" not in sys.path:  # modules of the user's, in the folder that the command runs in
        sys.path.append("")
    try:
        app(arguments)
    except KfhError as error:
        typer.secho(f"kfh: {' '.join(str(error).split())}", fg="red", err=True)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not (said := out_of_memory(error)):
            raise
        typer.secho(f"kfh: {said}", fg="red", err=True)
        sys.exit(1)
    except OSError as error:  # a missing file, a full disk, a folder that may not be written
        typer.secho(f"kfh: {told(error)}", fg="red", err=True)
        sys.exit(1)


def out_of_memory(error: BaseException) -> str:
    """What to set where memory was too small; empty for any other error."""
    from probing.errors import memory_lacking

    if not (where := memory_lacking(error)):
        return ""
    return (
        f"{where} is too small: lower --batch-tokens (or --batch; in training "
        "per_device_train_batch_size and score_rows), load with --dtype bfloat16, or spread the "
        f"model with --device-map auto. What is finished is kept. {str(error).split('. ')[0]}"
    ).rstrip()


def told(error: OSError) -> str:
    """What the system says, with the path it says it of."""
    paths = " → ".join(str(p) for p in (error.filename, error.filename2) if p is not None)
    return ": ".join(part for part in (paths, error.strerror or str(error)) if part)


if __name__ == "__main__":
    main()
