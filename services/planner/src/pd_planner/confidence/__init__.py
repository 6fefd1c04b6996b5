"""How sure an answer is: the same question many times, with other numbers and other arrivals."""
