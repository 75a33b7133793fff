"""Preference optimisation where everything can be computed: policies over few responses, without a language model.

A policy is a table of next-symbol distributions, the responses can be listed, and so reward, KLs, entropy and the
coverage of modes are sums and not estimates. What a method keeps or loses is known here before any model is asked.

    trees.py       responses as the leaves of a tree, policies as tables over its nodes
    problems.py    references and rewards: what is asked
    settings.py    every number that is chosen
    optima.py      where a method ends with infinite data, in closed form
    searching.py   the same for losses without a closed form: a root of the gradient
    objectives.py  the losses of pairs, on these tables, made of `tdpo.losses`
    methods.py     the methods, their strengths and their optima
    learning.py    what a method makes of a finite number of scored responses
    measures.py    exact numbers of a policy
    study.py       every problem with every method; comparisons at equal reward and equal KL
"""
