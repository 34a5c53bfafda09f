"""Renders shards into images and manifests, through pools of warm actors that share one ledger."""
