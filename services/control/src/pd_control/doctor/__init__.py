"""`pdctl doctor`: reads the machine once, then decides on these facts alone.

`gather` and `nvml` read, `facts` holds what they found, the check modules turn facts and the planned processes into findings,
`catalogue` has the meaning and the remedy of each finding, and `command` shows them.
"""
