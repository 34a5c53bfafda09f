"""A policy is learned: rewards, REINFORCE, the Ray Train workers and their journal."""
