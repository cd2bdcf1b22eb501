"""Links over sockets: the asyncio transports, the dialling and the listening end.

What a link promises is decided in `core/link.py`; here bytes are moved, timers kept and peers held to their limits.
"""
