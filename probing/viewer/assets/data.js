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

  const index = { models: [], traces: [] };
  const scales = {};

  const open = () => {
    Object.assign(index, block("index"));
    for (const [name, scale] of Object.entries(index.scales)) scales[name] = table(scale);
    for (const line of index.traces) {
      for (const scored of line.models) {
        // Codes of SRA start at 1; a trace without a pair has none.
        scored.sra = scored.sra ? Array.from(words(scored.sra), (code) => (code - 1) / 65534) : null;
      }
    }
  };

  /* The last few traces stay unpacked, so that going back is free and memory stays bounded. */
  const kept = new Map();
  const trace = (number) => {
    if (!kept.has(number)) kept.set(number, unpack(number));
    const unpacked = kept.get(number);
    kept.delete(number);
    kept.set(number, unpacked);
    if (kept.size > 4) kept.delete(kept.keys().next().value);
    return unpacked;
  };

  const unpack = (number) => {
    const raw = block(`trace-${number}`);
    const steps = raw.steps.map(([start, end, label, kind, phrase]) => ({ start, end, label, kind, phrase }));
    return { ...raw, steps, models: raw.models.map((packed) => scoredBy(packed, steps.length)) };
  };

  /* A trace as one model sees it. */
  const scoredBy = (packed, steps) => {
    const scores = words(packed.scores);
    const shapes = packed.cells ? cells(packed.cells) : null;
    const mass = packed.mass ? bytes(packed.mass) : null;
    return {
      tokens: packed.tokens, // in each step
      cells: shapes,
      /* Ratio S / S_base of step k by a head; NaN where the step has no token. */
      ratio: (head, k) => scales.step[scores[head * steps + k]],
      /* Mass of cell c by a head, over that of uniform attention. */
      mass: (head, c) => scales.token[mass[head * shapes.starts.length + c]],
    };
  };

  return { index, open, trace };
})();
