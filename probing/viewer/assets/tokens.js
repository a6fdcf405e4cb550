/* The attention of single tokens: made when a step is looked at, in the text of each picked head. */
const Tokens = (() => {
  const { $, state, element, columns, scored, hasTokens, tone } = Page;
  let watcher = null; // builds tokens of steps as they come into sight

  const viewOf = (pane) => columns()[Number(pane.dataset.column)];
  const stepOf = (pane) => Number(pane.closest(".step").dataset.step);

  /* The step's text once more, a span a token; nothing of its text is lost or moved. */
  const build = (item) => {
    for (const pane of item.querySelectorAll(".pane:not(.built)")) {
      if (!scored(viewOf(pane)).cells) continue;
      pane.classList.add("built");
      pane.querySelector(".text").replaceChildren(...spans(scored(viewOf(pane)).cells, state.shown.steps[stepOf(pane)]));
      paint(pane);
      Find.highlight();
    }
  };

  const spans = ({ starts, ends }, { start, end }) => {
    let low = 0; // the first cell that ends behind the start of the step
    let high = ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (ends[middle] > start) high = middle; else low = middle + 1;
    }
    const { text } = state.shown;
    const parts = [];
    let at = start;
    for (let c = low; c < starts.length && starts[c] < end; c += 1) {
      const from = Math.max(starts[c], start);
      if (from > at) parts.push(text.slice(at, from));
      at = Math.min(ends[c], end);
      const piece = text.slice(from, at);
      const cell = element("span", /^\n+$/.test(piece) ? "cell line" : "cell", piece);
      cell.dataset.cell = c;
      parts.push(cell);
    }
    if (at < end) parts.push(text.slice(at, end));
    return parts;
  };

  /* Masses of all tokens of the trace by a view: what ranks and the ends of a scale are taken from. */
  const masses = (view) => {
    const { cells, mass } = scored(view);
    return cells.starts.map((_, c) => mass(view.local, c));
  };
  let shades = { key: "", of: [] };
  const shadeOf = (pane) => {
    const key = [state.trace, state.view, state.beside, state.colour].join();
    if (shades.key !== key) {
      const all = columns().map((view) => (state.colour !== "uniform" && hasTokens(view) ? masses(view) : []));
      shades = { key, of: all.map((values) => Scale.of(state.colour, values, all, 4)) };
    }
    return shades.of[Number(pane.dataset.column)];
  };

  const paint = (pane) => {
    const view = viewOf(pane);
    if (!hasTokens(view)) return;
    const shade = shadeOf(pane);
    const { mass } = scored(view);
    for (const cell of pane.querySelectorAll(".cell")) tone(cell, shade(mass(view.local, Number(cell.dataset.cell))));
  };

  const any = () => columns().some(hasTokens);

  /* Panes of heads whose tokens are not in the page keep the colour of the step. */
  const enable = () => {
    for (const pane of $("steps").querySelectorAll(".pane")) pane.classList.toggle("no-tokens", !hasTokens(viewOf(pane)));
    $("tokens").disabled = !any();
  };

  const watch = () => {
    if (watcher) watcher.disconnect();
    watcher = new IntersectionObserver((seen) => {
      for (const { isIntersecting, target } of seen) if (isIntersecting) build(target);
    }, { rootMargin: "200px" });
    if (!state.tokens) return;
    for (const item of $("steps").querySelectorAll(".step")) watcher.observe(item);
  };

  const toggle = () => {
    if (!any() && !state.tokens) return;
    state.tokens = !state.tokens;
    document.body.classList.toggle("tokens", state.tokens);
    $("tokens").setAttribute("aria-pressed", String(state.tokens));
    watch();
  };

  /* The step that is looked at, by pointer or focus, shows its tokens. */
  const look = (item) => {
    for (const other of $("steps").querySelectorAll(".live")) if (other !== item) other.classList.remove("live");
    if (!item || !any()) return;
    build(item);
    item.classList.add("live");
  };

  const ratioOf = (ratio) => (ratio < 0.1 ? ratio.toFixed(4) : ratio.toPrecision(2));
  const showTip = (cell) => {
    const pane = cell.closest(".pane");
    if (pane.classList.contains("no-tokens")) return;
    const view = viewOf(pane);
    const { cells, mass } = scored(view);
    const c = Number(cell.dataset.cell);
    const ratio = mass(view.local, c);
    const count = cells.counts[c];
    const text = state.shown.text.slice(cells.starts[c], cells.ends[c]);
    $("tip-text").textContent = text.replace(/\n/g, "↵").replace(/ /g, "␣").replace(/\t/g, "⇥");
    const share = (100 * ratio * count) / Data.index.traces[state.trace].models[view.model].tokens;
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

  /* Through the tokens of the current step; with two heads first in the text of one, then the other. */
  const move = (by) => {
    const item = Steps.node(state.step);
    if (!item || item.hidden || !any()) return;
    look(item);
    const cells = item.querySelectorAll(".pane:not(.no-tokens) .cell");
    if (!cells.length) return;
    state.cell = Math.min(Math.max(state.cell + by, 0), cells.length - 1);
    hideTip();
    cells[state.cell].classList.add("at");
    showTip(cells[state.cell]);
  };

  return { build, paint, enable, watch, toggle, look, showTip, hideTip, move };
})();
