"""The command `kfh`: thin commands over `probing` and `rl`, which they import when called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kfh.options import ablate, plot, report, sample_size, stability

app = typer.Typer(
    help="Key-Focus Heads: find the attention heads that look back at the reasoning steps that "
    "mattered, show them, and train with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(plot, name="plot")
app.command()(ablate)
app.command()(stability)
app.command(name="sample-size")(sample_size)
app.command()(report)

SkipBad = Annotated[bool, typer.Option(help="Leave bad lines out (counted) instead of stopping.")]
ThinkEnd = Annotated[str, typer.Option(help="The text that ends the reasoning.")]
MinChars = Annotated[int, typer.Option(help="Steps shorter than this are merged (attnpo).")]


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    """Options of the command itself."""
    if version:
        from kfh import __version__

        typer.echo(f"kfh {__version__}")
        raise typer.Exit


@app.command()
def segment(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Trace file (JSONL, .gz too).")],
    out: Annotated[Path, typer.Option(help="Trace file to write.")],
    segmenter: Annotated[
        str, typer.Option(help="attnpo, line, sentence, paragraph, or a phrase file (*.json).")
    ] = "attnpo",
    min_chars: MinChars = 80,
    skip_bad: SkipBad = False,
    think_end: ThinkEnd = "</think>",
) -> None:
    """Cut the reasoning of each trace into steps that tile it."""
    from kfh.commands.probe import run_segment

    run_segment(source, out, segmenter, min_chars, skip_bad, think_end)


@app.command()
def probe(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    model: Annotated[
        str | None, typer.Option(help="Hub id, folder or .gguf file; default: the pocket model.")
    ] = None,
    traces: Annotated[
        Path | None, typer.Option(help="Labelled trace file (JSONL, .gz too).")
    ] = None,
    segmenter: Annotated[
        str,
        typer.Option(help="given: the file's steps; or attnpo, line, sentence, paragraph, *.json."),
    ] = "given",
    min_chars: MinChars = 80,
    labels: Annotated[str, typer.Option(help="steps: the file's own; or a label file.")] = "steps",
    keep: Annotated[
        str, typer.Option(help="correct: leave wrong answers out; or all.")
    ] = "correct",
    skip_bad: SkipBad = False,
    think_end: ThinkEnd = "</think>",
    answer: Annotated[str, typer.Option(help="Answer tokens: all, values or boxed.")] = "all",
    select: Annotated[str, typer.Option(help="top or greedy.")] = "top",
    top: Annotated[int, typer.Option(help="Number of heads in the set.")] = 3,
    by: Annotated[str, typer.Option(help="sra, balanced or gating.")] = "sra",
    null: Annotated[str, typer.Option(help="Labels of the null: shuffle or rotate.")] = "shuffle",
    permutations: Annotated[int, typer.Option(help="Labellings of the null.")] = 1000,
    backend: Annotated[
        str, typer.Option(help="transformers or transformer-lens.")
    ] = "transformers",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    batch_tokens: Annotated[int, typer.Option(help="Tokens in a forward pass.")] = 8192,
    resume: Annotated[bool, typer.Option(help="Go on from the traces scored in --out.")] = True,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the model's.")] = False,
    seed: Annotated[int, typer.Option(help="Of bootstrap and permutations.")] = 0,
) -> None:
    """Rank the attention heads of a model on labelled traces and save the head set."""
    settings = dict(locals())  # the arguments, by the names that ProbeConfig gives them
    from kfh.commands.probe import run_probe

    run_probe(**settings)


@app.command()
def rollout(
    data: Annotated[
        list[str],
        typer.Option(help="Question set, repeatable: as for kfh eval."),
    ],
    out: Annotated[Path, typer.Option(help="Trace file to write (JSONL, .gz too).")],
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder; default: the pocket model.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Responses a problem.")] = 8,
    keep: Annotated[
        str, typer.Option(help="correct responses, or all that ended by themselves.")
    ] = "correct",
    easy: Annotated[
        float, typer.Option(help="Keep problems of which this share of samples is correct.")
    ] = 0.9,
    per_problem: Annotated[
        int | None, typer.Option(help="At most so many traces of a problem; default all.")
    ] = None,
    segmenter: Annotated[
        str, typer.Option(help="attnpo, line, sentence, paragraph, *.json; none: cut no steps.")
    ] = "attnpo",
    min_chars: MinChars = 80,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(help="Share of the chances that is sampled from.")] = 0.95,
    max_tokens: Annotated[int, typer.Option(help="Longest response.")] = 4096,
    limit: Annotated[int | None, typer.Option(help="Questions of each set; default all.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampling and of generated questions.")] = 0,
    backend: Annotated[
        str, typer.Option(help="transformers, vllm, or openai: any compatible endpoint.")
    ] = "transformers",
    base_url: Annotated[
        str | None, typer.Option(help="Of the endpoint; its key is in OPENAI_API_KEY.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Rendered prompts to the endpoint's completions.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Hub id or folder, to render an endpoint's prompts.")
    ] = None,
    template: Annotated[
        str, typer.Option(help="auto, pocket, chat, chat-no-think or plain.")
    ] = "auto",
    think_end: ThinkEnd = "</think>",
    batch: Annotated[int, typer.Option(help="Responses, or requests, at a time.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    resume: Annotated[bool, typer.Option(help="Go on with the responses beside --out.")] = True,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the model's.")] = False,
) -> None:
    """Sample and verify responses; keep those to problems solved nearly always, as traces."""
    settings = dict(locals())
    from kfh.commands.rollout import run_rollout

    run_rollout(**settings)


@app.command()
def label(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[A B ...]", help="With --compare: label files, or `steps`."),
    ] = None,
    by: Annotated[str, typer.Option(help="ablation, rules or judges.")] = "ablation",
    compare: Annotated[
        bool, typer.Option("--compare", help="Do not label: say how far labellings agree.")
    ] = False,
    traces: Annotated[Path | None, typer.Option(help="Trace file (JSONL, .gz too).")] = None,
    out: Annotated[Path | None, typer.Option(help="Label file to write.")] = None,
    segmenter: Annotated[
        str,
        typer.Option(help="given: the file's steps; or attnpo, line, sentence, paragraph, *.json."),
    ] = "given",
    min_chars: MinChars = 80,
    skip_bad: SkipBad = False,
    think_end: ThinkEnd = "</think>",
    model: Annotated[
        str | None, typer.Option(help="Ablation: hub id, folder or .gguf; default: pocket.")
    ] = None,
    answer: Annotated[
        str, typer.Option(help="Ablation: answer tokens that count: all, values or boxed.")
    ] = "all",
    answer_limit: Annotated[
        int, typer.Option(help="Ablation: the first so many answer tokens; 0: all.")
    ] = 32,
    high: Annotated[float, typer.Option(help="Ablation: essential from this drop on, nats.")] = 0.5,
    low: Annotated[float, typer.Option(help="Ablation: redundant up to this drop, nats.")] = 0.01,
    deletion: Annotated[
        bool, typer.Option("--deletion", help="Ablation: delete each step from the text as well.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    resume: Annotated[bool, typer.Option(help="Ablation: go on with the labels in --out.")] = True,
    judges: Annotated[Path | None, typer.Option(help="Judges: YAML file of the judges.")] = None,
    consensus: Annotated[str, typer.Option(help="Judges: unanimous or majority.")] = "unanimous",
    concurrency: Annotated[int, typer.Option(help="Judges: requests at a time.")] = 8,
    rate: Annotated[float, typer.Option(help="Judges: requests a second; 0: no limit.")] = 0.0,
    cache: Annotated[Path | None, typer.Option(help="Judges: folder of their answers.")] = None,
    limit: Annotated[int | None, typer.Option(help="Judges: traces to label; default all.")] = None,
    show: Annotated[int, typer.Option(help="Compare: steps to print of those that differ.")] = 10,
) -> None:
    """Label the steps of traces by cause, by rules or by judges; or compare labellings."""
    from kfh.commands.label import check_label_options, needed, run_ablation, run_compare, run_rules
    from probing.traces.source import StepSource

    check_label_options(by, compare, files)
    if compare:
        cut = StepSource(traces, segmenter, min_chars, skip_bad, think_end) if traces else None
        run_compare(files or [], cut, show)
        return
    path, target = needed(traces, "--traces"), needed(out, "--out")
    source = StepSource(path, segmenter, min_chars, skip_bad, think_end)
    if by == "judges":
        from kfh.commands.label import run_judges

        panel = needed(judges, "--judges: the file that names them")
        run_judges(source, panel, target, consensus, concurrency, rate, cache, limit)  # type: ignore[arg-type]
    elif by == "rules":
        run_rules(source, target)
    else:
        from probing.labelling.cause import CauseConfig

        config = CauseConfig(answer, answer_limit, high, low, deletion)
        run_ablation(source, target, config, model, device, dtype, resume)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    method: Annotated[
        str | None,
        typer.Option(help="attnpo, its ablations, oracle, grpo, rloo, tlmre, laser, dler."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="YAML file or shipped recipe; default: the method's.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder; default: the recipe's.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Head file of `kfh probe`, or a shipped head set.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="FILE.jsonl, hub:OWNER/NAME, rg:TASK or pocket:N.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of order, sampling and random heads.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, any setting; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
) -> None:
    """Train with step-level credit from a head set, or with a baseline."""
    from kfh.commands.train import run_train

    options = {"method": method, "model": model, "heads": heads, "data": data, "seed": seed}
    result = run_train(out, recipe, set_ or [], resume, **options)
    if result["status"] == "interrupted":
        raise KeyboardInterrupt


@app.command(name="eval")
def evaluate(
    data: Annotated[
        list[str],
        typer.Option(
            help="Question set, repeatable: FILE.jsonl, a folder of them, "
            "hub:owner/name@config:split, rg:TASK, pocket:N@SEED, pocket-held-out:N."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder; default: the pocket model.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Responses a question.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(help="Share of the chances that is sampled from.")] = 0.95,
    max_tokens: Annotated[int, typer.Option(help="Longest response.")] = 4096,
    limit: Annotated[int | None, typer.Option(help="Questions of each set; default all.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampling and of generated questions.")] = 0,
    preset: Annotated[
        str | None, typer.Option(help="paper: its samples a question, by benchmark.")
    ] = None,
    budgets: Annotated[
        str, typer.Option(help="Accuracy within so many tokens, such as 2048,4096.")
    ] = "",
    base: Annotated[
        Path | None, typer.Option(help="A former evaluation (folder), to compute AES against.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="transformers, vllm, or openai: any compatible endpoint.")
    ] = "transformers",
    base_url: Annotated[
        str | None, typer.Option(help="Of the endpoint; its key is in OPENAI_API_KEY.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Rendered prompts to the endpoint's completions.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Hub id or folder, to render an endpoint's prompts.")
    ] = None,
    template: Annotated[
        str, typer.Option(help="auto, pocket, chat, chat-no-think or plain.")
    ] = "auto",
    think_end: Annotated[
        str, typer.Option(help="The text that ends the reasoning; empty: there is none.")
    ] = "</think>",
    batch: Annotated[int, typer.Option(help="Responses, or requests, at a time.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    resume: Annotated[bool, typer.Option(help="Go on with the responses in --out.")] = True,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the model's.")] = False,
) -> None:
    """Evaluate a model on question sets: accuracy, length, budgets, phrases, AES."""
    settings = dict(locals())  # the arguments, by the names that EvalConfig gives them
    from kfh.commands.evaluate import run_eval

    run_eval(**settings)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/demo"),
) -> None:
    """Probe the embedded pocket model, draw a trace, train with its heads, and compare."""
    from kfh.commands.probe import run_demo

    run_demo(out)


def main() -> None:
    """Entry point: errors that the user can mend are printed without a traceback."""
    from probing.errors import KfhError

    try:
        app()
    except KfhError as error:
        typer.secho(f"kfh: {error}", fg="red", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.secho("kfh: interrupted; the same command goes on from here.", fg="yellow", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
