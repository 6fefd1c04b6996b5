"""Discrete-event simulation of a deployment: the same rules as `pd_simulator.steps.virtual_time`, in run time that does not grow with the length of the answers."""
