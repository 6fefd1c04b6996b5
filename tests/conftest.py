"""What holds for all tests."""

import signal

# A job in the background starts with SIGINT ignored and hands that on; tests that interrupt commands need it to arrive.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
