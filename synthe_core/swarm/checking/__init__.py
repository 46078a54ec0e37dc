"""Whether an answer contradicts what is known: rules, and a classifier over features of two sentences."""
