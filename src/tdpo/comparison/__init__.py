"""The study: arms × strengths × seeds on equal budgets, judged with intervals."""
