"""What users say of answers: ratings, corrections, and the preference pairs that specialists learn from."""
