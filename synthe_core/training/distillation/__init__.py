"""Distillation: a student whose learners take the place of a teacher's attention."""
