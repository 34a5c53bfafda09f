"""What speed, memory and quality were measured with: each file is a command that prints its table."""
