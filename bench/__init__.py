"""The benchmark harness: what aiocluster reaches, beside what this machine can reach at all, in one run.

`python -m bench --help` says how; `bench/README.md` says what the figures mean. It only uses the public API (and, in
`bench.core`, the pure core), and no test ever asserts on a time that it measures.
"""
