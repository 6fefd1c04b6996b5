"""The part that sends: everything that imports gevent or Locust is in here.

Importing Locust patches sockets, threads and signals of the whole process, so nothing outside this package may import it, and
tests reach it through a subprocess. What is decided, parsed or computed lives one level up, without I/O.
"""
