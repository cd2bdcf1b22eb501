"""A whole cluster in one thread and in virtual time: the real cores, simulated processes and network, seeded faults."""
