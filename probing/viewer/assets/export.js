/* What is seen, as files made in the page: the shown steps as CSV or JSON, the strip as SVG or PNG. */
const Export = (() => {
  const { $, LABELS, state, capital, columns, ratios, scored, sraText, labelOf, isOut } = Page;

  // ---- the shown steps

  /* Offsets count characters, as trace files do; the page's own count UTF-16 units. */
  const characters = (places) => {
    const { text } = state.shown;
    let [at, count] = [0, 0];
    return places.map((place) => {
      count += [...text.slice(at, place)].length;
      at = place;
      return count;
    });
  };

  const rows = () => {
    const { shown } = state;
    const offsets = characters(shown.steps.flatMap((step) => [step.start, step.end]));
    const sides = columns().map((view) => ({ view, values: ratios(view), ranks: Scale.ranks(ratios(view)), tokens: scored(view).tokens }));
    const known = (value) => (Number.isNaN(value) ? null : value);
    return shown.steps.map((step, k) => {
      const row = {
        trace: Data.index.traces[state.trace].id,
        step: k + 1,
        start: offsets[2 * k],
        end: offsets[2 * k + 1],
        label: step.label,
        kind: step.kind,
        phrase: step.phrase,
      };
      sides.forEach(({ view, values, ranks, tokens }, side) => {
        const before = side ? "beside_" : "";
        row[`${before}head`] = view.key;
        row[`${before}tokens`] = tokens[k];
        // Scores are kept to 0.015 %: more digits would say nothing.
        row[`${before}score`] = known(Number(values[k].toPrecision(5)));
        row[`${before}rank`] = known(ranks[k]);
      });
      return { ...row, text: shown.text.slice(step.start, step.end) };
    }).filter((_, k) => !isOut(k));
  };

  /* RFC 4180: quotes doubled, a field with a comma, a quote or a line break in quotes. */
  const csv = () => {
    const field = (value) => {
      const text = value === null ? "" : String(value);
      return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
    };
    const table = rows();
    const lines = [Object.keys(table[0] || {}), ...table.map(Object.values)];
    return lines.map((line) => `${line.map(field).join(",")}\r\n`).join("");
  };

  const json = () => {
    const heads = columns().map(({ key, model }) => ({ key, model: Data.index.models[model].name }));
    const { kfh, title, traces } = Data.index;
    const header = { ...kfh, kind: "viewer steps", exported: new Date().toISOString(), title };
    const labels = Object.keys(LABELS).filter((label) => !state.out.has(label)).map((label) => LABELS[label]);
    const content = { kfh: header, trace: traces[state.trace].id, heads, labels, unit: "S / S_base", steps: rows() };
    return `${JSON.stringify(content, null, 1)}\n`;
  };

  // ---- the strip as a picture

  const WIDEST = 960;
  const LEFT = 50;
  const HIGH = 150; // a strip with its title
  const SHORT = 80; // letters of an id
  const escape = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`)
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\ufffd"); // no XML at all
  const tag = (name, values, inner = "") => `<${name}${Object.entries(values).map(([key, value]) => ` ${key}="${escape(value)}"`).join("")}>${inner}</${name}>`;

  /* Colours of the page as it is now, light or dark. */
  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(`--${name}`).trim();
    const triple = (name) => `rgb(${get(name).split(/\s+/).join(",")})`;
    return {
      paper: get("paper"), ink: get("ink"), muted: get("muted"), line: get("line"), accent: get("accent"),
      above: triple("above"), below: triple("below"), graded: triple("graded"), "": get("line"),
    };
  };

  const say = (x, y, text, fill, more = {}) => tag("text", { x, y, fill, "font-size": 12, ...more }, escape(text));

  const barWidth = () => Math.min((WIDEST - LEFT - 30) / Math.max(state.shown.steps.length, 1), 44);

  const bars = (view, values, all, top, colour) => {
    const shade = Scale.of(state.colour, values, all, 3);
    const wide = barWidth();
    const both = state.colour === "uniform"; // up and down from a line in the middle
    const [zero, full] = both ? [top + 68, 42] : [top + 110, 84];
    const every = Math.ceil(values.length / 30);
    const drawn = values.map((ratio, k) => {
      const { hue, a } = shade(ratio);
      const label = labelOf(state.shown.steps[k]);
      const high = Math.max(full * a, hue ? 1.5 : 0);
      const x = LEFT + k * wide;
      const dot = { cx: x + wide / 2, cy: top + 122, r: Math.min(3, wide / 3) };
      const look = label === "essential" ? { fill: colour.accent } : { fill: "none", stroke: colour.muted };
      return tag("g", { opacity: isOut(k) ? 0.15 : 1 }, tag("rect", {
        x: (x + wide * 0.1).toFixed(2), y: (hue === "below" ? zero : zero - high).toFixed(2),
        width: (wide * 0.8).toFixed(2), height: high.toFixed(2), fill: colour[hue],
      }) + (label === "none" ? "" : tag("circle", { ...dot, ...look }))
        + (k % every ? "" : say(dot.cx, top + 138, k + 1, colour.muted, { "text-anchor": "middle", "font-size": 9 })));
    });
    const ticks = { uniform: [["≥ 8", 1], ["1", 0], ["≤ ⅛", -1]], rank: [["first", 1], ["last", 0]] }[state.colour]
      || Scale.ends(all).map((end, i) => [Page.ratioText(end), i]);
    const axis = ticks.map(([text, place]) => say(44, zero - full * place + 4, text, colour.muted, { "text-anchor": "end", "font-size": 10 }));
    const line = tag("path", { d: `M${LEFT} ${zero}H${LEFT + wide * values.length}`, stroke: colour.line });
    const sra = Page.traceSra(state.trace, view);
    const title = `${capital(view.name)}${sra === null ? "" : `: SRA ${sraText(sra)} on this trace`}`;
    return say(LEFT, top + 14, title, colour.ink, { "font-weight": 600 }) + line + axis.join("") + drawn.join("");
  };

  const svg = () => {
    const colour = colours();
    const all = columns().map(ratios);
    const wide = Math.max(LEFT + Math.ceil(barWidth() * state.shown.steps.length) + 30, 640);
    const [high, low] = [44 + HIGH * all.length + 22, 44 + HIGH * all.length + 12];
    const { id } = Data.index.traces[state.trace];
    const name = id.length > SHORT ? `${id.slice(0, SHORT)}…` : id;
    const title = say(LEFT, 26, name, colour.ink, { "font-size": 14, "font-weight": 600 });
    const unit = { uniform: "score over that of uniform attention", log: "score, on a logarithmic scale", rank: "rank of the score in the trace" }[state.colour];
    const dot = (x, look) => tag("circle", { cx: x, cy: low - 4, r: 3, ...look });
    const legend = dot(LEFT + 4, { fill: colour.accent }) + say(LEFT + 12, low, "essential", colour.muted)
      + dot(LEFT + 88, { fill: "none", stroke: colour.muted }) + say(LEFT + 96, low, "redundant", colour.muted)
      + say(LEFT + 180, low, `Bars: ${unit}${state.out.size ? "; pale: not shown in the page" : ""}.`, colour.muted);
    const parts = columns().map((view, side) => bars(view, all[side], all, 44 + HIGH * side, colour));
    return tag("svg", {
      xmlns: "http://www.w3.org/2000/svg", width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, "font-family": "system-ui, sans-serif",
    }, tag("rect", { width: wide, height: high, fill: colour.paper }) + title + parts.join("") + legend);
  };

  /* The SVG drawn on a canvas, two dots a point. */
  const png = async () => {
    const picture = new Image();
    picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg())}`;
    await picture.decode();
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: 2 * picture.naturalWidth, height: 2 * picture.naturalHeight });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
  };

  // ---- saving

  const TYPES = { csv: "text/csv", json: "application/json", svg: "image/svg+xml" };
  const save = async (kind) => {
    const content = kind === "png" ? await png() : new Blob([{ csv, json, svg }[kind]()], { type: TYPES[kind] });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(content);
    const names = [Data.index.traces[state.trace].id, ...columns().map((view) => view.key)];
    link.download = `${names.join("_").replace(/[^\p{L}\p{N}._-]+/gu, "-")}.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000); // the browser reads it after the click
    $("saved").textContent = `Saved as ${link.download}.`;
  };

  const wire = () => {
    $("export").addEventListener("click", () => { $("saved").textContent = ""; $("exporting").showModal(); });
    for (const button of $("exporting").querySelectorAll("[data-kind]")) {
      button.addEventListener("click", () => save(button.dataset.kind));
    }
  };

  return { rows, csv, json, svg, wire };
})();
