"""The exact text given to a model: its chat template, or plain, ending in the opened `<think>`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from probing.choices import THINK_END
from probing.errors import ConfigError
from probing.settings import unknown
from rl.tasks.base import TASKS, load_task, speaker

# `pocket` is a task with a prompt of its own, for a model that knows nothing else.
Template = Literal["auto", "pocket", "chat", "chat-no-think", "plain"]
TEMPLATES: tuple[Template, ...] = get_args(Template)
THINK_START = "<think>\n"
MATHS_INSTRUCTION = (
    "Please reason step by step, and put your final answer within \\boxed{}."  # R1's model card
)


@dataclass(frozen=True)
class Family:
    """What a chat template needs to let the model think; known by a text in the template.

    Args:
        name: of the models.
        mark: a text that only such templates hold.
        options: for `apply_chat_template`.
        refused: why `chat` cannot be right, and what to do; empty where it can.
    """

    name: str
    mark: str
    options: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


# Looked through in this order. What is not here needs no option: the newer R1 distillations and
# QwQ open `<think>` in the template itself, the older ones leave it to the model.
FAMILIES = (
    Family(
        "gpt-oss",
        "<|channel|>",
        refused="it reasons in a channel, not in <think>: use --template chat-no-think and "
        "--think-end '<|channel|>final<|message|>'",
    ),
    Family(
        "Magistral",
        "[THINK]",
        refused="it reasons in [THINK] … [/THINK]: use --template chat-no-think and "
        "--think-end '[/THINK]'",
    ),
    Family("Qwen3, SmolLM3", "enable_thinking", {"enable_thinking": True}),
    Family("DeepSeek V3.1, Granite 3", "thinking", {"thinking": True}),
)


def family(tokenizer: Any) -> Family | None:
    """The family that the chat template shows; None for one without peculiarities."""
    template = _chat_template(tokenizer)
    return next((entry for entry in FAMILIES if entry.mark in template), None)


def choose_template(tokenizer: Any, template: str = "auto") -> str:
    """The template that `auto` stands for; others are checked and returned.

    A model that knows one task alone gets that task's, by its name; one with a chat template
    gets `chat`.

    Raises:
        ConfigError: unknown, or `chat` for a tokenizer without a chat template.
    """
    if template not in TEMPLATES:
        raise ConfigError(unknown("template", template, TEMPLATES))
    if template == "auto":
        return speaker(tokenizer) or ("chat" if _chat_template(tokenizer) else "plain")
    if template.startswith("chat") and not _chat_template(tokenizer):
        raise ConfigError(
            f"template {template} asked for, but the tokenizer has no chat template: use plain"
        )
    return template


def render_prompt(
    tokenizer: Any,
    question: str,
    template: str = "auto",
    *,
    think_start: str = THINK_START,
    instruction: str = "",
) -> str:
    """The text that the model continues.

    Args:
        tokenizer: of the model.
        question: as the question set has it.
        template: the name of a task: its own prompt (`rl.tasks.base.Task.prompt`); `chat`: the
            chat template with its generation prompt, and `think_start` unless it opens one
            itself; `chat-no-think`: the chat template alone; `plain`: the question, a newline,
            `think_start`; `auto`: see `choose_template`.
        think_start: what opens the reasoning.
        instruction: stands after the question, on a line of its own; a model that knows one task
            alone, and no such sentence, gets none.

    Raises:
        ConfigError: see `choose_template`; or a template that does not let the model think.
    """
    chosen = choose_template(tokenizer, template)
    if chosen in TASKS:
        return load_task(TASKS[chosen]).prompt(question, think_start)
    asked = f"{question}\n{instruction}" if instruction else question
    if chosen == "plain":
        return f"{asked}\n{think_start}"
    turns = [{"role": "user", "content": asked}]
    return _chat(tokenizer, turns, think_start if chosen == "chat" else "")


def render_messages(
    tokenizer: Any, messages: Sequence[dict[str, str]], think_start: str = THINK_START
) -> str:
    """The text that the model continues, of several messages; of one as `render_prompt` makes it.

    Args:
        tokenizer: of the model.
        messages: each with `role` and `content`; the last is the user's.
        think_start: what opens the reasoning.

    Raises:
        ConfigError: see `render_prompt`.
    """
    template = choose_template(tokenizer)
    if template == "chat" and not ((known := family(tokenizer)) and known.refused):
        return _chat(tokenizer, list(messages), think_start)
    if template == "chat":  # it reasons in marks of its own, which the caller knows
        return _chat(tokenizer, list(messages), "") + think_start
    asked = "\n".join(message["content"] for message in messages)
    return render_prompt(tokenizer, asked, template, think_start=think_start)


def _chat(tokenizer: Any, turns: list[dict[str, str]], think_start: str) -> str:
    known = family(tokenizer)
    if known and known.refused and think_start:
        raise ConfigError(f"the chat template is that of {known.name}: {known.refused}")
    text: str = tokenizer.apply_chat_template(
        turns,
        tokenize=False,
        add_generation_prompt=True,
        **(known.options if known else {}),
    )
    bare = think_start.strip()
    if not think_start or text.rstrip().endswith(bare):
        return text
    if text.rstrip().endswith(THINK_END):
        raise ConfigError(
            f"the chat template ends in {THINK_END}: it turns the reasoning off; "
            "use --template chat-no-think, or a model that thinks"
        )
    return text + think_start


def _chat_template(tokenizer: Any) -> str:
    """The text of the chat template(s); empty where there is none."""
    template = getattr(tokenizer, "chat_template", None) or ""
    if isinstance(template, dict):  # several, by name
        return "\n".join(template.values())
    return str(template)
