"""What a Ray cluster has, what it could get, and what each of its nodes sees."""
