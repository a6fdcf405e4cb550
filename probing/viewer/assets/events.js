/* Keys, pointer, colours of the page, and the start. */
(() => {
  const { $, state, plural } = Page;

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
  const label = (place) => Steps.toggleLabel(["essential", "redundant", "none"][place]);
  const nextColour = () => {
    const names = Object.keys(Scale.NAMES);
    Steps.chooseColour(names[(names.indexOf(state.colour) + 1) % names.length]);
  };

  const KEYS = {
    j: () => List.move(1),
    k: () => List.move(-1),
    ArrowRight: () => List.move(1),
    ArrowLeft: () => List.move(-1),
    n: () => Steps.move(1),
    p: () => Steps.move(-1),
    l: () => Heads.choose(state.view + 1),
    h: () => Heads.choose(state.view - 1),
    L: () => { if (state.beside >= 0) Heads.chooseBeside(state.beside + 1); },
    H: () => { if (state.beside >= 0) Heads.chooseBeside(Math.max(state.beside - 1, 0)); },
    b: () => Heads.toggleBeside(),
    x: () => Heads.swap(),
    ".": () => Tokens.move(1),
    ",": () => Tokens.move(-1),
    t: () => Tokens.toggle(),
    c: nextColour,
    1: () => label(0),
    2: () => label(1),
    3: () => label(2),
    f: () => $("find").focus(),
    g: () => Find.go(1, "focus"),
    G: () => Find.go(-1, "focus"),
    e: () => $("export").click(),
    d: toggleTheme,
    "/": () => $("search").focus(),
    "?": help,
  };

  const isField = (target) => target === $("search") || target === $("find");

  const onKey = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { target } = event;
    if (event.key === "Escape") {
      Tokens.hideTip();
      if (isField(target)) $("main").focus();
      return;
    }
    if (isField(target) || $("exporting").open || ($("help").open && event.key !== "?")) return;
    // A select keeps its arrows; letters would otherwise look for an option.
    const arrows = event.key.startsWith("Arrow");
    if (arrows && target.tagName === "SELECT") return;
    const action = KEYS[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  };

  const inFind = (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    Find.go(event.shiftKey ? -1 : 1, "scroll"); // the next Enter goes on
  };

  const inList = (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    List.move(by);
  };

  // ---- pointer and focus; one listener for all steps

  const wireSteps = () => {
    const steps = $("steps");
    const current = () => steps.querySelector(".step:focus");
    steps.addEventListener("pointerover", (event) => {
      Tokens.look(event.target.closest(".step"));
      Tokens.hideTip();
      const cell = event.target.closest(".cell");
      if (cell) Tokens.showTip(cell);
    });
    steps.addEventListener("pointerleave", () => {
      Tokens.look(current());
      Tokens.hideTip();
    });
    steps.addEventListener("focusin", (event) => {
      const item = event.target.closest(".step");
      Tokens.look(item);
      if (item) Steps.choose(Number(item.dataset.step), "");
    });
    steps.addEventListener("focusout", () => {
      Tokens.look(null);
      Tokens.hideTip();
    });
    const jump = (event) => {
      const item = event.target.closest("[data-step]:not(.out)");
      if (item) Steps.choose(Number(item.dataset.step), "focus");
    };
    steps.addEventListener("click", (event) => {
      const item = event.target.closest(".step");
      // Not while text is being selected.
      if (item && getSelection().isCollapsed) Steps.choose(Number(item.dataset.step), "");
    });
    $("strips").addEventListener("click", jump);
    for (const suffix of Page.SUFFIX) $(`ranks${suffix}`).addEventListener("click", jump);
    addEventListener("scroll", Tokens.hideTip, { passive: true });
  };

  const wire = () => {
    $("search").addEventListener("input", List.arrange);
    $("filter").addEventListener("change", List.arrange);
    $("sort").addEventListener("change", List.arrange);
    $("list").addEventListener("keydown", inList);
    $("list").addEventListener("click", (event) => {
      const item = event.target.closest("[data-trace]");
      if (item) Steps.showTrace(Number(item.dataset.trace));
    });
    $("back").addEventListener("click", () => List.move(-1));
    $("on").addEventListener("click", () => List.move(1));
    $("tokens").addEventListener("click", Tokens.toggle);
    $("colour").addEventListener("change", () => Steps.chooseColour($("colour").value));
    $("labels").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) Steps.toggleLabel(button.dataset.label);
    });
    $("find").addEventListener("input", () => Find.write($("find").value));
    $("find").addEventListener("keydown", inFind);
    $("find-back").addEventListener("click", () => Find.go(-1, "scroll"));
    $("find-on").addEventListener("click", () => Find.go(1, "scroll"));
    $("dark").addEventListener("click", toggleTheme);
    $("ask").addEventListener("click", help);
    document.addEventListener("keydown", onKey);
    wish.addEventListener("change", followWish);
    Heads.wire();
    Export.wire();
    wireSteps();
  };

  // ---- the start

  const about = () => {
    const { kfh, models, traces, alone } = Data.index;
    const parts = models.flatMap((model) => [
      models.length > 1 ? `${model.name}:` : "",
      traces.length < model.scored ? `${traces.length} of ${plural(model.scored, "scored trace")}.` : `All ${plural(model.scored, "scored trace")}.`,
      `Step scores of ${model.heads.length} of ${plural(model.grid.length, "head")}, to 0.02 %.`,
      model.tokenViews
        ? `Tokens of the head set and of ${model.tokenViews - 1} heads, to 5 %.`
        : "Without the attention of single tokens (made with --no-tokens).",
      model.answer === "all" ? "" : `Answer tokens: ${model.answer}.`,
    ]);
    if (alone) parts.push(`Left out: ${plural(alone, "trace")} that not every probe scored.`);
    return [...parts, `Made by kfh ${kfh.version}, ${kfh.made}.`].filter(Boolean).join(" ");
  };

  /* What the address says; two models stand beside each other unless it says otherwise. */
  const restore = () => {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const view = Views.byKey(wanted.get("head")) || Views.list[0];
    let beside = Views.byKey(wanted.get("beside"));
    if (!wanted.has("head") && Data.index.models.length > 1) beside = Views.partner(view);
    state.colour = Object.hasOwn(Scale.NAMES, wanted.get("colour")) ? wanted.get("colour") : "uniform";
    state.out = new Set((wanted.get("without") || "").split(",").filter((name) => Object.hasOwn(Page.LABELS, name)));
    state.find = wanted.get("find") || "";
    $("find").value = state.find;
    const trace = Data.index.traces.findIndex((line) => line.id === wanted.get("trace"));
    Object.assign(state, { view: view.number, beside: beside ? beside.number : -1 });
    List.arrange();
    if (Data.index.traces.length) Steps.showTrace(Math.max(trace, 0));
    Heads.choose(state.view, state.beside);
  };

  const start = () => {
    Data.open();
    Views.open();
    $("title").textContent = Data.index.title;
    $("about").textContent = about();
    Heads.open();
    for (const [name, text] of Object.entries(Scale.NAMES)) $("colour").append(new Option(text, name));
    wire();
    followWish();
    List.findPrefix();
    restore();
    addEventListener("hashchange", restore); // an address typed or pasted into the open page
    document.body.dataset.ready = "true";
  };

  followWish(); // before the data is parsed, so that a dark page does not flash
  document.addEventListener("DOMContentLoaded", start);
})();
