"""Learns a policy: rewards, REINFORCE, the Ray Train workers and their journal."""
