"""The benchmark on a GPU: ``tools/benchmark.py --device cuda --report``.

``contenders`` and ``cases`` say what is measured, ``planning`` in which order, ``measuring`` how; ``worker`` is a
process that measures one network, ``running`` starts those processes and lets one at a time use the clock; ``figures``
puts those of several runs together, ``page`` makes docs/benchmarks_gpu.md. CONTRIBUTING.md has the commands.
"""
