"""What is wrong with this set-up, and what mends it: each check is a function of the facts that it judges."""
