"""What is wrong with answers, counted, and what to do next."""
