"use strict";
/* What the page holds, unpacked when it is asked for; the counterpart of pack.py. No DOM but reading. */
const Data = (() => {
  const block = (id) => JSON.parse(document.getElementById(id).textContent);

  const bytes = (base64) => {
    const text = atob(base64);
    const out = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) out[i] = text.charCodeAt(i);
    return out;
  };

  // Bytes are put together by hand: a Uint16Array over them would depend on the machine.
  const words = (base64) => {
    const raw = bytes(base64);
    const out = new Uint16Array(raw.length / 2);
    for (let i = 0; i < out.length; i += 1) out[i] = raw[2 * i] | (raw[2 * i + 1] << 8);
    return out;
  };

  // One table a scale, since a power for each of a million tokens would be felt.
  const table = ([low, high, last]) => {
    const out = new Float64Array(last + 1);
    out[0] = NaN;
    for (let code = 1; code <= last; code += 1) {
      out[code] = 2 ** (low + ((code - 1) / (last - 1)) * (high - low));
    }
    return out;
  };

  /* Cells from variable-length numbers: starts, ends (UTF-16 units of the text), tokens in each. */
  const cells = (base64) => {
    const raw = bytes(base64);
    const starts = [];
    const ends = [];
    const counts = [];
    let place = 0;
    let at = 0;
    const number = () => {
      let value = 0;
      let shift = 0;
      for (;;) {
        const byte = raw[place];
        place += 1;
        value += (byte & 127) * 2 ** shift;
        if (byte < 128) return value;
        shift += 7;
      }
    };
    while (place < raw.length) {
      const head = number();
      if (head & 1) at += number();
      starts.push(at);
      at += Math.floor(head / 4);
      ends.push(at);
      counts.push(head & 2 ? number() : 1);
    }
    return { starts, ends, counts };
  };

  const index = { traces: [] };
  const scales = {};

  const open = () => {
    Object.assign(index, block("index"));
    for (const [name, scale] of Object.entries(index.scales)) scales[name] = table(scale);
    for (const line of index.traces) {
      // Codes of SRA start at 1; a trace without a pair has none.
      line.sra = line.sra ? Array.from(words(line.sra), (code) => (code - 1) / 65534) : null;
    }
  };

  /* The last few traces stay unpacked, so that going back is free and memory stays bounded. */
  const kept = new Map();
  const trace = (number) => {
    if (!kept.has(number)) kept.set(number, unpack(number));
    const found = kept.get(number);
    kept.delete(number);
    kept.set(number, found);
    if (kept.size > 4) kept.delete(kept.keys().next().value);
    return found;
  };

  const unpack = (number) => {
    const raw = block(`trace-${number}`);
    const steps = raw.steps.map(([start, end, label, kind, phrase, tokens]) => (
      { start, end, label, kind, phrase, tokens }
    ));
    const scores = words(raw.scores);
    const held = raw.cells ? cells(raw.cells) : null;
    const mass = raw.mass ? bytes(raw.mass) : null;
    return {
      ...raw,
      steps,
      cells: held,
      /* Ratio S / S_base of step k by a view; NaN where the step has no token. */
      ratio: (view, k) => scales.step[scores[view * steps.length + k]],
      /* Mass of cell c by a view, over that of uniform attention. */
      mass: (view, c) => scales.token[mass[view * held.starts.length + c]],
    };
  };

  return { index, open, trace };
})();
