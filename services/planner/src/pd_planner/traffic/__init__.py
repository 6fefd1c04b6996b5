"""What is offered: when requests come and how long they are."""
