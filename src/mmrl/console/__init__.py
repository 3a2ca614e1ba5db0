"""What commands have in common that is no option: how they end, and who of several processes speaks."""
