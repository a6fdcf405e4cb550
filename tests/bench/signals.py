"""What else could score a step: signals and forms of γ held against true labels.

    python tests/bench/signals.py [--problems 40] [--gradients 12] [--cause 0]

Groups of responses of the pocket model to held-out problems, their advantages by TLMRE. Constants
are chosen on the first half of the problems, figures are of the second, with 95 % intervals over
its problems. Prints Markdown:
1. AUC of each signal against redundant steps, which stand last: of derivations, of checks that
   correct, of checks that confirm a hard product (no label, but they earn their tokens).
2. Mean γ by token in correct responses with A > 0, by kind of step, at p = 1 and at the real p.
3. Agreement with the oracle's γ by token, in all responses: correlation, mean absolute difference,
   and the cosine between the gradients of Σ γ A log π, problem by problem.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import rankdata

from probing.answers.context import CauseTrace
from probing.answers.hiding import StepHiding
from probing.attention.scores import pad_batch, step_scores
from probing.files.headers import data_path
from probing.headset import HeadSet
from probing.intervals import Estimate, estimate_mean, estimate_rate
from probing.models.load import load_model, load_tokenizer
from probing.traces.file import Step
from probing.traces.tokens import EncodedTrace
from probing.types.formulas import focused, future_influence, windowed_distance
from rl.attnpo.completions import Batch, Cutter, Outcomes, encoded
from rl.attnpo.credit import credit
from rl.attnpo.rescale import Rescaling
from rl.attnpo.rewards import group_advantages
from rl.chains.reading import Reading
from rl.pocket.decode import Decoding, respond
from rl.pocket.parse import read
from rl.pocket.tokens import EOS, vocabulary
from rl.pocket.traces import held_out_problems
from rl.signals import ratios
from rl.signals.evidence import Evidence, Witness
from rl.signals.plain import label_scores, recency_scores

GROUP = 8
KINDS = ("redundant", "derivation", "corrective", "confirming", "recap")
TOP = 0.2  # share of tokens of arXiv 2506.01939
STEP = 10_000  # of training: all schedules are open
FOR_EACH = Rescaling(alpha=0)  # the recipe's constants on the pocket model


@dataclass
class Study:
    """Responses to problems, and what signals need of them."""

    batch: Batch
    readings: list[Reading]
    problem: list[int]
    traces: list[EncodedTrace]
    seen: list[Evidence]  # by the head set
    by_head: list[np.ndarray] = field(default_factory=list)  # log S/S_base (head, step)
    rhythm: list[np.ndarray] = field(default_factory=list)  # (2, token of q ⊕ o): WAAD, FAI
    drops: list[np.ndarray] = field(default_factory=list)  # nats a step, where asked for

    def kinds(self, row: int) -> list[str]:
        """Of each step of a response; nothing is said of one that cannot be read."""
        reading = self.readings[row]
        if reading.reasons or len(reading.steps) != len(self.seen[row].spans):
            return ["unread"] * len(self.seen[row].spans)
        named = {"derivation": "derivation", "correction": "corrective"}
        return [
            step.label
            if step.label == "redundant"
            else named[step.kind]
            if step.label
            else "confirming"
            for step in reading.steps
        ]  # type: ignore[misc]


def sampled(model: Any, tokenizer: Any, count: int, seed: int) -> Study:
    """Groups with their advantages; what the parser cannot read stays in its group."""
    problems = held_out_problems(count, seed)
    told = [
        (n, p, r)
        for s in range(GROUP)
        for n, (p, r) in enumerate(
            zip(
                problems,
                respond(
                    model, tokenizer, problems, Decoding(1.0, seed=s, batch=160, max_new_tokens=320)
                ),
                strict=True,
            )
        )
    ]
    told.sort(key=lambda each: each[0])
    end = vocabulary()[EOS]
    cutter = Cutter.like(HeadSet.load("pocket"), tokenizer, [end])
    responses = [cutter([*tokenizer(text)["input_ids"], end]) for _, _, text in told]
    readings = [read(problem, text) for _, problem, text in told]
    numbers = torch.tensor([n for n, _, _ in told])
    verdicts = torch.tensor([float(reading.correct) for reading in readings])
    complete = torch.tensor([each.complete for each in responses])
    lengths = torch.tensor([each.length for each in responses])
    outcomes = Outcomes.of(verdicts, complete, lengths, numbers)
    advantage = group_advantages(outcomes.correct, lengths, numbers)
    mask = pad_batch([np.ones(each.length, dtype=bool) for each in responses])
    prompts = [tokenizer(problem.prompt)["input_ids"] for _, problem, _ in told]
    labels = [[Step(s.start, s.end, s.label) for s in reading.steps] for reading in readings]
    batch = Batch.made(prompts, responses, mask, advantage, outcomes, FOR_EACH, STEP, labels=labels)
    traces = [encoded(n, *pair) for n, pair in enumerate(zip(prompts, responses, strict=True))]
    witness = Witness(model, HeadSet.load("pocket").pairs)
    study = Study(batch, readings, numbers.tolist(), traces, [])
    for start in range(0, len(traces), 8):
        study.seen += witness.evidence(traces[start : start + 8])
    return study


def look_with_all_heads(study: Study, model: Any) -> None:
    """Scores by every head, and the rhythm; token by token, so for small models alone."""
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    witness = Witness(model, [(layer, head) for layer in range(layers) for head in range(heads)])
    for trace, seen in zip(study.traces, study.seen, strict=True):
        n = len(trace)
        looks, _ = witness.looks(torch.from_numpy(trace.ids)[None], torch.arange(n)[None])
        rows = looks[0].numpy()
        scores = step_scores(rows[:, trace.answer].sum(axis=1), trace.spans) / seen.base
        study.by_head.append(np.log(np.maximum(scores, 1e-6)))
        study.rhythm.append(rhythm(rows))


def rhythm(rows: np.ndarray) -> np.ndarray:
    """WAAD of the local heads and FAI of the global ones, of each token (arXiv 2510.13554)."""
    at = np.arange(rows.shape[1])
    back = np.clip(at[:, None] - at, 0, None)
    local, distant = focused((rows * back).sum(axis=(1, 2)))
    waad = windowed_distance(rows[local], at).mean(axis=0)
    return np.stack([waad, future_influence(rows[distant], at).mean(axis=0)])


def hide_each_step(study: Study, model: Any, count: int) -> None:
    """What the answer loses with each step hidden, as `kfh label --by ablation` measures it."""
    hiding = StepHiding(model)
    for row, trace in enumerate(study.traces):
        drops = np.full(len(trace.spans), np.nan)
        if study.problem[row] % 2 and study.problem[row] < 2 * count and trace.answer.any():
            first = int(trace.answer.argmax())
            context = int(trace.spans[-1, 1])
            cause = CauseTrace(trace.id, trace.ids, context, trace.spans, trace.answer, first)
            drops = hiding.drops(cause).total
        study.drops.append(drops)


def by_token(seen: Evidence, values: np.ndarray) -> np.ndarray:
    """Mean over a step's tokens, over the mean of the steps."""
    means = step_scores(values, seen.spans)
    return np.asarray(means / np.nanmean(means)) if len(means) else means


def signals(study: Study, half: Sequence[int]) -> dict[str, list[np.ndarray]]:
    """By name: S_k / S_base of each response's steps; `half` are the rows to fit on."""
    found = {"heads": [ratios.answer_ratio(seen) for seen in study.seen]}
    found |= {
        name: [formula(seen) for seen in study.seen] for name, formula in ratios.RATIOS.items()
    }
    weights = fitted(study, half)
    found["fitted heads"] = [np.exp(weights[:-1] @ x + weights[-1]) for x in study.by_head]
    for place, name in enumerate(("WAAD", "FAI")):
        pairs = zip(study.seen, study.rhythm, strict=True)
        found[name] = [by_token(seen, values[place]) for seen, values in pairs]
    bases = [seen.base for seen in study.seen]
    recency = recency_scores(study.batch)
    found["recency"] = [scores / base for scores, base in zip(recency, bases, strict=True)]
    if study.drops:
        found["cause"] = study.drops
    return found


def fitted(study: Study, rows: Sequence[int]) -> np.ndarray:
    """Weights of all heads and a constant: logistic regression on log S/S_base, ridge 1e-3."""
    pairs = [
        (x, kind != "redundant")
        for row in rows
        for x, kind in zip(study.by_head[row].T, study.kinds(row), strict=True)
        if kind in KINDS and kind != "confirming" and study.batch.correct[row]
    ]
    x = np.array([[*features, 1.0] for features, _ in pairs])
    sign = np.array([1.0 if essential else -1.0 for _, essential in pairs])

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x @ w)
        slope = -sign / (1 + np.exp(np.clip(margin, -50, 50)))
        value = np.logaddexp(0, -margin).mean() + 5e-4 * w @ w
        return float(value), x.T @ slope / len(x) + 1e-3 * w

    return np.asarray(minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x)


Scales = list[np.ndarray]  # γ of each token of each response


def gammas(
    study: Study, found: Mapping[str, list[np.ndarray]], doubt: float, p_is_one: bool
) -> dict[str, Scales]:
    """γ by token of every variant: the signals in both forms, floors, the recap, controls."""
    batch = study.batch
    if p_is_one:
        batch = replace(batch, p=torch.ones_like(batch.p))
    bases = [seen.base for seen in study.seen]

    def scaled(values: list[np.ndarray], constants: Rescaling) -> Scales:
        scores = [value * base for value, base in zip(values, bases, strict=True)]
        gamma = credit(batch, scores, constants, STEP).gamma.numpy()
        return [row[: len(each.ids)] for row, each in zip(gamma, batch.responses, strict=True)]

    hard, whole = replace(FOR_EACH, form="hard"), replace(FOR_EACH, beta=0.0, form="hard")
    oracle = credit(batch, label_scores(batch), FOR_EACH, STEP).gamma.numpy()
    cut = [row[: len(each.ids)] for row, each in zip(oracle, batch.responses, strict=True)]
    made = {"oracle": cut, "none (TLMRE)": [np.ones(len(row)) for row in cut]}
    tuned = {**found, "checks": with_doubt(study, doubt)}
    for name, values in tuned.items():
        if name == "cause":
            continue
        made[name] = scaled(values, FOR_EACH)
        made[f"{name}, hard"] = scaled(values, hard)
    made["heads, hard, β = 0"] = scaled(found["heads"], whole)
    made["checks, hard, β = 0"] = scaled(tuned["checks"], whole)
    made["heads, α = 2"] = scaled(found["heads"], replace(FOR_EACH, alpha=2.0))
    made["heads, δ = 0.2"] = scaled(found["heads"], replace(FOR_EACH, floor=0.2))
    made["heads, recap too"] = recap_too(study, made["heads"])
    made["checks, hard, recap too"] = recap_too(study, made["checks, hard"])
    made |= token_controls(study)
    return made


def with_doubt(study: Study, doubt: float) -> list[np.ndarray]:
    """`checks` with another bound of doubt."""
    values = []
    for seen in study.seen:
        answer = ratios.answer_ratio(seen)
        doubts = ratios.doubts(seen.entropy, seen.spans)
        paid = ratios.doubt_paid(seen.edges[:-1], doubts)
        values.append(np.maximum(answer, paid / doubt))
    return values


def recap_too(study: Study, scales: Scales) -> Scales:
    """Tokens outside the steps get the mean γ of those inside, where A > 0."""
    changed = []
    for row, (gamma, each) in enumerate(zip(scales, study.batch.responses, strict=True)):
        inside = np.zeros(len(gamma), dtype=bool)
        for first, last in each.spans:
            inside[first:last] = True
        mean = gamma[inside].mean() if inside.any() and study.batch.advantage[row] > 0 else 1.0
        changed.append(np.where(inside, gamma, mean))
    return changed


def token_controls(study: Study) -> dict[str, Scales]:
    """γ = 1 for 20 % of the tokens and 0 for the others: of largest entropy, and at random."""
    rng = np.random.default_rng(0)
    own = [
        seen.entropy[-len(each.ids) :]
        for seen, each in zip(study.seen, study.batch.responses, strict=True)
    ]
    drawn = [rng.random(len(each)) for each in own]
    return {
        "entropy tokens, 20 %": [top_tokens(each, TOP) for each in own],
        "random tokens, 20 %": [top_tokens(each, TOP) for each in drawn],
    }


def top_tokens(values: np.ndarray, share: float) -> np.ndarray:
    """1 for the share of tokens with the largest values, 0 for the others."""
    chosen = np.zeros(len(values))
    chosen[np.argsort(-values, kind="stable")[: round(share * len(values))]] = 1.0
    return chosen


# Figures


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    """Share of pairs in which the good one is larger, ties one half."""
    ranks = rankdata(np.concatenate([good, bad]))
    return float(
        (ranks[: len(good)].sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad))
    )


def auc_rows(study: Study, values: list[np.ndarray], rows: Sequence[int], kind: str) -> Estimate:
    """AUC within each problem's correct responses, mean over problems."""
    by: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        if study.batch.correct[row]:
            for value, one in zip(values[row], study.kinds(row), strict=True):
                if not np.isnan(value):
                    by.setdefault(study.problem[row], {}).setdefault(one, []).append(value)
    return estimate_mean(
        [
            [auc(np.array(own[kind]), np.array(own["redundant"]))]
            for own in by.values()
            if kind in own and "redundant" in own
        ]
    )


def token_kinds(study: Study, row: int) -> np.ndarray:
    """The kind of each token of a response."""
    each = study.batch.responses[row]
    kinds = np.full(len(each.ids), "", dtype=object)
    for (first, last), kind in zip(each.spans, study.kinds(row), strict=True):
        kinds[first:last] = kind
    kinds[each.answer] = "recap"
    return kinds


def mean_gamma(study: Study, scales: Scales, rows: Sequence[int], kind: str) -> Estimate:
    """By token, in correct responses with A > 0."""
    over, under = {}, {}
    for row in rows:
        if study.batch.correct[row] and study.batch.advantage[row] > 0:
            own = token_kinds(study, row) == kind
            place = study.problem[row]
            over.setdefault(place, []).append(float(scales[row][own].sum()))
            under.setdefault(place, []).append(float(own.sum()))
    return estimate_rate([*over.values()], [*under.values()])


def agreement(
    study: Study, scales: Scales, oracle: Scales, rows: Sequence[int]
) -> tuple[float, Estimate]:
    """Correlation of γ with the oracle's, and mean absolute difference, by token."""
    own, true = (np.concatenate([given[row] for row in rows]) for given in (scales, oracle))
    by: dict[int, list[float]] = {}
    for row in rows:
        by.setdefault(study.problem[row], []).extend(np.abs(scales[row] - oracle[row]))
    flat = own.std() == 0 or true.std() == 0
    return float("nan") if flat else float(np.corrcoef(own, true)[0, 1]), estimate_mean(
        [*by.values()]
    )


def cosines(
    study: Study, model: Any, scales: Mapping[str, Scales], problems: Sequence[int]
) -> dict[str, list[Estimate]]:
    """Cosine with the oracle of the gradient of Σ γ A log π over a problem's responses: over those
    with A > 0 (which positive-advantage attenuation acts on), and over all.
    """
    found: dict[str, list[list[list[float]]]] = {name: [[], []] for name in scales}
    weights = [each.requires_grad_() for each in model.parameters()]
    for problem in problems:
        rows = [row for row, own in enumerate(study.problem) if own == problem]
        up = study.batch.advantage[rows] > 0
        if not bool(up.any()):
            continue
        ids = pad_batch([study.traces[row].ids for row in rows])
        logp = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]

        def gradients(
            own: Scales,
            rows: list[int] = rows,
            logp: torch.Tensor = logp,
            up: torch.Tensor = up,
        ) -> list[torch.Tensor]:
            weight = torch.zeros_like(logp)
            for place, row in enumerate(rows):
                first = study.traces[row].prompt_tokens - 1
                gamma = torch.from_numpy(np.asarray(own[row], dtype=np.float32))
                weight[place, first : first + len(gamma)] = gamma * study.batch.advantage[row]
            parts = []
            for chosen in (up, ~up):
                loss = (weight * logp)[chosen].sum()
                given = torch.autograd.grad(loss, weights, retain_graph=True)
                parts.append(torch.cat([each.flatten() for each in given]))
            return [parts[0], parts[0] + parts[1]]

        true = gradients(scales["oracle"])
        for name, own in scales.items():
            for place, pair in enumerate(zip(gradients(own), true, strict=True)):
                found[name][place].append([float(torch.cosine_similarity(*pair, dim=0))])
    return {name: [estimate_mean(values) for values in both] for name, both in found.items()}


def spared_checks(study: Study, doubt: float, rows: Sequence[int]) -> str:
    """Of the checks that confirm, how many are spared; of the others, why not."""
    counts = {"spared": 0, "of a step that was not doubted": 0, "not the first, or of another": 0}
    for row in rows:
        seen = study.seen[row]
        doubts = ratios.doubts(seen.entropy, seen.spans)
        paid = ratios.doubt_paid(seen.edges[:-1], doubts)
        for step, kind in enumerate(study.kinds(row)):
            if kind == "confirming" and study.batch.correct[row]:
                sure = doubts[int(seen.edges[step, :step].argmax())] < doubt
                place = 0 if paid[step] >= doubt else 1 if sure else 2
                counts[list(counts)[place]] += 1
    return ", ".join(f"{count} {why}" for why, count in counts.items())


def chosen_doubt(study: Study, found: Mapping[str, list[np.ndarray]], rows: Sequence[int]) -> float:
    """The bound of doubt with the least mean difference from the oracle's γ, of a few."""
    oracle = gammas(study, found, 1.0, False)["oracle"]

    def difference(doubt: float) -> float:
        own = gammas(study, found, doubt, False)["checks, hard"]
        return agreement(study, own, oracle, rows)[1].value

    return min((0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7), key=difference)


# Printing


def short(estimate: Estimate) -> str:
    """Value and interval in two digits."""
    return f"{estimate.value:.2f} ({estimate.low:.2f}–{estimate.high:.2f})"


def table(heads: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    """Print Markdown."""
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    """Sample, score, choose on one half, print the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--gradients", type=int, default=12, help="problems of the cosines")
    parser.add_argument("--cause", type=int, default=0, help="problems whose steps are hidden")
    parser.add_argument("--seed", type=int, default=1_600_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = str(data_path("pocket"))
    model, tokenizer = load_model(folder, device="cpu", dtype="float32"), load_tokenizer(folder)
    study = sampled(model, tokenizer, arguments.problems, arguments.seed)
    look_with_all_heads(study, model)
    if arguments.cause:
        hide_each_step(study, model, arguments.cause)
    first, rows = ([n for n, p in enumerate(study.problem) if p % 2 == odd] for odd in (0, 1))
    found = signals(study, first)
    doubt = chosen_doubt(study, found, first)
    unread = sum(bool(reading.reasons) for reading in study.readings)
    print(
        f"{len(study.problem)} responses to {arguments.problems} problems, seed {arguments.seed}; "
        f"{float(study.batch.correct.float().mean()):.2f} correct, {unread} not read whole; chosen "
        f"on half of the problems: a doubt from {doubt} nats on. Confirming checks: "
        + spared_checks(study, doubt, rows)
    )
    kinds = KINDS[1:4]
    table(
        ("signal", *kinds),
        (
            (name, *(short(auc_rows(study, values, rows, kind)) for kind in kinds))
            for name, values in found.items()
        ),
    )
    one, real = (gammas(study, found, doubt, only) for only in (True, False))
    shown = ("redundant", "confirming")
    table(
        ("γ at p = 1", *KINDS),
        (
            (
                name,
                *(short(mean_gamma(study, one[name], rows, kind)) for kind in KINDS),
            )
            for name in one
        ),
    )
    problems = sorted({study.problem[row] for row in rows})[: arguments.gradients]
    cosine = cosines(study, model, real, problems)
    table(
        ("γ at the real p", *shown, "correlation", "difference", "cosine, A > 0", "cosine"),
        (
            (
                name,
                *(short(mean_gamma(study, real[name], rows, kind)) for kind in shown),
                f"{r:.2f}",
                short(d),
                *map(short, cosine[name]),
            )
            for name in real
            for r, d in [agreement(study, real[name], real["oracle"], rows)]
        ),
    )


if __name__ == "__main__":
    main()
