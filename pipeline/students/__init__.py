"""Students: small models trained on what teachers wrote."""
