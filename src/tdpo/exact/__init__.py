"""Preference optimisation where everything can be computed: policies over few responses, without a language model.

A policy is a table of next-symbol distributions and the responses can be listed, so reward, KLs, entropy and the
coverage of modes are sums and not estimates. They show what a method preserves or loses without training any model.

    trees.py       responses as the leaves of a tree, policies as tables over its nodes
    problems.py    references and rewards
    settings.py    every number of the benchmark that is a choice
    optima.py      the optimum of a method with infinite data, in closed form
    searching.py   the same for losses without a closed form: a root of the gradient
    objectives.py  the losses of pairs on these tables, from `tdpo.losses`
    methods.py     the methods, their strengths and their optima
    learning.py    what a method learns from a finite number of scored responses
    measures.py    exact numbers of a policy
    benchmark.py   every problem with every method; comparisons at equal reward and equal KL

Shapes beside those of `token_statistics`: K is the number of responses here. Leading dimensions, written `...`, are
policies or studies of their own.
"""
