/* The list of traces: search, filter, order. */
const List = (() => {
  const { $, state, element, plural, sraText, traceSra } = Page;

  const matches = (line) => {
    const wanted = $("filter").value;
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = `${line.id} ${line.problem}`.toLowerCase();
    return (wanted === "all" || String(line.correct) === wanted) && words.every((w) => text.includes(w));
  };

  /* What the list is sorted by, smallest first; null: the order of the file. */
  const sortKeys = {
    file: () => null,
    long: (i) => -Data.index.traces[i].models[Views.list[state.view].model].tokens,
    low: (i) => traceSra(i, Views.list[state.view]) ?? Infinity,
    high: (i) => -(traceSra(i, Views.list[state.view]) ?? -Infinity),
    differ: (i) => {
      const [first, second] = Page.columns().map((view) => traceSra(i, view));
      return typeof first === "number" && typeof second === "number" ? -Math.abs(first - second) : Infinity;
    },
  };

  const arrange = () => {
    const { traces } = Data.index;
    const key = sortKeys[$("sort").value];
    state.listed = traces.map((_, i) => i).filter((i) => matches(traces[i]));
    if ($("sort").value !== "file") {
      const keys = traces.map((_, i) => key(i));
      state.listed.sort((a, b) => (keys[a] === keys[b] ? a - b : keys[a] - keys[b]));
    }
    $("list").replaceChildren(...state.listed.map(entry));
    const all = traces.length;
    $("count").textContent = state.listed.length === all
      ? plural(all, "trace") : `${state.listed.length} of ${plural(all, "trace")}`;
    mark();
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
    const item = element("li", "", mark, name, element("span", "sra"), element("bdi", "about", line.problem.slice(0, 160)));
    item.id = `entry-${i}`;
    item.dataset.trace = i;
    item.setAttribute("role", "option");
    writeSra(item);
    return item;
  };

  const writeSra = (item) => {
    const i = Number(item.dataset.trace);
    const node = item.querySelector(".sra");
    node.textContent = Page.columns().map((view) => sraText(traceSra(i, view))).join(" ");
    node.title = `SRA of this trace by ${Page.columns().map((view) => view.name).join(" and by ")}`;
  };

  /* Other heads are picked: other figures, and perhaps another order. */
  const update = () => {
    $("sort").querySelector('[value="differ"]').disabled = state.beside < 0;
    if (state.beside < 0 && $("sort").value === "differ") $("sort").value = "file";
    if (["low", "high", "differ"].includes($("sort").value)) arrange();
    else for (const item of $("list").children) writeSra(item);
  };

  const mark = () => {
    for (const item of $("list").children) {
      const chosen = Number(item.dataset.trace) === state.trace;
      item.setAttribute("aria-selected", String(chosen));
      if (chosen) item.scrollIntoView({ block: "nearest" });
    }
    const place = state.listed.indexOf(state.trace);
    $("list").setAttribute("aria-activedescendant", place < 0 ? "" : `entry-${state.trace}`);
    $("place").textContent = place < 0 ? "not in the list" : `${place + 1} of ${state.listed.length}`;
  };

  const move = (by) => {
    if (!state.listed.length) return;
    const place = state.listed.indexOf(state.trace);
    const last = state.listed.length - 1;
    const next = place < 0 ? 0 : Math.min(Math.max(place + by, 0), last);
    if (state.listed[next] !== state.trace) Steps.showTrace(state.listed[next]);
  };

  return { arrange, findPrefix, update, mark, move };
})();
