"""What a step costs, from configs alone: parameters, floating-point operations, bytes. Nothing is measured here."""
