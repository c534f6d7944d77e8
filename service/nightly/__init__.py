"""The search over many patients: who may be in a trial's population, their verdicts, a statement.

``screen`` is the use case; the command line, the worker and the web start from it.
"""
