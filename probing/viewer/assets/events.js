/* The head picker, keys, pointer, colours of the page, and the start. */
(() => {
  const $ = (id) => document.getElementById(id);
  const { state, element, sraText, plural } = Viewer;

  // ---- the head picker: a select, and the SRA of all heads as a grid

  const option = (view, text) => {
    const made = element("option", "", text);
    made.value = view;
    return made;
  };

  const buildSelect = () => {
    const { heads, set, setSra, tokenViews } = Data.index;
    const names = heads.map((h, i) => {
      const kept = tokenViews && i + 1 >= tokenViews ? " · steps only" : "";
      return option(i + 1, `${h.layer}.${h.head} · SRA ${sraText(h.sra)}${kept}`);
    });
    const group = (label, items) => {
      const made = element("optgroup", "", ...items);
      made.label = label;
      return made;
    };
    $("head").append(option(0, `head set · SRA ${sraText(setSra)}`));
    $("head").append(group("In the set (its mean: head set)", names.slice(0, set)));
    if (names.length > set) $("head").append(group("Others", names.slice(set)));
  };

  const buildGrid = () => {
    const { grid, heads, set } = Data.index;
    const views = new Map(heads.map((h, i) => [`${h.layer}.${h.head}`, i + 1]));
    const best = Math.max(...grid.map((cell) => cell[2]), 0.75);
    const layers = [...new Set(grid.map((cell) => cell[0]))].sort((a, b) => b - a); // 0 at the bottom
    const widest = Math.max(...grid.map((cell) => cell[1])) + 1;
    $("grid").style.setProperty("--heads", widest);
    $("grid").style.setProperty("--layers", layers.length);
    const every = Math.max(1, Math.ceil(layers.length / 12)); // a number for some of the layers
    for (const layer of layers) {
      const row = element("div", "layer", element("span", "name", layer % every ? "" : String(layer)));
      row.setAttribute("role", "row");
      for (const [, number, sra] of grid.filter((cell) => cell[0] === layer)) {
        const view = views.get(`${layer}.${number}`);
        const cell = element("button", view && view <= set ? "cell-head in-set" : "cell-head");
        cell.type = "button";
        cell.setAttribute("role", "gridcell");
        cell.tabIndex = -1;
        cell.title = `head ${layer}.${number}: SRA ${sraText(sra)}${view ? "" : " (not in this page)"}`;
        cell.setAttribute("aria-label", cell.title);
        cell.style.setProperty("--v", Math.max(0, ((sra || 0) - 0.5) / (best - 0.5)).toFixed(3));
        if (view) cell.dataset.view = view; else cell.disabled = true;
        row.append(cell);
      }
      $("grid").append(row);
    }
    const note = `Layers upwards, heads across. SRA from 0.5 (pale) to ${best.toFixed(2)}; ringed: the head set, ${Viewer.setNames().join(", ")}.`;
    const missing = grid.length - heads.length;
    $("grid-legend").textContent = missing ? `${note} Scores of ${plural(missing, "head")} are left out for size.` : note;
  };

  const moveInGrid = (event) => {
    const cell = event.target.closest("[data-view]");
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!cell || !step) return;
    event.preventDefault();
    event.stopPropagation(); // the same keys change the trace elsewhere
    const rows = [...$("grid").children];
    const row = rows.indexOf(cell.parentElement);
    const column = [...cell.parentElement.children].indexOf(cell);
    const next = rows[row + step[0]] && rows[row + step[0]].children[column + step[1]];
    if (!next || !next.dataset.view) return;
    Viewer.chooseView(Number(next.dataset.view));
    next.focus();
  };

  // ---- light and dark

  const setTheme = (dark) => {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    const button = $("dark"); // not there yet where this runs in the head
    if (button) button.setAttribute("aria-pressed", String(dark));
  };

  const isDark = () => document.documentElement.dataset.theme === "dark";
  const wish = matchMedia("(prefers-color-scheme: dark)");

  const followWish = () => {
    // A browser may keep no store for a file; then the system's wish counts alone.
    let kept = null;
    try { kept = localStorage.getItem("kfh-theme"); } catch { /* none */ }
    setTheme(kept ? kept === "dark" : wish.matches);
  };

  const toggleTheme = () => {
    setTheme(!isDark());
    try { localStorage.setItem("kfh-theme", isDark() ? "dark" : "light"); } catch { /* none */ }
  };

  // ---- keys

  const help = () => ($("help").open ? $("help").close() : $("help").showModal());

  const KEYS = {
    j: () => Viewer.moveTrace(1),
    k: () => Viewer.moveTrace(-1),
    ArrowRight: () => Viewer.moveTrace(1),
    ArrowLeft: () => Viewer.moveTrace(-1),
    n: () => Viewer.chooseStep(document.querySelector("[aria-current]") ? state.step + 1 : state.step, true),
    p: () => Viewer.chooseStep(state.step - 1, true),
    l: () => Viewer.chooseView(state.view + 1),
    h: () => Viewer.chooseView(state.view - 1),
    ".": () => Viewer.moveCell(1),
    ",": () => Viewer.moveCell(-1),
    t: () => Viewer.toggleTokens(),
    d: toggleTheme,
    "/": () => $("search").focus(),
    "?": help,
  };

  const onKey = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { target } = event;
    if (event.key === "Escape") {
      Viewer.hideTip();
      if (target === $("search")) $("main").focus();
      return;
    }
    if (target === $("search") || ($("help").open && event.key !== "?")) return;
    // A select keeps its arrows; letters would otherwise look for an option.
    const arrows = event.key.startsWith("Arrow");
    if (arrows && target.tagName === "SELECT") return;
    const action = KEYS[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  };

  const inList = (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    Viewer.moveTrace(by);
  };

  // ---- pointer and focus; one listener for all steps

  const wireSteps = () => {
    const steps = $("steps");
    const current = () => steps.querySelector(".step:focus");
    steps.addEventListener("pointerover", (event) => {
      Viewer.look(event.target.closest(".step"));
      Viewer.hideTip();
      const cell = event.target.closest(".cell");
      if (cell && !document.body.classList.contains("no-tokens")) Viewer.showTip(cell);
    });
    steps.addEventListener("pointerleave", () => {
      Viewer.look(current());
      Viewer.hideTip();
    });
    steps.addEventListener("focusin", (event) => {
      const node = event.target.closest(".step");
      Viewer.look(node);
      if (node) Viewer.chooseStep(Number(node.dataset.step), false);
    });
    steps.addEventListener("focusout", () => {
      Viewer.look(null);
      Viewer.hideTip();
    });
    const jump = (event) => {
      const node = event.target.closest("[data-step]");
      if (node) Viewer.chooseStep(Number(node.dataset.step), true);
    };
    steps.addEventListener("click", (event) => {
      const node = event.target.closest(".step");
      // Not while text is being selected.
      if (node && getSelection().isCollapsed) Viewer.chooseStep(Number(node.dataset.step), false);
    });
    $("strip").addEventListener("click", jump);
    $("ranks").addEventListener("click", jump);
    addEventListener("scroll", Viewer.hideTip, { passive: true });
  };

  const wire = () => {
    $("search").addEventListener("input", Viewer.arrange);
    $("filter").addEventListener("change", Viewer.arrange);
    $("sort").addEventListener("change", Viewer.arrange);
    $("list").addEventListener("keydown", inList);
    $("list").addEventListener("click", (event) => {
      const item = event.target.closest("[data-trace]");
      if (item) Viewer.showTrace(Number(item.dataset.trace));
    });
    $("head").addEventListener("change", () => Viewer.chooseView(Number($("head").value)));
    $("head-back").addEventListener("click", () => Viewer.chooseView(state.view - 1));
    $("head-on").addEventListener("click", () => Viewer.chooseView(state.view + 1));
    $("grid").addEventListener("click", (event) => {
      const cell = event.target.closest("[data-view]");
      if (cell) Viewer.chooseView(Number(cell.dataset.view));
    });
    $("grid").addEventListener("keydown", moveInGrid);
    $("back").addEventListener("click", () => Viewer.moveTrace(-1));
    $("on").addEventListener("click", () => Viewer.moveTrace(1));
    $("tokens").addEventListener("click", Viewer.toggleTokens);
    $("dark").addEventListener("click", toggleTheme);
    $("ask").addEventListener("click", help);
    document.addEventListener("keydown", onKey);
    wish.addEventListener("change", followWish);
    wireSteps();
  };

  const about = () => {
    const { kfh, traces, scored, heads, grid, tokenViews, answer } = Data.index;
    const parts = [
      traces.length < scored ? `${traces.length} of ${plural(scored, "scored trace")}.` : `All ${plural(scored, "scored trace")}.`,
      `Step scores of ${heads.length} of ${plural(grid.length, "head")}, to 0.02 %.`,
      tokenViews
        ? `Tokens of the head set and of ${tokenViews - 1} heads, to 5 %.`
        : "Without the attention of single tokens (made with --no-tokens).",
      answer === "all" ? "" : `Answer tokens: ${answer}.`,
      `Made by kfh ${kfh.version}, ${kfh.made}.`,
    ];
    return parts.filter(Boolean).join(" ");
  };

  const start = () => {
    Data.open();
    $("title").textContent = Data.index.title;
    $("about").textContent = about();
    buildSelect();
    buildGrid();
    wire();
    followWish();
    const wanted = new URLSearchParams(location.hash.slice(1));
    const trace = Data.index.traces.findIndex((line) => line.id === wanted.get("trace"));
    const view = Data.index.heads.findIndex((h) => `${h.layer}.${h.head}` === wanted.get("head"));
    Viewer.findPrefix();
    Viewer.arrange();
    Viewer.chooseView(view + 1);
    if (Data.index.traces.length) Viewer.showTrace(Math.max(trace, 0));
    document.body.dataset.ready = "true";
  };

  followWish(); // before the data is parsed, so that a dark page does not flash
  document.addEventListener("DOMContentLoaded", start);
})();
