"""How the policy learns, and the embedded world it can be tried on."""
