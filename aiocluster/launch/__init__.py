"""Launchers: each starts and stops nodes on one kind of infrastructure."""
