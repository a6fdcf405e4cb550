/* The head picker: two selects (a head, and one beside it), and the SRA of all heads as a grid. */
const Heads = (() => {
  const { $, state, element, plural, sraText } = Page;

  // ---- building

  const option = (value, text) => {
    const made = element("option", "", text);
    made.value = value;
    return made;
  };

  const group = (label, items) => {
    const made = element("optgroup", "", ...items);
    made.label = label;
    return made;
  };

  /* The model's name comes last: a select that is too narrow cuts off the end. */
  const optionsOf = (model, m) => {
    const [mean, ...heads] = Views.of(m);
    const [before, after] = Data.index.models.length > 1 ? [`${model.name}: `, ` · ${model.name}`] : ["", ""];
    const kept = (view) => (model.tokenViews && !view.tokens ? " · steps only" : "");
    const item = (view) => option(view.number, `${view.head.layer}.${view.head.head} · SRA ${sraText(view.sra)}${kept(view)}${after}`);
    const made = [
      option(mean.number, `head set · SRA ${sraText(mean.sra)}${after}`),
      group(`${before}in the set (its mean: head set)`, heads.filter((view) => view.inSet).map(item)),
    ];
    const others = heads.filter((view) => !view.inSet);
    if (others.length) made.push(group(`${before}others`, others.map(item)));
    return made;
  };

  const open = () => {
    const { models } = Data.index;
    $("head").append(...models.flatMap(optionsOf));
    $("beside").append(option(-1, "nothing beside it"), ...models.flatMap(optionsOf));
    buildGrid(0);
  };

  let gridModel = -1;
  const buildGrid = (m) => {
    if (gridModel === m) return;
    gridModel = m;
    const { grid } = Data.index.models[m];
    const views = new Map(Views.of(m).filter((view) => view.head).map((view) => [`${view.head.layer}.${view.head.head}`, view]));
    const best = Math.max(...grid.map((cell) => cell[2]), 0.75);
    const layers = [...new Set(grid.map((cell) => cell[0]))].sort((a, b) => b - a); // 0 at the bottom
    const widest = Math.max(...grid.map((cell) => cell[1])) + 1;
    $("grid").style.setProperty("--heads", widest);
    $("grid").style.setProperty("--layers", layers.length);
    const every = Math.max(1, Math.ceil(layers.length / 12)); // a number for some of the layers
    $("grid").replaceChildren(...layers.map((layer) => {
      const row = element("div", "layer", element("span", "name", layer % every ? "" : String(layer)));
      row.setAttribute("role", "row");
      for (const [, number, sra] of grid.filter((cell) => cell[0] === layer)) {
        row.append(cellOf(views.get(`${layer}.${number}`), `${layer}.${number}`, sra, best));
      }
      return row;
    }));
    const names = [...views.values()].filter((view) => view.inSet).map((view) => `${view.head.layer}.${view.head.head}`);
    const model = Data.index.models.length > 1 ? `${Data.index.models[m].name}. ` : "";
    const note = `${model}Layers upwards, heads across. SRA from 0.5 (pale) to ${best.toFixed(2)}; ringed: the head set, ${names.join(", ")}.`;
    const missing = grid.length - views.size;
    $("grid-legend").textContent = missing ? `${note} Scores of ${plural(missing, "head")} are left out for size.` : note;
  };

  const cellOf = (view, name, sra, best) => {
    const cell = element("button", view && view.inSet ? "cell-head in-set" : "cell-head");
    cell.type = "button";
    cell.setAttribute("role", "gridcell");
    cell.tabIndex = -1;
    cell.title = `head ${name}: SRA ${sraText(sra)}${view ? "" : " (not in this page)"}`;
    cell.setAttribute("aria-label", cell.title);
    cell.style.setProperty("--v", Math.max(0, ((sra || 0) - 0.5) / (best - 0.5)).toFixed(3));
    if (view) cell.dataset.view = view.number; else cell.disabled = true;
    return cell;
  };

  // ---- picking

  const choose = (view, beside = state.beside) => {
    const before = Page.columns();
    state.view = Math.min(Math.max(view, 0), Views.list.length - 1);
    state.beside = Math.min(beside, Views.list.length - 1);
    $("head").value = String(state.view);
    $("beside").value = String(state.beside);
    $("compare").setAttribute("aria-pressed", String(state.beside >= 0));
    buildGrid(Views.list[state.view].model);
    for (const cell of $("grid").querySelectorAll("[data-view]")) {
      const chosen = cell.dataset.view === String(state.view);
      cell.setAttribute("aria-selected", String(chosen));
      cell.classList.toggle("is-beside", cell.dataset.view === String(state.beside));
      cell.tabIndex = chosen ? 0 : -1;
    }
    // The grid stays in the order of Tab when the mean of the set, no cell of it, is picked.
    if (!Views.list[state.view].head) $("grid").querySelector("[data-view]").tabIndex = 0;
    List.update();
    Tokens.hideTip();
    if (state.shown) show(before);
    Page.remember();
  };

  /* Tokens are those of a model: panes are made anew where one is of another model, or comes or goes. */
  const show = (before) => {
    const models = (views) => views.map((view) => view.model).join();
    if (models(before) === models(Page.columns())) { Steps.paint(); return; }
    const current = Steps.hasCurrent();
    Steps.build();
    if (current) Steps.choose(state.step, "");
  };

  const chooseBeside = (beside) => choose(state.view, beside);
  const toggleBeside = () => chooseBeside(state.beside >= 0 ? -1 : Views.partner(Views.list[state.view]).number);
  const swap = () => { if (state.beside >= 0) choose(state.beside, state.view); };

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
    choose(Number(next.dataset.view));
    next.focus();
  };

  const wire = () => {
    $("head").addEventListener("change", () => choose(Number($("head").value)));
    $("beside").addEventListener("change", () => chooseBeside(Number($("beside").value)));
    $("head-back").addEventListener("click", () => choose(state.view - 1));
    $("head-on").addEventListener("click", () => choose(state.view + 1));
    $("swap").addEventListener("click", swap);
    $("compare").addEventListener("click", toggleBeside);
    $("grid").addEventListener("click", (event) => {
      const cell = event.target.closest("[data-view]");
      if (!cell) return;
      if (event.shiftKey) chooseBeside(Number(cell.dataset.view)); else choose(Number(cell.dataset.view));
    });
    $("grid").addEventListener("keydown", moveInGrid);
  };

  return { open, choose, chooseBeside, toggleBeside, swap, wire };
})();
