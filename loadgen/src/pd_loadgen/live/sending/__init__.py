"""Sockets and greenlets: requests leave on time, and bytes get the time of their arrival."""
