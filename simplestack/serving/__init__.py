"""The part of the package that is deployed. It imports no other part, and never torch."""
