"""Plans: canonical rows get their steps, are cut into shards, and become one generation of a plan."""
