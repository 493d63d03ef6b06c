"""The backends that Wove can hand a run to: one module each, with an adapter and what its workers need.

`wove.integrations.worker` has what every worker calls: ``run`` and ``arun``.
"""
