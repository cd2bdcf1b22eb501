"""The command line. It sits on the public API only; nothing imports it but the command itself.

This file stays empty of imports: workers of the demo import `aiocluster.cli.parse`, and nothing else of this package.
"""
