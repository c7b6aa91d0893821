"""The benchmark on a GPU: ``tools/benchmark.py --device cuda --report``.

``contenders`` and ``cases`` say what is measured, ``measuring`` how; ``worker`` is a process that measures one network,
``running`` starts those processes and lets one at a time use the clock, ``page`` makes docs/benchmarks_gpu.md.
"""
