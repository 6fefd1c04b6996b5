"""`pdctl doctor`: looks at the machine once, then decides without looking again.

`gather` and `nvml` read, `facts` is what they found, the check modules turn facts and the planned processes into findings,
`catalogue` says what each finding means and what to do, `command` shows them.
"""
