"""Published head types and step scorers: each against a dense computation of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import tiny
from helpers import model_folder, trace_line, write_lines
from scipy.stats import kurtosis, rankdata

from probing.config import ProbeConfig
from probing.errors import ConfigError, DataError, ModelError
from probing.folder import ProbeResult
from probing.models.proof import output_head
from probing.ranking.metrics import gating_accuracy, step_ranking_accuracy
from probing.run import encoded_as, probe
from probing.traces.tokens import EncodedTrace
from probing.types import formulas
from probing.types.config import TYPES, TypesConfig
from probing.types.doubt import step_doubts
from probing.types.job import TypesBeside, measure_types
from probing.types.maps import compare_types
from probing.types.passes import OutputGradient, pattern_scores
from probing.types.result import HeadTypes
from probing.types.rows import StepRows, heads_below

SPANS = np.array([[6, 14], [14, 17], [17, 17], [17, 40], [40, 61], [61, 70], [70, 78]])
BEHIND, TOKENS = 80, 96
FAMILIES = ["llama", "qwen2-window", "gemma2", "gpt_oss", "gpt_neox"]
NULL = np.array([5, 9, 11])


def trace(tokens: int = TOKENS) -> EncodedTrace:
    ids = np.random.default_rng(3).integers(3, 101, TOKENS)
    ids[85] = ids[30]
    answer = np.arange(tokens) >= BEHIND + 2
    return EncodedTrace("t", ids[:tokens], 6, SPANS, answer, behind=BEHIND)


def exact(family: str) -> torch.nn.Module:
    """The family by its own eager kernel in float64; gpt_oss' experts know no float64."""
    model = tiny(family, attention="eager")
    return model if family == "gpt_oss" else model.double()


def dense(family: str, ids: np.ndarray) -> np.ndarray:
    """Attention of every head by the family's own eager kernel: (head, query, key)."""
    with torch.no_grad():
        given = torch.from_numpy(ids)[None]
        rows = exact(family)(input_ids=given, output_attentions=True, use_cache=False).attentions
    return torch.cat([layer[0] for layer in rows]).double().numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_say_what_dense_attention_says(family: str) -> None:
    """In a batch with a shorter trace: each figure to 1e-5 of what float64 gives."""
    of = trace()
    rows = dense(family, of.ids)
    attention = "eager" if family in ("gemma2", "gpt_oss") else "sdpa"  # these have no other
    with StepRows(tiny(family, attention=attention), None, NULL, chunk_bytes=8 << 10) as capture:
        read, short = capture.read([of, trace(90)])
        assert bool(capture.split) == (attention == "sdpa")
        assert capture.branches == (family in ("llama", "gpt_neox"))
    with torch.no_grad():
        own = capture.trunk(input_ids=torch.from_numpy(of.ids)[None], use_cache=False)[0][0]
    torch.testing.assert_close(read.hidden, own, rtol=1e-4, atol=1e-5)
    at, written = np.arange(TOKENS), np.flatnonzero(of.answer)

    def mean(values: np.ndarray) -> np.ndarray:
        parts = [values[..., a:b].mean(-1) if b > a else 0 * values[..., 0] for a, b in SPANS]
        return np.stack(parts, axis=-1)

    by_step = mean(rows)  # head, query, step
    expected = {
        "attention": mean(by_step.swapaxes(1, 2)).swapaxes(1, 2),
        "mark": by_step[:, BEHIND - 1],
        "waad": mean(formulas.windowed_distance(rows, at)),
        "fai": mean_known(formulas.future_influence(rows[:, 6:], at[6:])),
        "sink": rows[:, written, 0].sum(-1) / rows[:, written].sum((1, 2)),
    }
    back = at[:, None] - at
    expected["span"] = (rows * back)[:, written].sum((1, 2)) / rows[:, written].sum((1, 2))
    expected["distance"] = (rows * back)[:, 6:].sum((1, 2)) / rows[:, 6:].sum((1, 2))
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(read.figures, name), value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(read.mass, rows[:, written].sum(1), rtol=1e-5, atol=1e-9)
    alone = dense(family, np.concatenate([of.ids[:BEHIND], NULL]))[:, BEHIND:, :BEHIND].sum(1)
    for found in (read, short):
        np.testing.assert_allclose(found.null, alone, rtol=1e-5, atol=1e-9)
    most = rows[:, written - 1].argmax(-1)
    assert (read.figures.looked_at == most).all()
    needle = (at >= 6) & (at < 78)
    share = formulas.copied(most, of.ids, written, needle).mean(1)
    ours = (most >= 6) & (most < 78) & (of.ids[most] == of.ids[written])
    np.testing.assert_array_equal(share, ours.mean(1))


def mean_known(values: np.ndarray) -> np.ndarray:
    """By step, of the tokens that some row stands 10 to 50 behind."""
    known = np.arange(TOKENS) + 10 < TOKENS
    parts = [values[..., a:b][..., known[a:b]] for a, b in SPANS]
    return np.stack([p.mean(-1) if p.shape[-1] else 0 * values[..., 0] for p in parts], axis=-1)


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_patterns(family: str) -> None:
    ids = torch.arange(3, 15).repeat(2)
    patterns = [formulas.previous_token(24), formulas.induction(24, 12)]
    assert patterns[1].sum() == 13 and patterns[1][12, 1] and patterns[1][23, 12]
    rows = dense(family, ids.numpy())
    with StepRows(tiny(family, attention="eager"), chunk_bytes=1 << 10) as capture:
        found = pattern_scores(capture, ids, patterns)
    expected = [formulas.pattern_score(rows, pattern) for pattern in patterns]
    np.testing.assert_allclose(found.T, expected, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_gradient(family: str) -> None:
    """Against autograd in float64 on what goes into each output projection, taken by hooks."""
    of = trace()
    written = np.flatnonzero(of.answer)
    found = OutputGradient(tiny(family))(of.ids, written)
    model, kept = exact(family), []

    def keep(module: torch.nn.Module, given: tuple) -> None:
        given[0].retain_grad()
        kept.append(given[0])

    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(keep)
    ids = torch.from_numpy(of.ids)
    chances = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
    chances[written - 1, ids[written]].sum().backward()
    own = [(z * z.grad)[0, written - 1].unflatten(-1, (4, -1)).sum((0, 2)) for z in kept]
    expected = torch.cat(own).detach().numpy()
    # A head's figure is a sum of terms of either sign: rounding is relative to the largest.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert np.abs(found).max() > 1e-2
    frozen = tiny(family).requires_grad_(False)
    np.testing.assert_allclose(OutputGradient(frozen)(of.ids, written), found, rtol=1e-4, atol=1e-6)


def test_doubts() -> None:
    of, model = trace(), tiny("llama")
    ids = torch.from_numpy(of.ids)[None]
    with torch.no_grad():
        p = exact("llama")(input_ids=ids, use_cache=False).logits[0].softmax(-1).numpy()
        hidden = model.model(input_ids=ids, use_cache=False)[0][0]
    spans = np.array([[0, 3], *SPANS, [75, 96]])  # from the very first token on; overlapping
    means, firsts = step_doubts(hidden, of.ids, spans, output_head(model))
    surprisal = np.append(0, -np.log(p[np.arange(95), of.ids[1:]]))
    entropy = np.append(0, -(p * np.log(p)).sum(-1)[:-1])
    expected = [surprisal[a:b].mean() if b > a else 0 for a, b in spans]
    np.testing.assert_allclose(means, expected, rtol=1e-5)
    np.testing.assert_allclose(firsts, [entropy[a] if b > a else 0 for a, b in spans], rtol=1e-5)
    with pytest.raises(ModelError, match="soft-cap"):
        output_head(tiny("gemma2", final_logit_softcapping=2.0))


def published_vertical(matrix: np.ndarray, near: int, ranked: bool) -> np.ndarray:
    """v_j by loops over what the paper says."""
    n = len(matrix)
    out = np.full(n, np.nan)
    for j in range(n):
        column = []
        for i in range(j + near, n):
            row = matrix[i, : i - near + 1]
            column.append(rankdata(row)[j] / len(row) if ranked else matrix[i, j])
        out[j] = np.mean(column) if column else np.nan
    return out


@pytest.mark.parametrize("ranked", [False, True])
def test_receiver(ranked: bool) -> None:
    m = np.tril(np.random.default_rng(0).random((2, 9, 9)).round(1))
    v = formulas.vertical_scores(m, ranked=ranked)
    np.testing.assert_allclose(v, [published_vertical(one, 4, ranked) for one in m], atol=1e-12)
    expected = kurtosis(v[:, :5], axis=1, fisher=True)
    np.testing.assert_allclose(formulas.receiver_score(v), expected, atol=1e-9)
    assert np.isnan(formulas.receiver_score(np.full((1, 9), 0.25))).all()


def test_forward_influence_and_the_rest() -> None:
    m = np.tril(np.random.default_rng(1).random((3, 8, 8)))
    expected = [max(m[h, k + 4 :, k].sum() for h in range(3)) for k in range(8)]
    np.testing.assert_allclose(formulas.forward_influence(m), expected)
    assert (
        heads_below([(0, 0), (0, 1), (3, 0), (7, 0), (7, 1)]).tolist() == [True, True] + [False] * 3
    )


def test_equations_of_preplan_and_anchor() -> None:
    """7 to 10 of arXiv 2510.13554 by their sums, for a response of tokens 5 to 69."""
    every = np.tril(np.random.default_rng(2).random((6, 70, 70)))
    every /= every.sum(-1, keepdims=True)
    at, back = np.arange(5, 70), np.subtract.outer(np.arange(70), np.arange(70))
    distance = np.array([np.mean([a[t] @ back[t] for t in at]) for a in every])  # 7
    local, distant = formulas.focused(distance)
    assert local.tolist() == sorted(range(6), key=lambda h: distance[h])[:2]
    assert distant.tolist() == sorted(range(6), key=lambda h: distance[h])[-2:]
    near, far = every[local].mean(0), every[distant].mean(0)  # 8
    waad = [sum(near[t, s] * min(t - s, 10) for s in range(t + 1)) for t in at]  # 9
    ours = formulas.windowed_distance(every[local][:, at], at).mean(0)
    np.testing.assert_allclose(ours, waad, rtol=1e-12)
    rows = [[far[t, s] for t in at if s + 10 <= t <= min(69, s + 50)] for s in range(60)]
    ours = formulas.future_influence(every[distant][:, at], at).mean(0)  # 10
    np.testing.assert_allclose(ours[:60], [np.mean(row) for row in rows], rtol=1e-12)


def test_published_code_gives_the_same() -> None:
    """What `get_vertical_scores` of the authors' repository gave for this matrix, and kurtosis."""
    m = np.tril((np.arange(64).reshape(8, 8) * 7 % 11) / 11)
    for ranked, scores, score in (
        (False, [0.5, 0.181818, 0.863636, 0.545455], -1.0176208),
        (True, [0.854167, 0.361111, 1.0, 0.5], -1.7190835),
    ):
        v = formulas.vertical_scores(m, ranked=ranked)
        np.testing.assert_allclose(v[:4], scores, atol=1e-6)
        assert formulas.receiver_score(v) == pytest.approx(score, abs=1e-6)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("types")
    model = model_folder(folder / "model")
    lines = [trace_line(n, steps=8) for n in range(6)]
    traces = write_lines(folder / "traces.jsonl", lines)
    probe(ProbeConfig(model=str(model), traces=traces, out=folder / "probe"))
    return folder / "probe"


def test_job_beside_a_probe(probed: Path) -> None:
    config = TypesConfig(probed, types=TYPES, rows="all", repeated=8, draws=2)
    found = measure_types(config)
    assert {*TYPES} <= {*found.table} and found.table[list(TYPES)].notna().all(axis=None)
    result = ProbeResult.load(probed)
    rows = {row["scorer"]: row for row in found.content["scorers"]}
    # The probe's own control, and the set on the half that it was not chosen on.
    everything = result.controls.set_index("control").loc["all heads"]
    assert rows["all heads"]["sra"] == pytest.approx(everything["sra"])
    for name in ("sra", "sra_low", "sra_high", "sra_select"):
        point = {"sra": "sra_held_out", "sra_select": "sra_select"}.get(name)
        if point:
            assert rows["head set"][point] == pytest.approx(result.set_point[name])
    assert rows["head set"]["less"] == 0 and rows["FCI"]["less"] == pytest.approx(
        rows["head set"]["sra_held_out"] - rows["FCI"]["sra_held_out"]
    )
    by_type = {row["type"]: row for row in found.content["types"]}
    strongest = found.table.sort_values("receiver", ascending=False)[["layer", "head"]].to_numpy()
    assert by_type["receiver"]["strongest"][0][:2] == strongest[0].tolist()
    assert "heads of the set" in found.content["verdict"][0]
    loaded = HeadTypes.load(probed)
    assert loaded.content["verdict"] == found.content["verdict"]
    assert loaded.table.equals(found.table)


def test_taken_in_the_probe_s_own_pass(probed: Path, tmp_path: Path) -> None:
    """The same types and the same scores as by passes of their own, and no pass more."""
    config = TypesConfig(tmp_path, types=TYPES, rows="all", repeated=8, draws=2)
    beside = TypesBeside(config)
    before = ProbeResult.load(probed)
    result = probe(replace(before.config, out=tmp_path), beside=beside)
    assert result and len(beside.done) == 6 and beside.tokens > 0
    found = measure_types(config, beside=beside)
    assert found.content["speed"]["tokens"] == beside.tokens
    alone = HeadTypes.load(probed).table
    np.testing.assert_allclose(found.table, alone, rtol=1e-5, atol=1e-6)
    for name, scored in before.scored.items():
        np.testing.assert_allclose(result.scored[name].scores, scored.scores, rtol=1e-5)


def test_base_and_trained_side_by_side(probed: Path, tmp_path: Path) -> None:
    """A model of which two heads change their places: types and SRA follow, and nothing else."""
    config = TypesConfig(tmp_path, types=TYPES, rows="all", repeated=8, draws=2)
    before, beside = ProbeResult.load(probed), TypesBeside(config)
    model, _ = before.config.load()
    with torch.no_grad():  # heads 0 and 1 of the last layer share keys: queries and outputs move
        last = model.model.layers[-1].self_attn
        width = last.head_dim
        swap = torch.arange(last.o_proj.in_features)
        swap[: 2 * width] = swap[: 2 * width].roll(width)
        last.q_proj.weight.copy_(last.q_proj.weight[swap])
        last.o_proj.weight.copy_(last.o_proj.weight[:, swap])
    probe(replace(before.config, out=tmp_path), model=model, beside=beside)
    table = measure_types(config, beside=beside).table
    layer = int(table["layer"].max())
    old = HeadTypes.load(probed).table
    order = list(range(len(old)))
    first = int(old.index[(old["layer"] == layer) & (old["head"] == 0)][0])
    order[first], order[first + 1] = first + 1, first
    names = [*TYPES, "sra"]
    np.testing.assert_allclose(table[names], old[names].iloc[order], rtol=1e-4, atol=1e-5)
    found = compare_types(probed, tmp_path, top=4)
    assert [row["type"] for row in found["rows"]] == ["sra", *TYPES]
    for row in found["rows"]:
        name, own = row["type"], row["kept"]["overlap"]
        best = [{*np.argsort(-t[name].to_numpy(), kind="stable")[:4]} for t in (old, table)]
        assert own["shared"] == len(best[0] & best[1]) and own["expected"] == 1
        sra = {*np.argsort(-table["sra"].to_numpy(), kind="stable")[:4]}
        into = row["into"]["overlap"]
        assert into["shared"] == len(best[0] & sra) and into["low"] <= into["high"] <= 4
    origin = found["origins"][0]
    at = int(table.index[(table[["layer", "head"]] == origin["head"]).all(axis=1)][0])
    assert origin["qr"] == 1 + (old["qr"] > old["qr"][at]).sum()
    with pytest.raises(DataError, match="kfh heads types"):
        compare_types(probed, write_lines(tmp_path / "none.jsonl", []).parent / "x")


def test_qr_and_calibration(probed: Path) -> None:
    """By eager attention in float64 of each trace, and of its context with the null answer."""
    result, found = ProbeResult.load(probed), HeadTypes.load(probed)
    model, tokenizer = replace(result.config, attention="eager").load()
    model, null, chosen = (
        model.double(),
        tokenizer("N/A")["input_ids"],
        result.places(result.chosen),
    )
    qr, gating, ours = [], [], {"plain": [], "less_null": []}
    for trace in result.traces(result.ranked):
        of = encoded_as(result.config, tokenizer, trace)
        first = int(of.answer.argmax())

        def looks(ids: list[int]) -> np.ndarray:
            with torch.no_grad():
                given = torch.tensor([ids])
                out = model(input_ids=given, output_attentions=True, use_cache=False)
            rows = torch.cat([layer[0] for layer in out.attentions]).numpy()[:, first:]  # noqa: B023
            means = [rows[..., a:b].mean(-1).mean(-1) for a, b in of.spans]  # noqa: B023
            return np.stack(means, axis=1)  # head, step

        plain = looks(of.ids.tolist())
        less = plain - looks([*of.ids[:first].tolist(), *null])
        essential = np.array([step.label == "essential" for step in trace.steps])
        qr.append((less * np.diff(of.spans, axis=1)[:, 0])[:, essential].sum(1))
        gating.append(gating_accuracy(less, essential, 0.0))
        if trace.id in result.counts["held_out_traces"]:
            for name, scores in (("plain", plain), ("less_null", less)):
                ours[name].append(step_ranking_accuracy(scores[chosen].mean(0), essential))
    np.testing.assert_allclose(found.table["qr"], np.mean(qr, axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.table["gating_less_null"], np.mean(gating, axis=0), atol=1e-9)
    row = found.content["calibration"]["metrics"]["sra"]["set"]
    for name, values in ours.items():
        assert row[name] == pytest.approx(np.mean(values))
    assert row["gain"] == pytest.approx(row["less_null"] - row["plain"])
    assert row["gain_low"] <= row["gain"] <= row["gain_high"]


def test_job_goes_on_and_refuses(probed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TypesConfig(probed, types=TYPES, rows="all", repeated=8, draws=2)
    before = (probed / "types.jsonl").read_text().splitlines()
    table = HeadTypes.load(probed).table
    (probed / "types.jsonl").write_text("\n".join(before[:-2]) + "\n" + before[-2][:40])
    again = measure_types(config)
    assert again.content["speed"]["resumed"] == len(before) - 3
    assert (probed / "types.jsonl").read_text().splitlines()[1:-2] == before[1:-2]
    np.testing.assert_allclose(again.table, table, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="rows"):
        measure_types(replace(config, rows=2))
    with pytest.raises(ConfigError, match="did you mean receiver"):
        TypesConfig(probed, types=("reciever",))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="kfh heads types"):
        HeadTypes.load(probed.parent)
    other = tiny("llama", vocab_size=len(ProbeResult.load(probed).config.load()[1]))
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    with pytest.raises(DataError, match="not the model that was probed"):
        measure_types(config, model=other)


def test_drops_by_cause_are_a_scorer(probed: Path, tmp_path: Path) -> None:
    config = TypesConfig(probed, types=TYPES, rows="all", repeated=8, draws=2)
    lines = [
        {"id": trace.id, "step": step, "label": own.label, "score": float(own.label == "essential")}
        for trace in ProbeResult.load(probed).traces()
        for step, own in enumerate(trace.steps)
    ]
    causes = write_lines(tmp_path / "causes.jsonl", lines)
    rows = measure_types(replace(config, causes=causes)).content["scorers"]
    assert {row["scorer"]: row["sra"] for row in rows}["drop by cause"] == 1
    with pytest.raises(DataError, match=r"no score of step 7 of trace t/5"):
        measure_types(replace(config, causes=write_lines(tmp_path / "less.jsonl", lines[:-1])))


def test_few_rows_say_nearly_the_same(probed: Path) -> None:
    result = ProbeResult.load(probed)
    model, tokenizer = result.config.load()
    of = encoded_as(result.config, tokenizer, next(result.traces()))
    found = {}
    for most in (None, 8):
        with StepRows(model, most) as capture:
            found[most] = formulas.vertical_scores(capture.read([of])[0].figures.attention)
    known = ~np.isnan(found[None][0])
    whole, few = (found[most][:, known].ravel() for most in (None, 8))
    assert np.corrcoef(whole, few)[0, 1] > 0.9 and not np.allclose(whole, few)
