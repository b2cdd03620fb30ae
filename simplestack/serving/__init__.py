"""What is deployed. Imports nothing else of ours, and never torch."""
