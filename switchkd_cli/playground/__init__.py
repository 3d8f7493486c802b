"""The embedded world: small pictures with questions and answers, made on the spot from shipped drawings."""
