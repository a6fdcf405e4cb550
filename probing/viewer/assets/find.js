/* Search in the shown steps of the trace: a count, next and previous, and the places marked. */
const Find = (() => {
  const { $, state, plural, isOut } = Page;
  let hits = []; // numbers of steps that hold the text
  let pattern = null;

  const escaped = (text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");

  const search = () => {
    const { shown } = state;
    // A pattern, since lower case can be longer than the text itself and would move the places.
    pattern = state.find ? new RegExp(escaped(state.find), "giu") : null;
    const holds = ({ start, end }, k) => !isOut(k) && shown.text.slice(start, end).search(pattern) >= 0;
    hits = pattern ? shown.steps.map((step, k) => (holds(step, k) ? k : -1)).filter((k) => k >= 0) : [];
    const marked = new Set(hits);
    for (const item of document.querySelectorAll(".step, #strips .bar")) {
      item.classList.toggle("hit", marked.has(Number(item.dataset.step)));
    }
    for (const id of ["find-back", "find-on"]) $(id).disabled = !hits.length;
    highlight();
    count();
  };

  const count = () => {
    const place = Steps.hasCurrent() ? hits.indexOf(state.step) : -1;
    const all = hits.length ? plural(hits.length, "step") : "no step";
    $("find-count").textContent = !pattern ? "" : place < 0 ? all : `${place + 1} of ${all}`;
  };

  /* Marked by ranges over the text, where the browser can; the text and its tokens stay as they are. */
  const highlight = () => {
    if (!window.CSS || !CSS.highlights) return;
    CSS.highlights.delete("hit");
    if (!hits.length) return;
    const ranges = [];
    for (const k of hits) for (const text of Steps.node(k).querySelectorAll(".text")) ranges.push(...rangesIn(text));
    CSS.highlights.set("hit", new Highlight(...ranges));
  };

  const rangesIn = (element) => {
    const nodes = [];
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    for (let at = 0; walker.nextNode(); at += walker.currentNode.length) nodes.push([at, walker.currentNode]);
    const place = (offset, isEnd) => nodes.find(([at, node]) => (isEnd ? offset <= at + node.length : offset < at + node.length));
    return [...element.textContent.matchAll(pattern)].map((match) => {
      const [from, to] = [match.index, match.index + match[0].length];
      const [[first, start], [last, end]] = [place(from, false), place(to, true)];
      const range = document.createRange();
      range.setStart(start, from - first);
      range.setEnd(end, to - last);
      return range;
    });
  };

  const write = (text) => {
    state.find = text;
    search();
    Page.remember();
  };

  /* The next (1) or previous (-1) step that holds the text, round the ends. */
  const go = (by, how) => {
    if (!hits.length) return;
    const start = Steps.hasCurrent() ? state.step : by > 0 ? -1 : Infinity;
    const next = by > 0 ? hits.find((k) => k > start) ?? hits[0] : hits.findLast((k) => k < start) ?? hits[hits.length - 1];
    Steps.choose(next, how);
  };

  return { search, highlight, count, write, go };
})();
