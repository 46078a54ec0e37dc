"""How specialists learn from reviewed pairs: training, a promotion gate, versions that can be rolled back."""
