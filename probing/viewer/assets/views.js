/* What can be picked: of each model the mean of its head set, then heads; counted through all models.
   A view is { number, model, local, head, key, name, sra, tokens, inSet }. */
const Views = (() => {
  const list = [];

  const open = () => {
    const { models } = Data.index;
    models.forEach((model, m) => {
      const before = models.length > 1 ? `${m + 1}/` : "";
      const after = models.length > 1 ? ` of ${model.name}` : "";
      const add = (local, head) => {
        const pair = head ? `${head.layer}.${head.head}` : "";
        list.push({
          number: list.length,
          model: m,
          local,
          head,
          key: before + (pair || "set"),
          name: (pair ? `head ${pair}` : "the head set") + after,
          sra: head ? head.sra : model.setSra,
          tokens: local < model.tokenViews,
          inSet: Boolean(head) && local <= model.set,
        });
      };
      add(0, null);
      model.heads.forEach((head, i) => add(i + 1, head));
    });
  };

  const of = (model) => list.filter((view) => view.model === model);
  const byKey = (key) => list.find((view) => view.key === key);

  /* What stands beside a view if nothing was picked: the same head (or set) of the other model; of a
     lone model its set beside a head, and its best head beside the set. */
  const partner = (view) => {
    if (Data.index.models.length > 1) {
      const others = of(view.model ? 0 : 1);
      const same = (other) => view.head && other.head
        && other.head.layer === view.head.layer && other.head.head === view.head.head;
      return others.find(same) || others[0];
    }
    return view.head ? list[0] : list[1];
  };

  return { list, open, of, byKey, partner };
})();
