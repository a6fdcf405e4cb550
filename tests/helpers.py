"""What several tests share: a tokenizer, trace files, a saved tiny model. All offline."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from families import tiny
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from probing.answers.context import PreparedTrace

TEXT = "Wait, let me check the sum. So 12 + 7 = 19. But is it?\n</think> \\boxed{19}"


def byte_tokenizer(special: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with offsets, trained on one line; with BOS and EOS if asked."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=alphabet,
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    core.train_from_iterator([TEXT] * 4, trainer)
    if special:
        from tokenizers.processors import TemplateProcessing

        core.post_processor = TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def trace_line(number: int, steps: int = 6, **changes: object) -> dict:
    """A trace with alternating words of two kinds, labelled in a way that varies by number."""
    rng = random.Random(number)
    response, spans = "", []
    for step in range(steps):
        essential = rng.random() < 0.5 if step > 1 else step == number % 2
        text = f"So {rng.randint(2, 99)} + {rng.randint(2, 99)} is it.\n"
        text = text if essential else f"Wait, let me check {rng.randint(2, 99)} again.\n"
        label = "essential" if essential else "redundant"
        spans.append({"start": len(response), "end": len(response) + len(text), "label": label})
        response += text
    response += f"</think>\n\nThe sum = {number}, \\boxed{{{number}}}"
    line = {
        "id": f"t/{number}",
        "prompt": f"Add {number}.\n<think>\n",
        "response": response,
        "problem": f"Add {number}.",
        "correct": True,
        "steps": spans,
    }
    return {**line, **changes}


def write_lines(path: Path, lines: list) -> Path:
    """A JSONL file; texts are written as they are."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def trace_file(path: Path, count: int = 8) -> Path:
    """A file of `count` labelled traces of different lengths."""
    return write_lines(path, [trace_line(n, steps=4 + n % 4) for n in range(count)])


def text_line(id: str, response: str, **more: Any) -> dict:
    """A correct trace that is nothing but its response."""
    return {"id": id, "prompt": f"Q{id}", "response": response, "correct": True, **more}


def kfh(*words: Any) -> Any:
    """A command, called in this process; what typer's runner gives."""
    from typer.testing import CliRunner

    from kfh.cli import app

    return CliRunner().invoke(app, [str(word) for word in words])


def said(done: Any) -> str:
    """What a command printed, and the error that it ended with."""
    return f"{done.output} {done.exception or ''}"


def model_folder(path: Path, family: str = "llama", **changes: object) -> Path:
    """A tiny random model saved with a tokenizer, as `--model` takes it."""
    tokenizer = byte_tokenizer()
    tiny(family, vocab_size=len(tokenizer), **changes).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def prepared(number: int, context: int, length: int) -> PreparedTrace:
    """A random trace of three steps; the last two tokens of its marker are forced."""
    ids = np.random.default_rng(number).integers(3, 101, length)
    return PreparedTrace(
        id=str(number),
        ids=ids,
        context=context,
        spans=np.array([[5, 12], [12, 20], [20, context - 1]]),
        counted=np.arange(length) > context + 1,
        behind=context + 2,
        group=str(number),
        prompt_tokens=5,
        answer=context + 2,
        scores=np.array([1.0, 2.0, 0.5]),
        labels=("essential", None, "redundant"),
    )


def drawn_texts(figure: Figure) -> list[tuple[Text, Bbox]]:
    """Every text that a figure really draws, with its box in pixels (of an annotation: its text).

    What is only declared, such as ticks outside the limits, is left out.
    """
    drawn: list[Text] = []
    original = Text.draw

    def record(self: Text, renderer: Any, *args: Any, **options: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            drawn.append(self)
        original(self, renderer, *args, **options)

    canvas = FigureCanvasAgg(figure)
    with patch.object(Text, "draw", record):
        canvas.draw()
    renderer = canvas.get_renderer()
    return [(text, Text.get_window_extent(text, renderer)) for text in dict.fromkeys(drawn)]


def overlapping_texts(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts of a figure whose boxes overlap by more than a pixel."""
    found = [(text.get_text(), box.padded(-0.5)) for text, box in drawn_texts(figure)]
    return [
        (one, other)
        for i, (one, box) in enumerate(found)
        for other, second in found[:i]
        if box.overlaps(second)
    ]


def check_texts(figure: Figure) -> None:
    """A figure's texts: there are some, none over another, none below 7 points."""
    texts = drawn_texts(figure)
    assert texts, "a figure without a text"
    assert overlapping_texts(figure) == []
    small = {text.get_text(): text.get_fontsize() for text, _ in texts if text.get_fontsize() < 7}
    assert not small
