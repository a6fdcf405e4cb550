/* From scores to shades: a hue (a class name) and a strength from 0 to 1. No DOM, no state.

   uniform  how far above or below uniform attention, in octaves up to `span`
   log      the logarithm of the score, from the lowest to the highest of what is shown
   rank     the place among the scores of one trace by one head; equal scores share the better */
const Scale = (() => {
  const NAMES = { uniform: "against uniform", log: "log score", rank: "rank" };
  const known = (values) => values.filter((value) => !Number.isNaN(value));
  const descending = (values) => Float64Array.from(known(values)).sort().reverse();

  /* How many of the sorted values are larger. */
  const larger = (sorted, value) => {
    let low = 0;
    let high = sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] > value) low = middle + 1; else high = middle;
    }
    return low;
  };

  /* 1 is the highest; NaN, a step without a token, has no rank. */
  const ranks = (values) => {
    const sorted = descending(values);
    return values.map((value) => (Number.isNaN(value) ? NaN : larger(sorted, value) + 1));
  };

  const uniform = (span) => (ratio) => {
    const octaves = Math.log2(Math.max(ratio, 1e-9));
    return { hue: octaves > 0 ? "above" : octaves < 0 ? "below" : "", a: Math.min(Math.abs(octaves) / span, 1) };
  };

  const log = (low, high) => (ratio) => {
    const place = high > low ? Math.log2(ratio / low) / Math.log2(high / low) : 1;
    return { hue: "graded", a: Math.min(Math.max(place, 0), 1) };
  };

  const rank = (values) => {
    const sorted = descending(values);
    const last = sorted.length - 1;
    return (ratio) => ({ hue: "graded", a: last > 0 ? 1 - larger(sorted, ratio) / last : 1 });
  };

  /* The lowest and the highest of lists of ratios. */
  const ends = (lists) => {
    let low = Infinity;
    let high = -Infinity;
    for (const values of lists) for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return [low, high];
  };

  /* A function from a ratio to its shade. `values`: ratios of this head; `all`: lists of those of each
     head that is shown beside it, so that equal scores get equal colours; `span` of `uniform`. */
  const of = (name, values, all, span) => {
    const shade = { uniform: () => uniform(span), log: () => log(...ends(all)), rank: () => rank(values) }[name]();
    return (ratio) => (Number.isNaN(ratio) ? { hue: "", a: 0 } : shade(ratio));
  };

  /* Spearman's rank correlation: Pearson's of the ranks, equal values at the mean of their places.
     NaN where fewer than two pairs are known, or one side is all equal. */
  const correlation = (first, second) => {
    const both = first.map((value, i) => [value, second[i]]).filter((pair) => !pair.some(Number.isNaN));
    const places = (side) => {
      const values = both.map((pair) => pair[side]);
      const sorted = descending(values);
      return values.map((value) => {
        const above = larger(sorted, value);
        return above + sorted.reduce((n, other) => n + (other === value), 0) / 2;
      });
    };
    const [a, b] = [places(0), places(1)];
    const mean = both.length / 2;
    const product = (x, y) => x.reduce((sum, value, i) => sum + (value - mean) * (y[i] - mean), 0);
    return product(a, b) / Math.sqrt(product(a, a) * product(b, b));
  };

  return { NAMES, of, ranks, ends, correlation };
})();
