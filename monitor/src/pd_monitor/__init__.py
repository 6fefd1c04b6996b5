"""Power, clocks and energy of every GPU, by role: a Prometheus exporter and a recorder.

One sampler reads one back end; the last tick feeds `/metrics`, and every tick feeds the recordings that are active.
"""

__version__ = "0.2.0"
