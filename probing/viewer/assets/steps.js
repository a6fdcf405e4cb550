/* One trace: its text in steps, a strip and marks of them, coloured and numbered by each picked head.
   One trace is in the DOM at a time, and a step's tokens only once somebody looks at them. */
const Steps = (() => {
  const {
    $, LABELS, SUFFIX, state, element, plural, capital, ratioText, sraText, columns, scored, ratios, labelOf, isOut, tone,
  } = Page;

  const showTrace = (number) => {
    Object.assign(state, { trace: number, step: 0, cell: -1, shown: Data.trace(number) });
    const { shown } = state;
    $("problem").textContent = Data.index.traces[number].problem;
    const answer = shown.text.slice(shown.answer);
    const text = answer.trimStart();
    $("answer").replaceChildren(element("span", "lead", answer.slice(0, answer.length - text.length)), text);
    build();
    List.mark();
    window.scrollTo(0, 0);
    Page.remember();
  };

  const meta = () => {
    const line = Data.index.traces[state.trace];
    const { tokens, answerTokens } = line.models[columns()[0].model];
    const verdict = { true: "correct", false: "incorrect", null: "correctness not known" };
    const facts = [
      verdict[String(line.correct)],
      `${plural(line.steps, "step")} (${line.essential} essential, ${line.redundant} redundant)`,
      `${plural(tokens, "token")}, ${answerTokens.toLocaleString("en")} of them the answer's`,
    ];
    $("meta").replaceChildren(element("bdi", "id", line.id), ` · ${facts.join(" · ")}`);
  };

  // ---- building: the trace's text, and for each picked head a pane a step, a strip, marks

  const build = () => {
    const { shown } = state;
    Tokens.hideTip();
    const items = [];
    let at = 0;
    shown.steps.forEach((step, k) => {
      if (step.start > at) items.push(between(at, step.start));
      items.push(stepItem(step, k));
      at = step.end;
    });
    if (shown.think > at) items.push(between(at, shown.think));
    items.push(element("li", "end", shown.text.slice(shown.think, shown.answer)));
    $("steps").replaceChildren(...items);
    SUFFIX.forEach((suffix, column) => {
      const used = column < columns().length;
      $(`column${suffix}`).hidden = !used || columns().length < 2;
      for (const name of ["ranking", "strip-row"]) $(name + suffix).hidden = !used;
      $(`strip${suffix}`).replaceChildren(...(used ? shown.steps.map(bar) : []));
      $(`ranks${suffix}`).replaceChildren(...(used ? shown.steps.map(mark) : []));
    });
    document.body.classList.toggle("compared", columns().length > 1);
    Tokens.watch();
    paint();
    filter();
  };

  /* Text of no step is still part of the trace. */
  const between = (from, to) => {
    const text = state.shown.text.slice(from, to);
    const item = element("li", text.trim() ? "between" : "between blank", text);
    item.title = "in no step";
    return item;
  };

  const bar = (step, k) => {
    const made = element("button", `bar ${labelOf(step)}`);
    Object.assign(made, { type: "button", tabIndex: -1 });
    made.dataset.step = k;
    return made;
  };

  const mark = (step, k) => {
    const made = element("b", `mark ${labelOf(step)}`);
    made.dataset.step = k;
    made.title = `step ${k + 1}: ${LABELS[labelOf(step)]}`;
    return made;
  };

  const stepItem = (step, k) => {
    const item = element("li", "step", element("span", "number", String(k + 1)), ...columns().map((_, c) => pane(step, c)));
    item.tabIndex = -1;
    item.dataset.step = k;
    return item;
  };

  /* The text as one head sees it; label and kind, which no head decides, stand in the first. */
  const pane = (step, column) => {
    const text = element("div", "text", state.shown.text.slice(step.start, step.end));
    text.dir = "auto";
    const facts = element("div", "facts", element("span", "ratio"), element("span", "rank"));
    if (!column) {
      facts.append(element("span", `label ${labelOf(step)}`, LABELS[labelOf(step)]));
      if (step.kind) {
        const kind = element("span", `kind ${step.kind}`, step.kind);
        kind.title = step.phrase ? `opens with “${step.phrase}”` : "kind given by the segmenter";
        facts.append(kind);
      }
    }
    const made = element("div", "pane", text, facts);
    made.dataset.column = column;
    return made;
  };

  const node = (k) => $("steps").querySelector(`.step[data-step="${k}"]`);

  // ---- which steps are shown, and which is the current

  const filter = () => {
    const { steps } = state.shown;
    for (const item of $("steps").querySelectorAll(".step")) item.hidden = isOut(Number(item.dataset.step));
    for (const item of document.querySelectorAll("#strips .bar, .marks-row .mark")) {
      item.classList.toggle("out", isOut(Number(item.dataset.step)));
      if (item.tagName === "BUTTON") item.disabled = isOut(Number(item.dataset.step));
    }
    const counts = { essential: 0, redundant: 0, none: 0 };
    for (const step of steps) counts[labelOf(step)] += 1;
    for (const button of $("labels").querySelectorAll("button")) {
      const { label } = button.dataset;
      button.setAttribute("aria-pressed", String(!state.out.has(label)));
      button.querySelector(".many").textContent = counts[label];
    }
    const many = steps.filter((_, k) => !isOut(k)).length;
    document.body.classList.toggle("filtered", state.out.size > 0);
    $("shown-count").textContent = many < steps.length ? `${many} of ${plural(steps.length, "step")} shown` : "";
    const first = nearest(state.step, 1) ?? nearest(state.step, -1);
    if (first !== null) choose(first, "", node(state.step) && node(state.step).hasAttribute("aria-current"));
    Find.search();
  };

  /* The step from k on, forwards or backwards, that is shown; null where there is none. */
  const nearest = (k, by) => {
    const { length } = state.shown.steps;
    for (let at = Math.min(Math.max(k, 0), length - 1); at >= 0 && at < length; at += by) if (!isOut(at)) return at;
    return null;
  };

  const toggleLabel = (label) => {
    if (state.out.has(label)) state.out.delete(label); else state.out.add(label);
    filter();
    Page.remember();
  };

  const hasCurrent = () => Boolean($("steps").querySelector("[aria-current]"));

  /* Make step k the current one. `how`: "focus" it, only "scroll" to it, or neither (""). */
  const choose = (k, how, current = true) => {
    const before = node(state.step);
    if (before) before.tabIndex = -1;
    if (state.step !== k) Object.assign(state, { step: k, cell: -1 });
    for (const old of document.querySelectorAll("[aria-current]")) old.removeAttribute("aria-current");
    const item = node(k);
    item.tabIndex = 0;
    if (!current) return;
    item.setAttribute("aria-current", "step");
    columns().forEach((_, c) => $(`strip${SUFFIX[c]}`).children[k].setAttribute("aria-current", "step"));
    Find.count();
    if (!how) return;
    if (how === "focus") item.focus({ preventScroll: true });
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    item.scrollIntoView({ block: "center", behavior: calm ? "auto" : "smooth" });
  };

  const move = (by) => {
    if (!state.shown.steps.length) return;
    const next = nearest(hasCurrent() ? state.step + by : state.step, by) ?? nearest(state.step, -by);
    if (next !== null) choose(next, "focus");
  };

  // ---- colours and numbers

  const paint = () => {
    const all = columns().map(ratios);
    columns().forEach((view, column) => paintColumn(view, column, all));
    for (const made of $("steps").querySelectorAll(".pane.built")) Tokens.paint(made);
    meta();
    legend(all);
    $("agree").textContent = all.length > 1 ? agreement(all) : "";
    Tokens.enable();
  };

  const paintColumn = (view, column, all) => {
    const values = all[column];
    const ranks = Scale.ranks(values);
    const many = ranks.filter((rank) => !Number.isNaN(rank)).length;
    const [wide, narrow] = [2, 3].map((span) => Scale.of(state.colour, values, all, span));
    const bars = $(`strip${SUFFIX[column]}`).children;
    for (const item of $("steps").querySelectorAll(".step")) {
      const k = Number(item.dataset.step);
      const [ratio, rank] = [values[k], Number.isNaN(ranks[k]) ? "no token" : `rank ${ranks[k]} of ${many}`];
      const made = item.children[1 + column];
      tone(made, wide(ratio));
      made.dataset.name = view.name; // shown where the panes stand below each other
      made.querySelector(".ratio").textContent = ratioText(ratio);
      made.querySelector(".rank").textContent = rank.split(" of ")[0];
      made.querySelector(".rank").title = `${rank} by ${view.name}`;
      const told = `step ${k + 1} of ${values.length}, ${LABELS[labelOf(state.shown.steps[k])]}, `
        + `score ${ratioText(ratio)}, ${rank}${all.length > 1 ? ` by ${view.name}` : ""}`;
      tone(bars[k], narrow(ratio));
      bars[k].title = told;
      bars[k].setAttribute("aria-label", told);
      item.setAttribute("aria-label", column ? `${item.getAttribute("aria-label")}; ${told}` : told);
    }
    $(`strip-name${SUFFIX[column]}`).textContent = all.length > 1 ? capital(view.name) : "";
    $(`column${SUFFIX[column]}`).textContent = capital(view.name);
    const key = (item) => (Number.isNaN(values[item.dataset.step]) ? -1 : values[item.dataset.step]);
    const marks = $(`ranks${SUFFIX[column]}`);
    marks.append(...[...marks.children].sort((a, b) => key(b) - key(a)));
    says(view, SUFFIX[column], values);
  };

  const says = (view, suffix, values) => {
    const line = Data.index.traces[state.trace].models[view.model];
    const sra = Page.traceSra(state.trace, view);
    if (sra === null) {
      $(`says${suffix}`).replaceChildren("No pair of an essential and a redundant step to rank here.");
    } else {
      const right = Math.round(2 * sra * line.pairs) / 2;
      $(`says${suffix}`).replaceChildren(
        element("b", "", capital(view.name)),
        ` puts ${right.toLocaleString("en")} of ${plural(line.pairs, "pair")} right: SRA `,
        element("b", "", sraText(sra)),
        `. Over ${plural(Data.index.models[view.model].ranked, "trace")}: ${sraText(view.sra)}.`,
      );
    }
    const { tokens } = scored(view);
    const inSteps = tokens.reduce((sum, many) => sum + many, 0);
    const mass = tokens.reduce((sum, many, k) => sum + (Number.isNaN(values[k]) ? 0 : many * values[k]), 0);
    const percent = (part) => `${((100 * part) / line.tokens).toFixed(0)} %`;
    $(`share${suffix}`).textContent = `Marks: steps from the highest score to the lowest. The steps get `
      + `${percent(mass)} of the answer's attention on ${percent(inSteps)} of the tokens.`;
  };

  const agreement = ([first, second]) => {
    const rho = Scale.correlation(first, second);
    return Number.isNaN(rho) ? "" : `Rank correlation of the two over the steps of this trace: ${rho.toFixed(2)}.`;
  };

  const legend = (all) => {
    const [low, high] = Scale.ends(all);
    const texts = {
      uniform: ["below uniform", ["¼", "½", "1", "2", "4"], "above uniform attention"],
      log: ["lowest", low <= high ? [low, Math.sqrt(low * high), high].map(ratioText) : [], "highest score"],
      rank: ["lowest rank", ["", "", ""], "highest"],
    }[state.colour];
    $("scale-low").textContent = texts[0];
    $("scale").replaceChildren(...texts[1].map((text) => element("i", "", text)));
    $("scale").classList.toggle("graded", state.colour !== "uniform");
    $("scale-high").textContent = texts[2];
    $("strips").classList.toggle("graded-strips", state.colour !== "uniform");
    $("colour").value = state.colour;
  };

  const chooseColour = (name) => {
    state.colour = name;
    paint();
    Page.remember();
  };

  return { showTrace, build, paint, node, nearest, choose, move, toggleLabel, hasCurrent, chooseColour };
})();
