"""The state machines of a cluster, as plain objects: no I/O, no clock, no random source of their own.

Inputs are method calls with `now` passed in; outputs are effects that a shell performs.
"""
