"""Bytes to messages and back: frames, the table of messages, payloads, the handshake.

Nothing here knows asyncio, a clock or a socket.
"""
