"""The pocket reasoner: a tiny model that reasons in R1's style, overthinks, and has known labels.

`task` makes problems and traces, `parse` labels any trace, `tokens` builds the tokenizer,
`pretrain` trains the model, `decode` samples from it, `measure` and `traces` make its card.
"""
