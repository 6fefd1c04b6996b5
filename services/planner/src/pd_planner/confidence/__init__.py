"""The confidence of an answer: the question is answered many times, with other numbers and other arrivals."""
