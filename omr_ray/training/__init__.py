"""Supervised jobs on Ray Train."""
