/* What all parts of the page share: its state, elements, and how numbers are written.
   Text reaches the DOM as text alone (textContent, append); nothing parses it as markup. */
const Page = (() => {
  const $ = (id) => document.getElementById(id);
  const LABELS = { essential: "essential", redundant: "redundant", none: "no label" };
  const state = {
    trace: 0,
    view: 0, // number in Views.list
    beside: -1, // another, or none
    step: 0,
    cell: -1,
    tokens: false,
    colour: "uniform", // of Scale.NAMES
    out: new Set(), // labels whose steps are not shown
    find: "",
    listed: [],
    shown: null, // the unpacked trace
  };

  const element = (tag, className, ...parts) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...parts); // texts become text nodes
    return made;
  };

  const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  const capital = (text) => text[0].toUpperCase() + text.slice(1);
  /* Two decimals; of small numbers, by which some heads still rank, two digits. */
  const ratioText = (ratio) => {
    if (Number.isNaN(ratio)) return "–";
    if (ratio < 0.00095) return "< 0.001";
    return ratio < 0.095 ? ratio.toPrecision(2) : ratio.toFixed(ratio < 9.995 ? 2 : 0);
  };
  const sraText = (sra) => (sra === null || sra === undefined ? "–" : sra.toFixed(3));

  /* The views that are shown, and what ends the ids of their elements. */
  const columns = () => [state.view, state.beside].filter((number) => number >= 0).map((number) => Views.list[number]);
  const SUFFIX = ["", "-beside"];

  const scored = (view) => state.shown.models[view.model];
  const ratios = (view) => state.shown.steps.map((_, k) => scored(view).ratio(view.local, k));
  const hasTokens = (view) => Boolean(state.shown && scored(view).cells) && view.tokens;
  /* SRA of a trace by a view, or null. */
  const traceSra = (number, view) => {
    const { sra } = Data.index.traces[number].models[view.model];
    return sra ? sra[view.local] : null;
  };

  const labelOf = (step) => step.label || "none";
  const isOut = (k) => state.out.has(labelOf(state.shown.steps[k]));

  const tone = (node, { hue, a }) => {
    for (const name of ["above", "below", "graded"]) node.classList.toggle(name, name === hue);
    node.style.setProperty("--a", a.toFixed(3));
  };

  /* What is seen is kept in the address, so that it can be passed on; what is as always is left out. */
  const remember = () => {
    const line = Data.index.traces[state.trace];
    const place = new URLSearchParams({ trace: line ? line.id : "", head: Views.list[state.view].key });
    if (state.beside >= 0) place.set("beside", Views.list[state.beside].key);
    if (state.colour !== "uniform") place.set("colour", state.colour);
    if (state.out.size) place.set("without", [...state.out].join(","));
    if (state.find) place.set("find", state.find);
    // A sandboxed frame may refuse; the page works without.
    try { history.replaceState(null, "", `#${place}`); } catch { /* no address to keep */ }
  };

  return {
    $, LABELS, SUFFIX, state, element, plural, capital, ratioText, sraText, columns, scored, ratios, hasTokens,
    traceSra, labelOf, isOut, tone, remember,
  };
})();
