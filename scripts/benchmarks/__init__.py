"""Parts of the benchmark.

Nothing is imported here: a part that runs in a process of its own loads no other's libraries.
"""
