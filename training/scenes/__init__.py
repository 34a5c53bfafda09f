"""The embedded world: captions, drawings, the checker that reads them, and the small model made from them."""
