/* The page. Text reaches the DOM as text alone (textContent, append); nothing parses it as markup.
   One trace is in the DOM at a time, and a step's tokens only once somebody looks at them. */
(() => {
  const $ = (id) => document.getElementById(id);
  const LABELS = { essential: "essential", redundant: "redundant", none: "no label" };
  const state = { trace: 0, view: 0, step: 0, cell: -1, tokens: false, listed: [] };
  let shown = null; // the unpacked trace
  let watcher = null; // builds tokens of steps as they come into sight

  const element = (tag, className, ...parts) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...parts); // texts become text nodes
    return made;
  };

  const plural = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : "s"}`;
  /* Two decimals; of small numbers, by which some heads still rank, two digits. */
  const ratioText = (ratio) => {
    if (Number.isNaN(ratio)) return "–";
    if (ratio < 0.00095) return "< 0.001";
    return ratio < 0.095 ? ratio.toPrecision(2) : ratio.toFixed(ratio < 9.995 ? 2 : 0);
  };
  const sraText = (sra) => (sra === null || sra === undefined ? "–" : sra.toFixed(3));
  const head = (view) => (view ? Data.index.heads[view - 1] : null);
  const keyOf = (view) => (view ? `${head(view).layer}.${head(view).head}` : "set");
  const setNames = () => Data.index.heads.slice(0, Data.index.set).map((_, i) => keyOf(i + 1));
  const nameOf = (view) => (view ? `head ${keyOf(view)}` : "the head set");
  const sraOf = (view) => (view ? head(view).sra : Data.index.setSra);
  const hasTokens = () => Boolean(shown && shown.cells) && state.view < Data.index.tokenViews;

  /* Colour by ratio: above or below uniform by hue, how far by alpha. `span`: octaves to the full. */
  const tone = (node, ratio, span) => {
    const known = !Number.isNaN(ratio);
    const octaves = known ? Math.log2(Math.max(ratio, 1e-9)) : 0;
    node.classList.toggle("above", known && octaves > 0);
    node.classList.toggle("below", known && octaves < 0);
    node.style.setProperty("--a", Math.min(Math.abs(octaves) / span, 1).toFixed(3));
  };

  // ---- the list of traces

  const matches = (line) => {
    const wanted = $("filter").value;
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = `${line.id} ${line.problem}`.toLowerCase();
    return (wanted === "all" || String(line.correct) === wanted) && words.every((w) => text.includes(w));
  };

  const arrange = () => {
    const { traces } = Data.index;
    const order = $("sort").value;
    const sra = (i) => (traces[i].sra ? traces[i].sra[state.view] : NaN);
    state.listed = traces.map((_, i) => i).filter((i) => matches(traces[i]));
    if (order === "long") state.listed.sort((a, b) => traces[b].tokens - traces[a].tokens);
    if (order === "low" || order === "high") {
      const sign = order === "low" ? 1 : -1;
      // Traces without a pair have no SRA: they go last either way.
      const key = (i) => (Number.isNaN(sra(i)) ? Infinity : sign * sra(i));
      state.listed.sort((a, b) => (key(a) === key(b) ? a - b : key(a) - key(b)));
    }
    $("list").replaceChildren(...state.listed.map(entry));
    const all = traces.length;
    $("count").textContent = state.listed.length === all
      ? plural(all, "trace") : `${state.listed.length} of ${plural(all, "trace")}`;
    markListed();
  };

  /* Long ids that begin alike would all be cut off before they differ. */
  let prefix = "";
  const findPrefix = () => {
    const ids = Data.index.traces.map((line) => line.id);
    if (ids.length < 2 || Math.max(...ids.map((id) => id.length)) < 25) return;
    let shared = 0;
    while (ids.every((id) => id[shared] !== undefined && id[shared] === ids[0][shared])) shared += 1;
    prefix = ids[0].slice(0, shared).match(/^(.*[/_:-])?/)[0];
  };

  const entry = (i) => {
    const line = Data.index.traces[i];
    const marks = { true: ["✓", "correct"], false: ["✗", "incorrect"], null: ["·", "not known"] };
    const [sign, word] = marks[String(line.correct)];
    const mark = element("span", `verdict ${word.replace(" ", "-")}`, sign);
    mark.title = word;
    const name = element("bdi", "id", line.id.slice(prefix.length));
    name.title = line.id;
    const sra = element("span", "sra", line.sra ? sraText(line.sra[state.view]) : "–");
    sra.title = `SRA of this trace by ${nameOf(state.view)}`;
    const item = element("li", "", mark, name, sra, element("bdi", "about", line.problem.slice(0, 160)));
    item.id = `entry-${i}`;
    item.dataset.trace = i;
    item.setAttribute("role", "option");
    return item;
  };

  const markListed = () => {
    for (const item of $("list").children) {
      const own = Number(item.dataset.trace) === state.trace;
      item.setAttribute("aria-selected", String(own));
      if (own) item.scrollIntoView({ block: "nearest" });
    }
    const place = state.listed.indexOf(state.trace);
    $("list").setAttribute("aria-activedescendant", place < 0 ? "" : `entry-${state.trace}`);
    $("place").textContent = place < 0 ? "not in the list" : `${place + 1} of ${state.listed.length}`;
  };

  const moveTrace = (by) => {
    if (!state.listed.length) return;
    const place = state.listed.indexOf(state.trace);
    const last = state.listed.length - 1;
    const next = place < 0 ? 0 : Math.min(Math.max(place + by, 0), last);
    if (state.listed[next] !== state.trace) showTrace(state.listed[next]);
  };

  // ---- one trace

  const showTrace = (number) => {
    Object.assign(state, { trace: number, step: 0, cell: -1 });
    shown = Data.trace(number);
    const line = Data.index.traces[number];
    const verdict = { true: "correct", false: "incorrect", null: "correctness not known" };
    const facts = [
      verdict[String(line.correct)],
      `${plural(line.steps, "step")} (${line.essential} essential, ${line.redundant} redundant)`,
      `${plural(line.tokens, "token")}, ${line.answerTokens.toLocaleString("en")} of them the answer's`,
    ];
    $("meta").replaceChildren(element("bdi", "id", line.id), ` · ${facts.join(" · ")}`);
    $("problem").textContent = line.problem;
    const answer = shown.text.slice(shown.answer);
    const text = answer.trimStart();
    const lead = element("span", "lead", answer.slice(0, answer.length - text.length));
    $("answer").replaceChildren(lead, text);
    hideTip();
    buildSteps();
    paint();
    markListed();
    window.scrollTo(0, 0);
    remember();
  };

  const buildSteps = () => {
    if (watcher) watcher.disconnect();
    const items = [];
    const bars = [];
    const marks = [];
    let at = 0;
    shown.steps.forEach((step, k) => {
      if (step.start > at) items.push(between(at, step.start));
      items.push(stepItem(step, k));
      at = step.end;
      const bar = element("button", `bar ${step.label || "none"}`);
      Object.assign(bar, { type: "button", tabIndex: -1 });
      bar.dataset.step = k;
      bars.push(bar);
      const mark = element("b", `mark ${step.label || "none"}`);
      mark.dataset.step = k;
      mark.title = `step ${k + 1}: ${LABELS[step.label || "none"]}`;
      marks.push(mark);
    });
    if (shown.think > at) items.push(between(at, shown.think));
    items.push(element("li", "end", shown.text.slice(shown.think, shown.answer)));
    $("steps").replaceChildren(...items);
    $("strip").replaceChildren(...bars);
    $("ranks").replaceChildren(...marks);
    watchSteps();
  };

  /* Text of no step is still part of the trace. */
  const between = (from, to) => {
    const text = shown.text.slice(from, to);
    const item = element("li", text.trim() ? "between" : "between blank", text);
    item.title = "in no step";
    return item;
  };

  const stepItem = (step, k) => {
    const text = element("div", "text");
    text.dir = "auto";
    text.append(shown.text.slice(step.start, step.end));
    const label = element("span", `label ${step.label || "none"}`, LABELS[step.label || "none"]);
    const facts = element("div", "facts", element("span", "ratio"), element("span", "rank"), label);
    if (step.kind) {
      const kind = element("span", `kind ${step.kind}`, step.kind);
      kind.title = step.phrase ? `opens with “${step.phrase}”` : "kind given by the segmenter";
      facts.append(kind);
    }
    const item = element("li", "step", element("span", "number", String(k + 1)), text, facts);
    item.tabIndex = k === 0 ? 0 : -1;
    item.dataset.step = k;
    return item;
  };

  const stepNode = (k) => $("steps").querySelector(`.step[data-step="${k}"]`);

  const chooseStep = (k, scroll) => {
    if (!shown.steps.length) return;
    const next = Math.min(Math.max(k, 0), shown.steps.length - 1);
    const before = stepNode(state.step);
    if (before && state.step !== next) before.tabIndex = -1;
    if (state.step !== next) Object.assign(state, { step: next, cell: -1 });
    const node = stepNode(next);
    node.tabIndex = 0;
    for (const old of document.querySelectorAll("[aria-current]")) old.removeAttribute("aria-current");
    node.setAttribute("aria-current", "step");
    $("strip").children[next].setAttribute("aria-current", "step");
    if (!scroll) return;
    node.focus({ preventScroll: true });
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    node.scrollIntoView({ block: "center", behavior: calm ? "auto" : "smooth" });
  };

  // ---- colours and numbers of the picked head

  const paint = () => {
    const count = shown.steps.length;
    const ratios = shown.steps.map((_, k) => shown.ratio(state.view, k));
    const scored = ratios.filter((r) => !Number.isNaN(r)).sort((a, b) => b - a);
    for (const node of $("steps").querySelectorAll(".step")) {
      const k = Number(node.dataset.step);
      const ratio = ratios[k];
      // Equal scores share the better rank.
      const rank = Number.isNaN(ratio) ? "no token" : `rank ${scored.indexOf(ratio) + 1} of ${scored.length}`;
      tone(node, ratio, 2);
      node.querySelector(".ratio").textContent = ratioText(ratio);
      node.querySelector(".rank").textContent = rank.split(" of ")[0];
      node.querySelector(".rank").title = rank;
      const word = LABELS[shown.steps[k].label || "none"];
      const told = `step ${k + 1} of ${count}, score ${ratioText(ratio)}, ${rank}, ${word}`;
      node.setAttribute("aria-label", told);
      const bar = $("strip").children[k];
      tone(bar, ratio, 3);
      bar.title = told;
      bar.setAttribute("aria-label", told);
    }
    const order = [...$("ranks").children];
    const rankKey = (node) => { const r = ratios[node.dataset.step]; return Number.isNaN(r) ? -1 : r; };
    $("ranks").append(...order.sort((a, b) => rankKey(b) - rankKey(a)));
    for (const node of $("steps").querySelectorAll(".step.built")) paintCells(node);
    says(ratios);
    document.body.classList.toggle("no-tokens", !hasTokens());
    $("tokens").disabled = !hasTokens();
  };

  const says = (ratios) => {
    const line = Data.index.traces[state.trace];
    const sra = line.sra ? line.sra[state.view] : null;
    const all = ` Over ${plural(Data.index.ranked, "trace")}: ${sraText(sraOf(state.view))}.`;
    const name = nameOf(state.view);
    const subject = element("b", "", name[0].toUpperCase() + name.slice(1));
    if (sra === null) {
      $("says").replaceChildren("No pair of an essential and a redundant step to rank here.");
    } else {
      const right = Math.round(2 * sra * line.pairs) / 2;
      $("says").replaceChildren(
        subject, ` puts ${right.toLocaleString("en")} of ${plural(line.pairs, "pair")} right: SRA `,
        element("b", "", sraText(sra)), `.${all}`,
      );
    }
    const mass = (k) => (Number.isNaN(ratios[k]) ? 0 : ratios[k]);
    const inSteps = shown.steps.reduce((sum, step) => sum + step.tokens, 0);
    const held = shown.steps.reduce((sum, step, k) => sum + step.tokens * mass(k), 0);
    const percent = (part) => `${((100 * part) / line.tokens).toFixed(0)} %`;
    $("share").textContent = `Marks: steps from the highest score to the lowest. The steps get `
      + `${percent(held)} of the answer's attention on ${percent(inSteps)} of the tokens.`;
  };

  const chooseView = (view) => {
    state.view = Math.min(Math.max(view, 0), Data.index.heads.length);
    $("head").value = String(state.view);
    for (const cell of $("grid").querySelectorAll("[data-view]")) {
      const own = cell.dataset.view === String(state.view);
      cell.setAttribute("aria-selected", String(own));
      cell.tabIndex = own ? 0 : -1;
    }
    // The grid stays in the order of Tab when the mean of the set, no cell of it, is picked.
    if (!state.view) $("grid").querySelector("[data-view]").tabIndex = 0;
    if ($("sort").value === "low" || $("sort").value === "high") arrange();
    else for (const item of $("list").children) {
      const { sra } = Data.index.traces[item.dataset.trace];
      item.querySelector(".sra").textContent = sra ? sraText(sra[state.view]) : "–";
    }
    hideTip();
    if (shown) paint();
    remember();
  };

  // ---- tokens

  /* The step's text once more, a span a token; nothing of its text is lost or moved. */
  const buildCells = (node) => {
    if (node.classList.contains("built") || !shown.cells) return;
    node.classList.add("built");
    const { start, end } = shown.steps[node.dataset.step];
    const { starts, ends } = shown.cells;
    let low = 0; // the first cell that ends behind the start of the step
    let high = ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (ends[middle] > start) high = middle; else low = middle + 1;
    }
    const parts = [];
    let at = start;
    for (let c = low; c < starts.length && starts[c] < end; c += 1) {
      const from = Math.max(starts[c], start);
      if (from > at) parts.push(shown.text.slice(at, from));
      at = Math.min(ends[c], end);
      const text = shown.text.slice(from, at);
      const cell = element("span", /^\n+$/.test(text) ? "cell line" : "cell", text);
      cell.dataset.cell = c;
      parts.push(cell);
    }
    if (at < end) parts.push(shown.text.slice(at, end));
    node.querySelector(".text").replaceChildren(...parts);
    paintCells(node);
  };

  const paintCells = (node) => {
    if (!hasTokens()) return;
    for (const cell of node.querySelectorAll(".cell")) {
      tone(cell, shown.mass(state.view, Number(cell.dataset.cell)), 4);
    }
  };

  const watchSteps = () => {
    watcher = new IntersectionObserver((seen) => {
      for (const { isIntersecting, target } of seen) if (isIntersecting) buildCells(target);
    }, { rootMargin: "200px" });
    if (!state.tokens) return;
    for (const node of $("steps").querySelectorAll(".step")) watcher.observe(node);
  };

  const toggleTokens = () => {
    if (!hasTokens() && !state.tokens) return;
    state.tokens = !state.tokens;
    document.body.classList.toggle("tokens", state.tokens);
    $("tokens").setAttribute("aria-pressed", String(state.tokens));
    watcher.disconnect();
    watchSteps();
  };

  /* The step that is looked at, by pointer or focus, shows its tokens. */
  const look = (node) => {
    for (const other of $("steps").querySelectorAll(".live")) if (other !== node) other.classList.remove("live");
    if (!node || !hasTokens()) return;
    buildCells(node);
    node.classList.add("live");
  };

  const ratioOf = (ratio) => (ratio < 0.1 ? ratio.toFixed(4) : ratio.toPrecision(2));
  const showTip = (cell) => {
    const c = Number(cell.dataset.cell);
    const ratio = shown.mass(state.view, c);
    const line = Data.index.traces[state.trace];
    const count = shown.cells.counts[c];
    const text = shown.text.slice(shown.cells.starts[c], shown.cells.ends[c]);
    $("tip-text").textContent = text.replace(/\n/g, "↵").replace(/ /g, "␣").replace(/\t/g, "⇥");
    const share = (100 * ratio * count) / line.tokens;
    const several = count > 1 ? ` (mean of ${count} tokens)` : "";
    $("tip-mass").textContent = `${ratio < 7e-5 ? "< 0.0001" : ratioOf(ratio)} × uniform${several}`
      + ` · ${share < 0.01 ? "< 0.01" : share.toFixed(2)} % of the attention`;
    const tip = $("tip");
    tip.hidden = false;
    const box = cell.getClientRects()[0] || cell.getBoundingClientRect();
    const left = Math.min(Math.max(box.left, 8), innerWidth - tip.offsetWidth - 8);
    const below = box.bottom + 8 + tip.offsetHeight < innerHeight;
    tip.style.left = `${left}px`;
    tip.style.top = `${below ? box.bottom + 6 : box.top - tip.offsetHeight - 6}px`;
  };

  const hideTip = () => {
    $("tip").hidden = true;
    document.querySelector(".cell.at")?.classList.remove("at");
  };

  const moveCell = (by) => {
    const node = stepNode(state.step);
    if (!node || !hasTokens()) return;
    look(node);
    const cells = node.querySelectorAll(".cell");
    state.cell = Math.min(Math.max(state.cell + by, 0), cells.length - 1);
    hideTip();
    cells[state.cell].classList.add("at");
    showTip(cells[state.cell]);
  };

  // ---- what events.js uses

  const remember = () => {
    const line = Data.index.traces[state.trace];
    const place = new URLSearchParams({ trace: line ? line.id : "", head: keyOf(state.view) });
    // A sandboxed frame may refuse; the page works without.
    try { history.replaceState(null, "", `#${place}`); } catch { /* no address to keep */ }
  };

  Object.assign(window, { Viewer: {
    state, arrange, moveTrace, showTrace, chooseStep, chooseView, toggleTokens, look, showTip, hideTip,
    moveCell, keyOf, setNames, findPrefix, sraText, plural, element,
  } });
})();
